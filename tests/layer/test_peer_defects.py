"""What other differentiable QP layers got wrong and training shows; see tests/core for the rest."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nbqp
from tf_layer import Input, Learned, QPLayer, solve_qp

N = 4
CLOSEST = nbqp.Settings(eps_abs=1e-10, primal_infeasibility_solving=True)


def features(batch: int = 12) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, N)).astype(np.float32)


def gradients(data: dict[str, Any], weight: np.ndarray, **options: Any) -> dict[str, Any]:
    tensors = {name: tf.convert_to_tensor(value) for name, value in data.items()}
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        out = solve_qp(**tensors, **options)
        value = tf.reduce_sum(weight * out.x) + tf.reduce_sum(out.s_e) + tf.reduce_sum(out.s_i)
    return tape.gradient(value, tensors)


@pytest.mark.parametrize("H", [None, np.diag([1.0, 1.0, 0.0, 0.0])], ids=["LP", "semidefinite"])
def test_a_model_with_an_lp_or_a_semidefinite_h_fits(H: np.ndarray | None) -> None:
    """OptNet: neither; cvxpylayers: no `fit`, no `tf.function`."""
    keras.utils.set_random_seed(0)
    layer = QPLayer(H=H, A=Learned((2, N), "random_uniform"), lb=0.0, feasible=True)
    model = keras.Sequential([keras.layers.Dense(N), keras.layers.Activation("softplus"), layer])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    x = features(60)
    losses = model.fit(x, np.abs(x), epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("rows", "settings", "status"),
    [
        ({"A": np.ones((2, N)), "b": np.array([0.0, 1.0])}, nbqp.Settings(), "PRIMAL_INFEASIBLE"),
        ({"lb": 0.0, "ub": 1.0}, nbqp.Settings(eps_abs=1e-14, max_iter=1), "MAX_ITER_REACHED"),
    ],
)
def test_an_unsolved_sample_raises_unless_it_may_be_kept(
    rows: dict[str, Any], settings: nbqp.Settings, status: str
) -> None:
    """ProxSuite: a point that is no solution, and gradients, without an error."""
    x = features()
    with pytest.raises(nbqp.UnsolvedError, match=status):
        QPLayer(H=np.eye(N), settings=settings, **rows)(x)
    g = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(g)
        kept = QPLayer(H=np.eye(N), settings=settings, on_failure="keep", **rows)(g)
    assert np.isfinite(kept).all()
    assert (tape.gradient(kept, g).numpy() == 0.0).all()


@pytest.mark.parametrize("last", [1.0, 2.0], ids=["feasible", "infeasible"])
def test_shared_data_get_the_sum_over_the_batch(last: float) -> None:
    """ProxSuite: the mean where infeasible; osqp and cvxpylayers: the mean."""
    data = {"H": np.eye(N), "A": np.ones((2, N)), "b": np.array([1.0, last])}
    g = features(7).astype(np.float64)
    weight = np.random.default_rng(1).standard_normal((7, N))
    whole = gradients({**data, "g": g}, weight, settings=CLOSEST)
    for name in data:
        alone = [
            gradients({**data, "g": g[k : k + 1]}, weight[k : k + 1], settings=CLOSEST)[name]
            for k in range(7)
        ]
        np.testing.assert_allclose(whole[name], np.sum(alone, axis=0), atol=1e-8, err_msg=name)


def test_float32_costs_the_rounding_of_the_data_and_no_more() -> None:
    """ProxSuite: buffers in float32, and no gradient of lower sides where infeasible."""
    rng = np.random.default_rng(2)
    row = rng.standard_normal(N)
    data = {
        "H": np.eye(N),
        "g": rng.standard_normal((3, N)),
        "C": np.stack([row, -row]),
        "l": np.array([1.0, 0.5]),
    }
    weight = rng.standard_normal((3, N))
    exact = gradients(data, weight, settings=CLOSEST)
    single = {name: value.astype(np.float32) for name, value in data.items()}
    ours = gradients(single, weight.astype(np.float32), settings=CLOSEST)
    assert (np.abs(exact["l"]) > 0.1).all()
    for name, value in ours.items():
        assert value.dtype == tf.float32
        np.testing.assert_allclose(value, exact[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_batched_rows_without_equalities_train_where_infeasible() -> None:
    """ProxSuite: batched C crashes, and no equalities raise a TypeError."""
    layer = QPLayer(
        H=np.eye(N), C=Input(), u=Learned((2,), "zeros"), settings=CLOSEST, violation=0.1
    )
    g, C = keras.Input((N,)), keras.Input((2, N))
    model = keras.Model([g, C], layer({"g": g, "C": C}))
    model.compile(keras.optimizers.Adam(0.1), "mse")
    row = features().astype(np.float64)
    rows = np.stack([row, -row], axis=1)
    layer.learned["u"].assign([-1.0, 0.5])
    losses = model.fit([features(), rows], features(), epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_a_loss_on_the_shift_of_an_inactive_row_has_no_gradient() -> None:
    """ProxSuite: dL/ds is not masked."""
    row = np.array([1.0, 0.5, 0.0, 0.0])
    data = {
        "H": np.eye(N),
        "g": np.zeros((1, N)),
        "C": np.stack([row, -row, np.array([0.0, 0.0, 1.0, 0.0])]),
        "u": np.array([-1.0, -0.5, 9.0]),
    }
    grads = gradients(data, np.zeros((1, N)), settings=CLOSEST)
    assert (grads["C"].numpy()[2] == 0.0).all()
    assert grads["u"].numpy()[2] == 0.0
    assert (grads["u"].numpy()[:2] != 0.0).all()


def test_bounds_in_a_graph_have_gradients() -> None:
    """ProxSuite: segmentation fault."""
    data = {
        "H": np.eye(2),
        "g": np.array([[-2.0, 2.0]]),
        "lb": np.zeros(2),
        "ub": np.ones(2),
    }
    grads = tf.function(lambda: gradients(data, np.array([[3.0, 5.0]])))()
    np.testing.assert_allclose(grads["ub"], [3.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(grads["lb"], [0.0, 5.0], atol=1e-12)
