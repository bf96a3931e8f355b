"""Every mode of differentiation and of use that TensorFlow users try: right, or an error."""

from __future__ import annotations

import concurrent.futures
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nbqp
from tests import processes
from tf_layer import Learned, QPLayer, solve_qp

N, ROWS, BATCH = 4, 3, 3
RANDOM = np.random.default_rng(0)
H = np.eye(N) + 0.1
C = RANDOM.standard_normal((ROWS, N))
G = 3.0 * RANDOM.standard_normal((BATCH, N))
DIRECTION = RANDOM.standard_normal((BATCH, N))
EPS = nbqp.Settings(eps_abs=1e-10)
MODES = ["eager", "graph"]


def solution(g: Any) -> Any:
    """The x of a QP with rows that hold and others that do not."""
    return solve_qp(H, g, C=C, u=0.1, settings=EPS).x


def in_mode(mode: str, function: Any) -> Any:
    return function if mode == "eager" else tf.function(function)


def expected_direction() -> np.ndarray:
    sol = nbqp.solve_batch(H, G, C=C, u=0.1, settings=EPS)
    assert (sol.z > 1e-3).any()
    assert (sol.z < 1e-6).any()
    return nbqp.jvp(sol, dg=DIRECTION).dx


def expected_jacobian() -> np.ndarray:
    """(BATCH, N, N)."""
    sol = nbqp.solve_batch(H, G, C=C, u=0.1, settings=EPS)
    columns = [nbqp.jvp(sol, dg=np.tile(e, (BATCH, 1))).dx for e in np.eye(N)]
    return np.stack(columns, axis=2)


def forward_derivative(g: Any, direction: Any) -> Any:
    with tf.autodiff.ForwardAccumulator(g, direction) as accumulator:
        x = solution(g)
    return accumulator.jvp(x)


def test_forward_mode_is_right_when_eager() -> None:
    found = forward_derivative(tf.constant(G), tf.constant(DIRECTION))
    np.testing.assert_allclose(found, expected_direction(), atol=1e-9)


def test_forward_mode_in_a_graph_is_refused() -> None:
    """TensorFlow would take the derivative of an op that it does not know for zero."""
    with pytest.raises(NotImplementedError, match="expected reverse mode in a graph"):
        tf.function(forward_derivative)(tf.constant(G), tf.constant(DIRECTION))


