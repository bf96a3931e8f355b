"""The Keras contract of `QPLayer`, by the public interface alone."""

from __future__ import annotations

import functools
import pathlib
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf

import nbqp
from tf_layer import Input, Learned, QPLayer

N = 8


def features(batch: int = 64) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, N)).astype(np.float32)


def layers() -> dict[str, dict[str, Any]]:
    return {
        "learned rows": {"H": np.eye(N), "A": Learned((3, N)), "lb": 0.0, "feasible": True},
        "learned objective": {"H": Learned((N, N), eps=0.1), "lb": -1.0, "ub": 1.0},
        "learned inequalities": {"H": np.eye(N), "C": Learned((3, N)), "feasible": True},
        "learned sides": {"H": np.eye(N), "C": np.eye(2, N), "u": Learned((2,), "ones")},
        "sparse": {"H": sp.eye_array(N), "A": sp.csr_array(np.eye(2, N)), "b": np.ones(2)},
        "linear": {"A": Learned((3, N)), "lb": 0.0, "feasible": True, "on_failure": "keep"},
    }


@pytest.mark.parametrize("name", layers())
def test_a_layer_trains_saves_and_loads(name: str, tmp_path: pathlib.Path) -> None:
    keras.utils.set_random_seed(0)
    layer = QPLayer(**layers()[name])
    inputs = keras.Input((N,))
    outputs = layer(keras.layers.Dense(N)(inputs))
    assert outputs.shape == (None, N)
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mse")
    x = features()
    before = layer.get_weights()
    history = model.fit(x, np.abs(x), batch_size=24, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    moved = [(w != b).any() for w, b in zip(layer.get_weights(), before, strict=True)]
    assert all(moved), [weight.path for weight in layer.weights]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        again.predict(x, verbose=0), model.predict(x, verbose=0), err_msg=name
    )
    assert again.layers[-1].get_config() == layer.get_config()


@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
def test_every_dtype_policy_trains(policy: str) -> None:
    layer = QPLayer(H=np.eye(N), A=Learned((3, N)), lb=0.0, feasible=True, dtype=policy)
    model = keras.Sequential([keras.layers.Dense(N, dtype=policy), layer])
    model.compile("adam", "mse")
    x = features()
    assert np.isfinite(model.fit(x, np.abs(x), verbose=0).history["loss"]).all()
    assert keras.backend.standardize_dtype(layer(x).dtype) == layer.compute_dtype
    assert layer.learned["A"].dtype == layer.variable_dtype


@pytest.mark.parametrize("scale", [2.0**15, 1e30])
def test_a_scaled_loss_takes_the_step_of_the_plain_one(scale: float) -> None:
    x = features()
    kernels = []
    for optimizer in (
        keras.optimizers.SGD(0.1),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=scale),
    ):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.layers.Dense(N), QPLayer(H=np.eye(N), lb=-0.1)])
        model.build((None, N))
        start = model.layers[0].kernel.numpy()
        model.compile(optimizer, "mse")
        model.fit(x, np.abs(x), batch_size=len(x), verbose=0)
        kernels.append(model.layers[0].kernel.numpy())
    assert np.abs(kernels[0] - start).max() > 1e-3
    np.testing.assert_allclose(kernels[1], kernels[0], atol=1e-6)


def test_a_feasible_layer_solves_whatever_its_matrices() -> None:
    layer = QPLayer(A=Learned((6, N), "random_normal"), lb=0.0, feasible=True, return_solution=True)
    layer.build((None, N))
    for seed in range(5):
        layer.learned["A"].assign(np.random.default_rng(seed).random((6, N)))
        out = layer(-np.abs(features()))
        assert (out.status.numpy() == 0).all()
        assert (out.newton_steps.numpy() > 0).all()


def test_several_inputs_come_by_name() -> None:
    layer = QPLayer(H=np.eye(N), A=np.eye(2, N), b=Input(), return_solution=True)
    x = features(5)
    out = layer({"g": x, "b": x[:, :2]})
    np.testing.assert_allclose(out.x[:, :2], x[:, :2], atol=1e-6)
    np.testing.assert_allclose(out.x[:, 2:], -x[:, 2:], atol=1e-6)
    shapes = layer.compute_output_shape({"g": (None, N), "b": (None, 2)})
    sizes = (N, 2, 0, N, 2, 0, N)
    assert shapes == (*((None, size) for size in sizes), (None,), (None,))


