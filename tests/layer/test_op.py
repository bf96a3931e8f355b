"""`tf_layer.solve_qp`: values and gradients against nbqp and central differences, in every mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf
from tensorflow.python.ops import script_ops

import nbqp
from tf_layer import QPLayer, bridge, solve_qp

EPS = nbqp.Settings(eps_abs=1e-10)
NAMES = ("H", "g", "A", "b", "C", "l", "u", "lb", "ub")
BATCH, N = 5, 6


def problem(seed: int = 0) -> dict[str, np.ndarray]:
    """Feasible at a point strictly inside its inequalities, which the solution is not."""
    rng = np.random.default_rng(seed)
    x0 = rng.random(N)
    A, C = rng.random((2, N)), rng.standard_normal((4, N))
    L = rng.standard_normal((N, N))
    return {
        "H": L @ L.T / N + np.eye(N),
        "g": 3.0 * rng.standard_normal((BATCH, N)),
        "A": A,
        "b": A @ x0,
        "C": C,
        "l": C @ x0 - 0.3,
        "u": C @ x0 + 0.2,
        "lb": np.zeros(N),
        "ub": np.full(N, 1.5),
    }


def batched(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with a batch axis on all data."""
    return {
        name: value if name == "g" else np.stack([value] * BATCH) for name, value in data.items()
    }


def weights(seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((BATCH, size)) for size in (N, 2, 4, N)]


def loss(data: dict[str, Any], **options: Any) -> Any:
    out = solve_qp(**data, settings=EPS, **options)
    parts = (out.x, out.y, out.z, out.z_box)
    return tf.add_n(
        [tf.reduce_sum(tf.constant(w) * part**2) for w, part in zip(weights(), parts, strict=True)]
    )


def gradients(data: dict[str, Any]) -> dict[str, Any]:
    tensors = {name: tf.convert_to_tensor(value) for name, value in data.items()}
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = loss(tensors)
    return tape.gradient(value, tensors)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "batched"])
def test_gradients_of_all_nine_data_agree_with_nbqp(mode: str, shared: bool) -> None:
    data = problem() if shared else batched(problem())
    ours = (gradients if mode == "eager" else tf.function(gradients))(data)
    sol = nbqp.solve_batch(**data, settings=EPS)
    parts = (sol.x, sol.y, sol.z, sol.z_box)
    names = ("dL_dx", "dL_dy", "dL_dz", "dL_dz_box")
    cotangent = {k: 2.0 * w * p for k, w, p in zip(names, weights(), parts, strict=True)}
    expected = nbqp.vjp(sol, **cotangent)
    for name in NAMES:
        np.testing.assert_allclose(ours[name], getattr(expected, f"dL_d{name}"), atol=1e-8)