def test_forward_mode_of_a_graph_is_refused() -> None:
    g = tf.constant(G)
    with (
        tf.autodiff.ForwardAccumulator(g, tf.constant(DIRECTION)),
        # TensorFlow means to raise an InternalError, and does not get that far.
        pytest.raises((TypeError, tf.errors.InternalError), match=r"InternalError|forward"),
    ):
        tf.function(solution)(g)


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_by_output_gradients_is_the_forward_mode(mode: str) -> None:
    def twice(g: Any, direction: Any) -> Any:
        with tf.GradientTape() as outer:
            weights = tf.ones_like(g)
            outer.watch(weights)
            with tf.GradientTape() as inner:
                inner.watch(g)
                x = solution(g)
            product = inner.gradient(x, g, output_gradients=weights)
        return outer.gradient(product, weights, output_gradients=direction)

    found = in_mode(mode, twice)(tf.constant(G), tf.constant(DIRECTION))
    np.testing.assert_allclose(found, expected_direction(), atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parallel", [True, False], ids=["pfor", "loop"])
def test_jacobians(mode: str, parallel: bool) -> None:
    def jacobians(g: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(g)
            x = solution(g)
        full = tape.jacobian(x, g, experimental_use_pfor=parallel)
        return full, tape.batch_jacobian(x, g, experimental_use_pfor=parallel)

    full, by_sample = in_mode(mode, jacobians)(tf.constant(G))
    np.testing.assert_allclose(by_sample, expected_jacobian(), atol=1e-9)
    # No sample depends on another.
    everywhere = np.einsum("kl,kij->kilj", np.eye(BATCH), expected_jacobian())
    np.testing.assert_allclose(full, everywhere, atol=1e-9)


def sensitivity(values: Any, parallel: bool) -> Any:
    """The derivative of a sum of squares of a Jacobian."""
    with tf.GradientTape() as outer:
        outer.watch(values)
        with tf.GradientTape(persistent=True) as inner:
            inner.watch(values)
            x = solve_qp(values, G[0], C=C, u=0.1, settings=EPS).x
        jacobian = inner.jacobian(x, values, experimental_use_pfor=parallel)
        size = tf.reduce_sum(jacobian**2)
    return size, outer.gradient(size, values)


@pytest.mark.parametrize("mode", MODES)
def test_a_jacobian_by_a_loop_is_differentiable_and_one_by_pfor_refuses(mode: str) -> None:
    """TensorFlow drops the gradients of calls in a loop that it vectorises: they would be 0."""
    step, direction = 1e-5, np.diag(np.arange(1.0, N + 1.0))
    (above, _), (below, _) = (
        sensitivity(tf.constant(H + sign * step * direction), False) for sign in (1.0, -1.0)
    )
    _, found = in_mode(mode, lambda values: sensitivity(values, False))(tf.constant(H))
    difference = (above - below) / (2.0 * step)
    assert np.sum(found * direction) == pytest.approx(float(difference), rel=1e-5)
    with pytest.raises(Exception, match="expected no derivative of a vectorised loop"):
        in_mode(mode, lambda values: sensitivity(values, True))(tf.constant(H))


@pytest.mark.parametrize("mode", MODES)
def test_a_vectorised_map_solves_and_refuses_to_be_differentiated(mode: str) -> None:
    def gradient(g: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(g)
            x = tf.vectorized_map(solution, g)
        return tape.gradient(x, g)

    mapped = in_mode(mode, lambda g: tf.vectorized_map(solution, g))(tf.constant(G))
    np.testing.assert_array_equal(mapped, solution(G))
    with pytest.raises(Exception, match="expected no derivative of a vectorised loop"):
        in_mode(mode, gradient)(tf.constant(G))


@pytest.mark.parametrize("mode", MODES)
def test_a_persistent_tape_gives_each_gradient_again(mode: str) -> None:
    def three(g: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(g)
            x = solution(g)
            losses = [tf.reduce_sum(x**2), tf.reduce_sum(x)]
        return [tape.gradient(loss, g) for loss in (*losses, losses[0])]

    first, second, again = in_mode(mode, three)(tf.constant(G))
    np.testing.assert_array_equal(first, again)
    jacobian = expected_jacobian()
    np.testing.assert_allclose(second, jacobian.sum(axis=1), atol=1e-9)
    assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize("mode", MODES)
def test_a_hessian_vector_product_agrees_with_differences(mode: str) -> None:
    def gradient(g: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(g)
            loss = tf.reduce_sum(tf.sin(solution(g)) * g**2)
        return tape.gradient(loss, g)

    def product(g: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(g)
            along = tf.reduce_sum(gradient(g) * DIRECTION)
        return tape.gradient(along, g)

    found = in_mode(mode, product)(tf.constant(G))
    h = 1e-5
    up, down = (gradient(tf.constant(G + s * h * DIRECTION)) for s in (1.0, -1.0))
    np.testing.assert_allclose(found, (up - down) / (2 * h), atol=1e-5)


def on_a_line(t: Any) -> Any:
    """x of a QP whose H, A and g are affine in t."""
    A, dA = np.ones((1, N)), DIRECTION[:1]
    return solve_qp(
        H + t * np.ones((N, N)), G[0] + t * DIRECTION[1], A + t * dA, [1.0], settings=EPS
    ).x


def expected_on_a_line(t: float) -> list[np.ndarray]:
    """x and its derivatives by t: with K(t) z(t) = r(t), the k-th one of z is K^-1 (r^(k) - k K' z^(k-1))."""
    dA = DIRECTION[:1]
    A = np.ones((1, N)) + t * dA
    K = np.block([[H + t, A.T], [A, np.zeros((1, 1))]])
    dK = np.block([[np.ones((N, N)), dA.T], [dA, np.zeros((1, 1))]])
    r = [np.append(-G[0] - t * DIRECTION[1], 1.0), np.append(-DIRECTION[1], 0.0), 0.0, 0.0]
    z = [np.linalg.solve(K, r[0])]
    for k in (1, 2, 3):
        z.append(np.linalg.solve(K, r[k] - k * dK @ z[-1]))
    return [part[:N] for part in z]


@pytest.mark.parametrize("mode", MODES)
def test_third_order_agrees_with_derivatives_of_the_kkt_system(mode: str) -> None:
    def third(t: Any) -> Any:
        y = None
        with tf.GradientTape() as outer:
            outer.watch(t)
            with tf.GradientTape() as middle:
                middle.watch(t)
                with tf.GradientTape() as inner:
                    inner.watch(t)
                    y = on_a_line(t)[0]
                first = inner.gradient(y, t)
            second = middle.gradient(first, t)
        return [y, first, second, outer.gradient(second, t)]

    found = in_mode(mode, third)(tf.constant(0.1, tf.float64))
    expected = [part[0] for part in expected_on_a_line(0.1)]
    assert np.abs(expected).min() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_forward_over_reverse_mode_agrees_with_derivatives_of_the_kkt_system() -> None:
    t = tf.constant(0.1, tf.float64)
    with tf.autodiff.ForwardAccumulator(t, tf.ones_like(t)) as accumulator:
        with tf.GradientTape() as tape:
            tape.watch(t)
            y = on_a_line(t)[0]
        first = tape.gradient(y, t)
    expected = expected_on_a_line(0.1)[2][0]
    np.testing.assert_allclose(accumulator.jvp(first), expected, rtol=1e-6)


def unrolled(g: Any) -> Any:
    for _ in range(3):
        g = solution(g) - 2.0 * g
    return g


def while_loop(g: Any) -> Any:
    return tf.while_loop(
        lambda k, _: k < 3, lambda k, g: (k + 1, solution(g) - 2.0 * g), (tf.constant(0), g)
    )[1]


def scanned(g: Any) -> Any:
    return tf.scan(lambda g, _: solution(g) - 2.0 * g, tf.zeros(3), initializer=g)[-1]


def ranged(g: Any) -> Any:
    for _ in tf.range(3):
        g = solution(g) - 2.0 * g
    return g


@pytest.mark.parametrize("loop", [while_loop, scanned, ranged])
def test_loops_of_a_graph_have_the_gradient_of_the_unrolled_one(loop: Any) -> None:
    def gradient(function: Any, g: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(g)
            end = function(g)
            loss = tf.reduce_sum(end**2)
        return end, tape.gradient(loss, g)

    expected = gradient(unrolled, tf.constant(G))
    found = tf.function(lambda g: gradient(loop, g))(tf.constant(G))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_a_batch_of_one_keeps_its_shape_in_a_loop() -> None:
    assert tf.function(ranged)(tf.constant(G[:1])).shape == (1, N)


def test_stacked_layers_and_one_that_is_called_twice_agree_with_differences() -> None:
    first = QPLayer(H=H, C=Learned((ROWS, N)), u=0.5, lb=-2.0, settings=EPS, dtype="float64")
    second = QPLayer(H=Learned((N, N), "orthogonal"), ub=1.0, settings=EPS, dtype="float64")

    def loss() -> Any:
        x = first(tf.constant(G))
        return tf.reduce_sum(first(second(x) - x) ** 3)

    loss()
    weights = [*first.trainable_weights, *second.trainable_weights]
    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, weights)
    h = 1e-6
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = np.random.default_rng(1).standard_normal(weight.shape)
        start = weight.numpy()
        ends = []
        for sign in (1.0, -1.0):
            weight.assign(start + sign * h * direction)
            ends.append(float(loss()))
        weight.assign(start)
        exact = float(np.sum(gradient * direction))
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(exact, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_calls_from_many_threads_give_what_one_gives(mode: str) -> None:
    def gradient(g: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(g)
            loss = tf.reduce_sum(solution(g) ** 2)
        return tape.gradient(loss, g)

    function = in_mode(mode, gradient)
    batches = [tf.constant(G + k) for k in range(24)]
    expected = [function(g).numpy() for g in batches]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for found, right in zip(pool.map(function, batches), expected, strict=True):
                np.testing.assert_array_equal(found, right)


def test_a_data_pipeline_solves_in_parallel() -> None:
    many = np.random.default_rng(2).standard_normal((60, N))
    data = tf.data.Dataset.from_tensor_slices(many).batch(5)
    found = np.concatenate([*data.map(solution, num_parallel_calls=4)])
    np.testing.assert_array_equal(found, solution(tf.constant(many)))


def test_xla_is_refused_and_keras_does_not_ask_for_it() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="PyFunc"):
        tf.function(solution, jit_compile=True)(tf.constant(G))
    model = keras.Sequential([QPLayer(H=Learned((N, N)))])
    model.compile("sgd", "mse")
    model.fit(G, G, verbose=0)
    assert not model.jit_compile


RELOAD = """
    import sys
    import numpy as np
    import tensorflow as tf
    import tf_layer
    module = tf.saved_model.load(sys.argv[1])
    g = tf.constant(np.load(sys.argv[2]))
    with tf.GradientTape() as tape:
        tape.watch(g)
        loss = tf.reduce_sum(module.solve(g) ** 2)
    np.save(sys.argv[3], tape.gradient(loss, g))
"""


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    module = tf.Module()
    module.solve = tf.function(solution, input_signature=[tf.TensorSpec((None, N), tf.float64)])
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
    tf.saved_model.save(module, str(tmp_path / "module"), options=options)
    np.save(tmp_path / "g.npy", G)
    return tmp_path


def test_a_saved_function_has_its_gradient_in_a_fresh_process(saved: pathlib.Path) -> None:
    places = [saved / name for name in ("module", "g.npy", "gradient.npy")]
    processes.run(RELOAD, *places)
    g = tf.constant(G)
    with tf.GradientTape() as tape:
        tape.watch(g)
        loss = tf.reduce_sum(solution(g) ** 2)
    np.testing.assert_allclose(np.load(places[2]), tape.gradient(loss, g), atol=1e-12)


def test_a_saved_function_without_the_package_says_what_is_missing(saved: pathlib.Path) -> None:
    script = RELOAD.replace("    import tf_layer\n", "")
    ran = processes.start(script, *(saved / name for name in ("module", "g.npy", "gradient.npy")))
    _, errors = ran.communicate(timeout=300)
    assert ran.returncode != 0
    assert "Could not find callback with key=nbqp_solve" in errors