def test_a_failing_sample_is_named_in_fit() -> None:
    rows = {"C": np.ones((2, N)), "l": np.array([-np.inf, 2.0]), "u": np.array([1.0, np.inf])}
    model = keras.Sequential([keras.layers.Dense(N), QPLayer(H=np.eye(N), **rows)])
    model.compile("adam", "mse")
    with pytest.raises(tf.errors.InvalidArgumentError, match="PRIMAL_INFEASIBLE for sample 0"):
        model.fit(features(), features(), verbose=0)


def test_an_exported_model_answers_in_a_fresh_process(tmp_path: pathlib.Path) -> None:
    model = keras.Sequential([keras.Input((N,)), QPLayer(H=np.eye(N), lb=0.0)])
    model.export(tmp_path / "model", verbose=False)
    np.save(tmp_path / "x.npy", features())
    script = (
        "import sys, numpy as np, tensorflow as tf, tf_layer\n"
        "model = tf.saved_model.load(sys.argv[1] + '/model')\n"
        "np.save(sys.argv[1] + '/y.npy', model.serve(np.load(sys.argv[1] + '/x.npy')))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), np.maximum(-features(), 0.0), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"A": np.eye(2, N)}, "b: expected a vector, as A is given"),
        ({"b": np.ones(2)}, "A: expected a matrix, as b is given"),
        ({"A": np.eye(2, N), "b": 1.0, "feasible": True}, "b: expected None, as feasible"),
        ({"A": np.eye(2, N), "lb": 1.0, "feasible": True}, "lb, ub: expected lb <= 0"),
        ({"C": Input(), "feasible": True}, "C: expected Learned or an array"),
        ({"g": None}, "g: expected Input"),
        ({"g": np.ones(2)}, "g: expected an Input where"),
        ({"H": "identity"}, "H: expected None, real numbers, Learned or Input, got str"),
        ({"on_failure": "zero"}, 'on_failure: expected "raise", "nan" or "keep", got \'zero\''),
        ({"settings": {"eps_abs": 1e-6}}, "settings: expected Settings, got dict"),
        ({"violation": 1e-3}, "violation: expected 0, or a positive weight with"),
        ({"violation": -1.0}, r"violation: expected 0, or .*, got -1\.0"),
        ({"violation": np.nan}, "violation: expected 0, or .*, got nan"),
        ({"violation": np.inf}, "violation: expected 0, or .*, got inf"),
        ({"violation": True}, "violation: expected 0, or .*, got True"),
        ({"violation": "1"}, "violation: expected 0, or .*, got '1'"),
        ({"feasible": 1}, "feasible: expected True or False, got 1"),
        ({"feasible": None}, "feasible: expected True or False, got None"),
        (
            {"warm_start": 0},
            "warm_start: expected None or a number of samples of at least 1, got 0",
        ),
        ({"warm_start": True}, "warm_start: expected None or a number of samples"),
        ({"return_solution": "yes"}, "return_solution: expected True or False, got 'yes'"),
    ],
)
def test_declarations_that_do_not_fit_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(nbqp.QPError, match=message):
        QPLayer(**arguments)


def test_a_learned_shape_has_to_be_one() -> None:
    with pytest.raises(nbqp.QPError, match=r"Learned\.shape: expected positive"):
        Learned((3, 0))


@pytest.mark.parametrize("eps", [-1e-4, np.nan, True, "small"])
def test_eps_of_a_learned_h_has_to_be_a_number_of_at_least_0(eps: Any) -> None:
    with pytest.raises(nbqp.QPError, match=r"Learned\.eps: expected a number of at least 0, got"):
        Learned((N, N), eps=eps)


ONE = {"H": np.eye(N)}
TWO = {"H": np.eye(N), "A": np.eye(2, N), "b": Input()}


@pytest.mark.parametrize(
    ("data", "inputs", "message"),
    [
        (ONE, {"x": features(5)}, r"inputs: expected \['g'\], got \['x'\]"),
        (ONE, [features(5)] * 2, "inputs: expected one tensor, g, got 2 tensors without names"),
        (TWO, {"g": features(5)}, r"inputs: expected \['g', 'b'\], got \['g'\]"),
        (TWO, features(5), r"a dict with the names \['g', 'b'\].*one tensor of shape \(5, 8\)"),
        (TWO, [features(5)] * 2, r"the names \['g', 'b'\].*2 tensors without names"),
    ],
    ids=["other name", "list for one", "name missing", "one for two", "list for two"],
)
@pytest.mark.parametrize("built", [False, True], ids=["first call", "built"])
def test_inputs_that_are_not_the_declared_ones_are_named(
    data: dict[str, Any], inputs: Any, message: str, built: bool
) -> None:
    layer = QPLayer(**data)
    if built:
        layer.build((None, N) if data is ONE else {"g": (None, N), "b": (None, 2)})
    with pytest.raises(nbqp.QPError, match=message):
        layer(inputs)