def test_gradients_agree_with_central_differences() -> None:
    data = problem()
    ours = gradients(data)
    rng = np.random.default_rng(2)
    h = 1e-5
    for name in NAMES:
        direction = rng.standard_normal(data[name].shape)
        if name == "H":
            direction = direction + direction.T
        up = float(loss({**data, name: data[name] + h * direction}))
        down = float(loss({**data, name: data[name] - h * direction}))
        exact = float(np.sum(ours[name] * direction))
        assert (up - down) / (2 * h) == pytest.approx(exact, rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_second_order_agrees_with_differences_of_the_first(mode: str) -> None:
    data = problem()
    rng = np.random.default_rng(3)
    direction = {name: rng.standard_normal(value.shape) for name, value in data.items()}
    direction["H"] = direction["H"] + direction["H"].T

    def product(data: dict[str, Any]) -> Any:
        tensors = {name: tf.convert_to_tensor(value) for name, value in data.items()}
        with tf.GradientTape() as outer:
            outer.watch(tensors)
            with tf.GradientTape() as inner:
                inner.watch(tensors)
                value = loss(tensors)
            first = inner.gradient(value, tensors)
            along = tf.add_n([tf.reduce_sum(first[k] * direction[k]) for k in NAMES])
        return outer.gradient(along, tensors)

    ours = (product if mode == "eager" else tf.function(product))(data)
    h = 1e-5
    up = gradients({k: v + h * direction[k] for k, v in data.items()})
    down = gradients({k: v - h * direction[k] for k, v in data.items()})
    for name in NAMES:
        numeric = (up[name] - down[name]).numpy() / (2 * h)
        scale = np.abs(numeric).max()
        np.testing.assert_allclose(ours[name], numeric, atol=1e-5 * scale, err_msg=name)


def test_a_jacobian_of_one_sample_agrees_with_jvp() -> None:
    data = problem()
    g = tf.constant(data.pop("g")[0])
    with tf.GradientTape() as tape:
        tape.watch(g)
        x = solve_qp(g=g, **data, settings=EPS).x
    jacobian = tape.jacobian(x, g).numpy()
    sol = nbqp.solve_qp(g=g.numpy(), **data, settings=EPS)
    columns = [nbqp.jvp(sol, dg=e).dx for e in np.eye(N)]
    np.testing.assert_allclose(jacobian.T, columns, atol=1e-10)


def test_an_unknown_batch_size_and_an_empty_batch() -> None:
    data = problem()
    data.pop("g")

    @tf.function(input_signature=[tf.TensorSpec((None, N), tf.float64)])
    def solve(g: Any) -> Any:
        x = solve_qp(g=g, **data).x
        assert x.shape.as_list() == [None, N]
        return x

    for size in (3, 0, 7):
        assert solve(np.zeros((size, N))).shape == (size, N)


def test_float32_in_float32_out() -> None:
    data = {name: tf.constant(value, tf.float32) for name, value in problem().items()}
    with tf.GradientTape() as tape:
        tape.watch(data)
        out = solve_qp(**data)
    grads = tape.gradient(out.x, data)
    assert out.x.dtype == tf.float32
    assert all(gradient.dtype == tf.float32 for gradient in grads.values())
    exact = nbqp.solve_batch(**problem()).x
    np.testing.assert_allclose(out.x, exact, atol=1e-5)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_sparse_constants_stay_sparse_and_agree_with_dense(mode: str) -> None:
    data = problem()
    dense = gradients(data)
    rest = {k: tf.constant(v) for k, v in data.items() if k not in ("A", "C", "H")}
    matrices = {k: sp.csr_array(data[k]) for k in ("A", "C", "H")}

    def gradient() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(rest)
            value = loss({**rest, **matrices})
        return tape.gradient(value, rest)

    ours = (gradient if mode == "eager" else tf.function(gradient))()
    for name, value in ours.items():
        np.testing.assert_allclose(value, dense[name], atol=1e-8, err_msg=name)


def infeasible() -> dict[str, np.ndarray]:
    """Of three samples the second has no feasible point."""
    return {
        "H": np.eye(2),
        "g": np.ones((3, 2)),
        "A": np.ones((2, 2)),
        "b": np.array([[1.0, 1.0], [1.0, 2.0], [3.0, 3.0]]),
    }


def test_a_failure_is_raised_with_its_sample_and_status() -> None:
    message = "PRIMAL_INFEASIBLE for sample 1; 1 of 3 failed"
    with pytest.raises(nbqp.UnsolvedError, match=message):
        solve_qp(**infeasible())
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        tf.function(lambda: solve_qp(**infeasible()).x)()


@pytest.mark.parametrize("policy", ["nan", "keep"])
def test_a_failure_follows_the_policy_and_harms_no_other_sample(policy: Any) -> None:
    data = {name: tf.constant(value) for name, value in infeasible().items()}
    with tf.GradientTape() as tape:
        tape.watch(data)
        out = solve_qp(**data, on_failure=policy)
        value = tf.reduce_sum(out.x**2)
    grads = tape.gradient(value, data)
    assert out.status.numpy().tolist() == [0, nbqp.Status.PRIMAL_INFEASIBLE.value, 0]
    bad = grads["b"].numpy()[1]
    assert np.isnan(bad).all() if policy == "nan" else (bad == 0.0).all()
    assert np.isnan(out.x[1]).all() == (policy == "nan")
    assert np.isfinite(np.delete(grads["b"].numpy(), 1, axis=0)).all()
    assert np.isfinite(grads["A"]).all() == (policy == "keep")


def test_a_sample_with_nan_is_kept_out_of_shared_gradients() -> None:
    data = problem()
    data["g"][2] = np.nan
    tensors = {name: tf.constant(value) for name, value in data.items()}
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        out = solve_qp(**tensors, on_failure="keep")
        value = tf.reduce_sum(tf.where(out.status == 0, tf.reduce_sum(out.x, axis=1), 0.0))
    grads = tape.gradient(value, tensors)
    assert out.status.numpy()[2] == nbqp.Status.INVALID_DATA.value
    assert all(np.isfinite(gradient).all() for gradient in grads.values())


def test_inputs_are_not_modified() -> None:
    data = {name: tf.Variable(value) for name, value in problem().items()}
    before = {name: value.numpy().copy() for name, value in data.items()}
    tf.function(lambda: loss(data))()
    loss(data)
    for name, value in data.items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_tensorflow_still_finds_the_ops_by_their_fixed_names() -> None:
    """Tells when TensorFlow moves the private registry that `bridge` writes to."""
    for name in (bridge.SOLVE, bridge.ADJOINT):
        assert script_ops._py_funcs.get(name) is bridge._ops[name]


def test_gradients_are_recorded_as_by_custom_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tells, too, when TensorFlow moves the private function that records them."""
    assert bridge.record_operation is not None
    recorded = gradients(problem())
    monkeypatch.setattr(bridge, "record_operation", None)
    for name, gradient in gradients(problem()).items():
        np.testing.assert_array_equal(recorded[name], gradient)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"g": None}, "g: expected a vector, got None"),
        ({"g": np.zeros(())}, r"g: expected numbers of rank 1 or 2, got float64 of shape \(\)"),
        ({"A": np.zeros(N)}, "A: expected numbers of rank 2 or 3"),
        ({"H": "text"}, "H: expected numbers of rank 2 or 3, got string"),
        ({"H": np.eye(N + 1)}, f"H: expected {N} columns"),
        ({"b": np.zeros(3)}, r"b: expected shape \(2,\)"),
        ({"lb": 2.0}, "lb: expected lb <= ub"),
        ({"settings": {"eps_abs": 1e-3}}, "settings: expected Settings, got dict"),
        ({"C": sp.csc_array(np.eye(N) * 1j)}, "C: expected real numbers, got dtype complex"),
        ({"g": sp.csc_array(np.ones((1, N)))}, "g: expected a dense vector, got csc_array"),
        ({"on_failure": "zero"}, 'on_failure: expected "raise", "nan" or "keep", got \'zero\''),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(nbqp.QPError, match=message):
        solve_qp(**{**problem(), **change})


def mixed() -> dict[str, np.ndarray]:
    """Of four samples the odd ones have no feasible point: u below what x >= 0 allows."""
    rng = np.random.default_rng(5)
    C = rng.random((4, 2, 5)) + 0.1
    u = np.where(np.arange(4)[:, None] % 2 == 0, 1.0, -1.0) * np.ones((4, 2))
    return {"H": np.eye(5), "g": rng.standard_normal((4, 5)), "C": C, "u": u, "lb": np.zeros(5)}


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_gradients_of_shifts_agree_with_nbqp(mode: str) -> None:
    data = mixed()
    closest = nbqp.Settings(eps_abs=1e-10, primal_infeasibility_solving=True)
    weights = [np.random.default_rng(6).standard_normal(s) for s in ((4, 5), (4, 2), (4, 5))]

    def gradient(data: dict[str, Any]) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(data)
            out = solve_qp(**data, settings=closest)
            parts = zip(weights, (out.x, out.s_i, out.s_box), strict=True)
            value = tf.add_n([tf.reduce_sum(w * part) for w, part in parts])
        return tape.gradient(value, data)

    tensors = {name: tf.constant(value) for name, value in data.items()}
    ours = (gradient if mode == "eager" else tf.function(gradient))(tensors)
    sol = nbqp.solve_batch(**data, settings=closest)
    assert {s.name for s in sol.status} == {"SOLVED", "SOLVED_CLOSEST_PRIMAL_FEASIBLE"}
    names = ("dL_dx", "dL_ds_i", "dL_ds_box")
    expected = nbqp.vjp(sol, **dict(zip(names, weights, strict=True)))
    for name in data:
        np.testing.assert_allclose(ours[name], getattr(expected, f"dL_d{name}"), atol=1e-8)


def test_second_derivatives_of_a_closest_feasible_qp_are_refused() -> None:
    data = {name: tf.constant(value) for name, value in mixed().items()}
    closest = nbqp.Settings(primal_infeasibility_solving=True)
    with tf.GradientTape() as outer:
        outer.watch(data)
        with tf.GradientTape() as inner:
            inner.watch(data)
            value = tf.reduce_sum(solve_qp(**data, settings=closest).x ** 2)
        first = inner.gradient(value, data["g"])
    with pytest.raises(nbqp.UnsolvedError, match="second derivatives"):
        outer.gradient(first, data["g"])


def test_a_batch_axis_of_one_is_shared_and_keeps_its_shape() -> None:
    b, H = tf.Variable([[1.0]]), tf.Variable(tf.eye(2)[tf.newaxis])
    with tf.GradientTape() as tape:
        x = solve_qp(H, tf.ones((3, 2)), tf.ones((1, 2)), b).x
        value = tf.reduce_sum(x * tf.constant([[1.0, 2.0]]))
    dH, db = tape.gradient(value, (H, b))
    assert db.shape == b.shape
    assert dH.shape == H.shape
    np.testing.assert_allclose(db, [[4.5]], atol=1e-5)


def test_symmetry_is_judged_in_the_dtype_of_h() -> None:
    H = np.array([[1.0, 0.1], [0.1 * (1 + 1e-7), 1.0]], dtype=np.float32)
    x = solve_qp(tf.constant(H), tf.ones(2)).x
    np.testing.assert_allclose(x, np.linalg.solve(H, -np.ones(2)), atol=1e-5)


SKEW = np.array([[1.0, 2.0], [0.0, 3.0]])
ROUNDED = np.array([[2.0, 1.0], [np.nextafter(np.float32(1.0), np.float32(2.0)), 2.0]], np.float32)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
def test_an_asymmetric_h_is_refused_in_every_dtype(dtype: Any) -> None:
    with pytest.raises(nbqp.SymmetryError, match="H: expected a symmetric matrix"):
        solve_qp(tf.constant(SKEW, dtype), tf.ones(2))


@pytest.mark.parametrize("form", [tf.constant, sp.csc_array])
def test_an_h_symmetric_to_the_rounding_of_its_dtype_is_taken(form: Any) -> None:
    out = solve_qp(form(ROUNDED), tf.ones(2))
    np.testing.assert_allclose(out.x, [-1.0 / 3.0, -1.0 / 3.0], atol=1e-6)
    layer = QPLayer(H=ROUNDED if form is tf.constant else form(ROUNDED))
    np.testing.assert_allclose(layer(np.ones((1, 2))), [[-1.0 / 3.0, -1.0 / 3.0]], atol=1e-6)


def test_a_shared_batch_of_one_has_a_gradient_of_its_shape_where_the_batch_is_unknown() -> None:
    @tf.function(input_signature=[tf.TensorSpec((None, 2)), tf.TensorSpec((None, 1))])
    def gradient(g: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(b)
            loss = tf.reduce_sum(solve_qp(np.eye(2), g, np.ones((1, 2)), b).x)
        return tape.gradient(loss, b)

    np.testing.assert_allclose(gradient(tf.ones((3, 2)), tf.ones((1, 1))), [[3.0]], atol=1e-6)
    np.testing.assert_allclose(
        gradient(tf.ones((3, 2)), tf.ones((3, 1))), np.ones((3, 1)), atol=1e-6
    )


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_warm_start_saves_steps_and_changes_no_gradient(mode: str) -> None:
    rng = np.random.default_rng(5)
    H, g, C = np.eye(6), tf.constant(rng.standard_normal((4, 6))), rng.standard_normal((5, 6))

    def solve(g: Any, start: Any) -> tuple[Any, Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(g)
            out = solve_qp(H, g, C=C, u=0.1, lb=-1.0, warm_start=start)
            loss = tf.reduce_sum(out.x**2)
        return out, tape.gradient(loss, g), out.newton_steps

    run = tf.function(solve) if mode == "graph" else solve
    cold, expected, steps = run(g, None)
    assert (steps.numpy() > 0).all()
    _, gradient, steps = run(g, cold)
    np.testing.assert_array_equal(steps, 0)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    unknown = [tf.where([[True], [False], [False], [False]], np.nan, part) for part in cold[:4]]
    first, *others = run(g, unknown)[2].numpy()
    assert first == cold.newton_steps[0]
    assert not np.any(others)


def test_a_bad_warm_start_is_named() -> None:
    with pytest.raises(nbqp.ShapeError, match="warm_start: expected"):
        solve_qp(np.eye(2), np.ones((3, 2)), warm_start=np.ones(2))
    with pytest.raises(nbqp.ShapeError, match=r"warm_start: expected x of shape \(3, 2\)"):
        solve_qp(np.eye(2), np.ones((3, 2)), warm_start=[np.ones((1, 2))] * 4)


@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_of_h_is_exactly_symmetric(shared: bool) -> None:
    rng = np.random.default_rng(0)
    L = rng.standard_normal((7, 30, 30))
    H = tf.constant((L @ L.swapaxes(1, 2) + np.eye(30))[0 if shared else slice(None)])
    H = 0.5 * (H + tf.linalg.matrix_transpose(H))
    with tf.GradientTape() as tape:
        tape.watch(H)
        loss = tf.reduce_sum(solve_qp(H, rng.standard_normal((7, 30)), lb=-0.1).x ** 2)
    found = tape.gradient(loss, H).numpy()
    assert np.abs(found).max() > 0.0
    np.testing.assert_array_equal(found, found.swapaxes(-1, -2))