@pytest.mark.parametrize("name", ["H", "A", "b", "C", "u", "lb"])
def test_constants_are_copies_of_what_was_given(name: str) -> None:
    given: dict[str, Any] = {
        "H": np.eye(N),
        "A": np.eye(1, N),
        "b": np.ones(1),
        "C": sp.csc_array(np.eye(2, N, k=1)),
        "u": np.ones(2),
        "lb": np.full(N, -0.5),
    }
    layer = QPLayer(**given)
    x = features(16)
    before, config = layer(x).numpy(), layer.get_config()
    values = given[name].data if sp.issparse(given[name]) else given[name]
    values *= 0.5
    np.testing.assert_array_equal(layer(x), before)
    assert layer.get_config() == config
    assert not np.allclose(QPLayer(**given)(x), before), "the change would not have shown"


@pytest.mark.parametrize("name", ["H", "A", "C"])
@pytest.mark.parametrize("shape", [(N,), (2, N + 1)])
def test_shapes_that_do_not_fit_are_named_when_the_layer_is_built(
    name: str, shape: tuple[int, ...]
) -> None:
    sides = {"H": {}, "A": {"b": np.ones(2)}, "C": {"u": np.ones(2)}}[name]
    layer = QPLayer(**{name: Learned(shape)}, **sides)
    with pytest.raises(nbqp.QPError, match=f"{name}: expected"):
        layer.build((None, N))


CLOSEST = nbqp.Settings(primal_infeasibility_solving=True)


def test_the_violation_is_added_to_the_loss_and_falls() -> None:
    """x >= 0 contradicts A x = b for b < 0: the layer learns a right-hand side that does not."""
    layer = QPLayer(
        H=np.eye(N),
        A=np.ones((1, N)),
        b=Learned((1,), keras.initializers.Constant(-1.0)),
        lb=0.0,
        settings=CLOSEST,
        violation=0.5,
    )
    x = features(16)
    layer(x)
    # The shifts share the contradiction: |s_e| + |s_box| of the closest point.
    sol = nbqp.solve_batch(np.eye(N), x, np.ones((1, N)), [-1.0], lb=0.0, settings=CLOSEST)
    norms = np.linalg.norm(sol.s_e, axis=1) + np.linalg.norm(sol.s_box, axis=1)
    assert float(layer.losses[0]) == pytest.approx(0.5 * norms.mean(), rel=1e-5)
    model = keras.Sequential([keras.Input((N,)), layer])
    model.compile(keras.optimizers.Adam(0.2), lambda truth, output: 0.0 * output)
    losses = model.fit(x, x, epochs=30, verbose=0).history["loss"]
    assert losses[0] > 0.1
    assert losses[-1] == pytest.approx(0.0, abs=1e-6)
    assert layer.learned["b"].numpy()[0] >= -1e-6


def test_complex_constants_are_refused() -> None:
    with pytest.raises(nbqp.ShapeError, match=r"b: expected None, real numbers, .* complex128"):
        QPLayer(A=np.ones((1, 2)), b=np.array([1.0 + 1.0j]))


def test_the_violation_has_the_dtype_of_the_layer_in_a_graph() -> None:
    x = keras.Input((N,), dtype="float64")
    layer = QPLayer(
        H=np.eye(N), A=np.ones((1, N)), b=np.array([-1.0]), lb=0.0,
        settings=CLOSEST, violation=1e-3, dtype="float64",
    )  # fmt: skip
    model = keras.Model(x, layer(x))
    model.compile("sgd", "mse")
    loss = model.evaluate(np.zeros((2, N)), np.zeros((2, N)), verbose=0)
    assert np.isfinite(loss)
    assert loss > 0.0


def remembering(samples: int | None) -> tuple[keras.Model, keras.Model]:
    """A model with an index among its inputs, and the Newton steps of its layer."""
    keras.utils.set_random_seed(0)
    layer = QPLayer(
        H=0.1 * np.eye(N),
        A=Learned((3, N), "random_uniform"),
        lb=0.0,
        feasible=True,
        return_solution=True,
        warm_start=samples,
    )
    inputs = [keras.Input((N,)), keras.Input((), dtype="int32")]
    out = layer({"g": inputs[0], "index": inputs[1]} if samples else inputs[0])
    model = keras.Model(inputs, out.x)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    return model, keras.Model(inputs, out.newton_steps)


def test_a_layer_that_remembers_takes_fewer_steps_to_the_same_end(tmp_path: pathlib.Path) -> None:
    x, index = features(), np.arange(64)
    losses = {}
    for samples in (None, 64):
        model, steps = remembering(samples)
        history = model.fit([x, index], np.abs(x), batch_size=24, epochs=4, verbose=0).history
        losses[samples] = history["loss"]
    np.testing.assert_allclose(losses[64], losses[None], rtol=1e-5)
    cold = steps.predict([x, np.full(64, -1)], verbose=0).mean()
    assert steps.predict([x, index], verbose=0).mean() <= 0.5 * cold
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        again.predict([x, index], verbose=0), model.predict([x, index], verbose=0), atol=1e-6
    )


def test_a_model_of_ones_own_remembers_where_its_call_takes_training() -> None:
    """Keras traces such a model to build it, with weights that have no update; a warning is an error."""

    class Model(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.qp = QPLayer(
                H=np.eye(N), A=Learned((2, N)), lb=-1.0, feasible=False, b=np.ones(2), warm_start=4
            )

        def call(self, inputs: dict[str, tf.Tensor], training: bool | None = None) -> tf.Tensor:
            return self.qp(inputs)

    model = Model()
    model.compile(keras.optimizers.SGD(1e-6), "mse")
    inputs = {"g": features(4), "index": np.array([0, 1, -1, 3])}
    model.fit(inputs, features(4), verbose=0)
    known = ~np.isnan(np.asarray(model.qp.memory[0])).any(axis=1)
    np.testing.assert_array_equal(known, [True, True, False, True])


def test_samples_without_an_index_are_not_remembered() -> None:
    layer = QPLayer(H=np.eye(N), lb=0.0, warm_start=3)
    layer({"g": features(2), "index": np.array([0, 1])})
    layer({"g": features(2), "index": np.array([-1, 2])}, training=True)
    known = ~np.isnan(np.asarray(layer.memory[0])).any(axis=1)
    np.testing.assert_array_equal(known, [False, False, True])
    with pytest.raises(nbqp.ShapeError, match="inputs: expected a dict with the names"):
        layer(features(2))
    for index in (np.zeros(2), np.zeros((2, 1), dtype=np.int32)):
        with pytest.raises(nbqp.ShapeError, match="index: expected integers of shape"):
            layer({"g": features(2), "index": index})
    with pytest.raises(tf.errors.InvalidArgumentError, match="index: expected integers below"):
        layer({"g": features(2), "index": np.array([0, 3])})


@pytest.mark.parametrize("policy", ["mixed_float16", "float64"])
def test_a_layer_that_remembers_has_any_dtype_policy(policy: str) -> None:
    layer = QPLayer(H=np.eye(N), lb=0.0, warm_start=3, dtype=policy, return_solution=True)
    inputs = {"g": features(2), "index": np.array([2, 0])}
    cold = layer(inputs, training=True).newton_steps.numpy()
    assert (layer(inputs).newton_steps.numpy() < cold).all()


@pytest.mark.parametrize("policy", ["float32", "float64"])
@pytest.mark.parametrize("graph", [False, True])
def test_x_alone_is_that_of_the_whole_solution(policy: str, graph: bool) -> None:
    """In values, dtype and derivatives of first and second order."""
    rng = np.random.default_rng(0)
    A, inputs = rng.standard_normal((2, N)), rng.standard_normal((3, N))
    data = {"A": A, "b": A @ np.ones(N), "lb": 0.0, "dtype": policy}
    alone = QPLayer(H=np.eye(N), **data)
    whole = QPLayer(H=np.eye(N), return_solution=True, **data)

    def derivatives(solve: Any, g: Any) -> tuple[Any, ...]:
        with tf.GradientTape() as outer:
            outer.watch(g)
            with tf.GradientTape() as inner:
                inner.watch(g)
                x = solve(g)
                loss = tf.reduce_sum(x**3)
            first = inner.gradient(loss, g)
            square = tf.reduce_sum(first**2)
        return x, first, outer.gradient(square, g)

    kinds = {
        name: functools.partial(derivatives, solve)
        for name, solve in {"alone": alone, "whole": lambda g: whole(g).x}.items()
    }
    run = {name: tf.function(kind) if graph else kind for name, kind in kinds.items()}
    for given in (inputs, inputs[:1]):
        g = tf.constant(given, policy)
        for mine, expected in zip(run["alone"](g), run["whole"](g), strict=True):
            assert mine.dtype == expected.dtype == policy
            np.testing.assert_array_equal(mine, expected)
