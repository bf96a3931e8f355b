"""Sparse matrices whose values vary or learn: against dense ones, differences, and through a save."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf

import nbqp
from tests.core.test_sparse import CLOSE, FORMS, data
from tf_layer import Input, Learned, QPLayer, solve_qp

NAMES = ("H", "A", "C", "g")


def gradients(
    values: dict[str, Any], given: dict[str, Any], constants: dict[str, Any]
) -> dict[str, Any]:
    """Of a loss on x and z; given: patterns of the matrices, none where they are dense."""
    with tf.GradientTape() as tape:
        tape.watch(values)
        named = {k: nbqp.Sparse(given[k], v) if k in given else v for k, v in values.items()}
        out = solve_qp(**constants, **named, settings=CLOSE)
        loss = tf.reduce_sum(out.x**2) + tf.reduce_sum(out.z)
    return tape.gradient(loss, values)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "batched"])
def test_gradients_are_those_of_dense_matrices(mode: str, form: Any, shared: bool) -> None:
    sparse, dense, given = data(form, shared)
    constants = {k: v for k, v in dense.items() if k not in NAMES}
    entries = {k: sparse[k].pattern.entries for k in given}
    values = {k: tf.constant(sparse[k].values if k in given else sparse[k]) for k in NAMES}

    def ours(values: dict[str, Any]) -> Any:
        return gradients(values, given, constants)

    found = (ours if mode == "eager" else tf.function(ours))(values)
    expected = gradients({k: tf.constant(dense[k]) for k in NAMES}, {}, constants)
    for name in NAMES:
        at = expected[name].numpy()
        at = at[(..., *entries[name])] if name in given else at
        np.testing.assert_allclose(found[name], at, atol=1e-8, err_msg=name)


def test_second_order_agrees_with_differences_of_the_first() -> None:
    sparse, dense, given = data(sp.csr_array, shared=False)
    constants = {k: v for k, v in dense.items() if k not in NAMES}
    values = {k: tf.constant(sparse[k].values if k in given else sparse[k]) for k in NAMES}
    rng = np.random.default_rng(3)
    direction = {k: rng.standard_normal(v.shape) for k, v in values.items()}
    # Of the symmetric part of H only.
    rows, columns = sparse["H"].pattern.entries
    matrices = np.zeros(dense["H"].shape)
    matrices[:, rows, columns] = direction["H"]
    direction["H"] = (matrices + matrices.transpose(0, 2, 1))[:, rows, columns]
    with tf.GradientTape() as tape:
        tape.watch(values)
        first = gradients(values, given, constants)
        along = tf.add_n([tf.reduce_sum(first[k] * direction[k]) for k in NAMES])
    ours = tape.gradient(along, values)
    h = 1e-5
    up, down = (
        gradients({k: v + s * h * direction[k] for k, v in values.items()}, given, constants)
        for s in (1.0, -1.0)
    )
    for name in NAMES:
        numeric = (up[name] - down[name]).numpy() / (2 * h)
        np.testing.assert_allclose(ours[name], numeric, atol=1e-5 * np.abs(numeric).max())


def chain(n: int) -> sp.csc_array:
    """Differences of neighbours, (n - 1, n)."""
    return sp.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(n - 1, n), format="csc")


def test_a_learned_sparse_matrix_starts_at_its_values_and_learns() -> None:
    target = np.random.default_rng(4).standard_normal((20, 5)).astype(np.float32)
    layer = QPLayer(H=Learned(sp.eye_array(5)), C=Learned(chain(5)), l=-1.0, u=1.0)
    model = keras.Sequential([layer])
    model(target)
    np.testing.assert_array_equal(layer.learned["C"], chain(5).data)
    assert layer.learned["H"].shape == (5,)
    model.compile(keras.optimizers.Adam(0.05), "mse")
    history = model.fit(target, target, epochs=15, batch_size=20, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]


def test_a_learned_sparse_h_is_positive_definite_by_its_factor() -> None:
    """H = L'L + eps I, also where a row of L couples variables and where L has fewer entries than H."""
    L = sp.csr_array(np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]))
    layer = QPLayer(H=Learned(L, eps=0.5), dtype="float64")
    g = np.random.default_rng(5).standard_normal((4, 3))
    H = (L.T @ L).toarray() + 0.5 * np.eye(3)
    np.testing.assert_allclose(layer(g), -np.linalg.solve(H, g.T).T, atol=1e-7)
    dense = QPLayer(
        H=Learned((2, 3), keras.initializers.Constant(L.toarray()), eps=0.5), dtype="float64"
    )
    found = []
    for other in (layer, dense):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(other(g) ** 3)
        found.append(tape.gradient(loss, other.trainable_weights)[0].numpy())
    rows, columns = L.tocoo().row, L.tocoo().col
    np.testing.assert_allclose(found[0], found[1][rows, columns], rtol=1e-6)


def test_values_on_a_pattern_are_an_input() -> None:
    layer = QPLayer(H=np.eye(4), C=Input(chain(4)), l=-1.0, u=1.0, dtype="float64")
    rng = np.random.default_rng(6)
    g, values = 3.0 * rng.standard_normal((7, 4)), rng.standard_normal((7, 6))
    x = layer({"g": g, "C": values})
    for k in range(7):
        C = sp.csc_array((values[k], chain(4).indices, chain(4).indptr), shape=(3, 4))
        expected = nbqp.solve_qp(np.eye(4), g[k], C=C, l=np.full(3, -1.0), u=np.ones(3))
        np.testing.assert_allclose(x[k], expected.x, atol=1e-6)
    assert layer.compute_output_shape({"g": (7, 4), "C": (7, 6)}) == (7, 4)


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_model_keeps_pattern_order_and_values(form: Any, tmp_path: pathlib.Path) -> None:
    L, C = form(sp.eye_array(4)), form(chain(4))
    inputs = {name: keras.Input((size,), name=name) for name, size in (("g", 4), ("A", 2))}
    layer = QPLayer(
        H=Learned(L), A=Input(form(np.array([[1.0, 0.0, 1.0, 0.0]]))), b=[1.0], C=Learned(C), u=0.5
    )
    model = keras.Model(inputs, layer(inputs))
    rng = np.random.default_rng(7)
    layer.learned["C"].assign(rng.standard_normal(6))
    batch = {"g": rng.standard_normal((3, 4)), "A": rng.random((3, 2))}
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(batch), model(batch))


def test_learned_sparse_rows_are_feasible_by_construction() -> None:
    layer = QPLayer(A=Learned(chain(6)), C=Learned(chain(6)), lb=0.0, ub=None, feasible=True)
    out = QPLayer.from_config({**layer.get_config(), "return_solution": True})(np.ones((2, 6)))
    assert (out.status.numpy() == 0).all()
    # z0 = 1 at first, thus b = A 1 = 0 and u = C 1 + 1 = 1.
    np.testing.assert_allclose(chain(6) @ out.x.numpy().T, 0.0, atol=1e-5)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_rows_that_are_an_input_are_feasible_by_construction(mode: str) -> None:
    """As many samples as rows and as entries: no sum may mix them."""
    pattern = sp.csc_array(np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    values = np.arange(1.0, 10.0).reshape(3, 3)
    g = np.random.default_rng(9).standard_normal((3, 3))
    layers = [
        QPLayer(H=np.eye(3), A=declared, feasible=True, dtype="float64")
        for declared in (Input(pattern), Input())
    ]
    rows, columns = pattern.tocoo().row, pattern.tocoo().col
    dense = np.zeros((3, 3, 3))
    dense[:, rows, columns] = values
    found = []
    for layer, A in zip(layers, (values, dense), strict=True):
        run = layer if mode == "eager" else tf.function(layer)
        A = tf.constant(A)
        with tf.GradientTape() as tape:
            tape.watch(A)
            x = run({"g": tf.constant(g), "A": A})
            loss = tf.reduce_sum(x**2)
        found.append((x.numpy(), tape.gradient(loss, A).numpy()))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1][:, rows, columns], atol=1e-5)


def test_a_constant_may_store_an_entry_in_parts() -> None:
    places = ([1.0, 2.0, 1.0, 1.0], [0, 0, 1, 1], [0, 2, 4])
    twice = sp.csr_array(places[:2] + places[2:], shape=(2, 2))
    whole = sp.csr_array(twice.toarray())
    g = -np.ones((1, 2))
    found, expected = (
        QPLayer(H=np.eye(2), A=A, feasible=True, dtype="float64")(g) for A in (twice, whole)
    )
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert len(twice.data) == 4


def test_a_pattern_of_diagonals_with_a_zero_is_that_of_its_columns() -> None:
    diagonal = sp.dia_array((np.array([[1.0, 0.0, 2.0]]), [0]), shape=(3, 3))
    assert Input(diagonal).pattern.size == len(diagonal.tocsc().data)
    assert Learned(diagonal).weight_shape == (len(diagonal.tocsc().data),)


@pytest.mark.large
def test_ten_thousand_variables_learn() -> None:
    n = 10_000
    layer = QPLayer(H=sp.eye_array(n), C=Learned(chain(n)), l=-0.1, u=0.1, dtype="float64")
    g = tf.constant(np.random.default_rng(8).standard_normal((1, n)))

    @tf.function
    def step(g: Any) -> Any:
        with tf.GradientTape() as tape:
            x = layer(g)
            loss = tf.reduce_sum(x**2)
        return x, tape.gradient(loss, layer.trainable_weights)

    x, (gradient,) = step(g)
    sol = nbqp.solve_qp(
        sp.eye_array(n), g[0].numpy(), C=chain(n), l=np.full(n - 1, -0.1), u=np.full(n - 1, 0.1)
    )
    np.testing.assert_allclose(x[0], sol.x, atol=1e-6)
    expected = nbqp.vjp(sol, dL_dx=2.0 * sol.x).dL_dC.data
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (
            lambda: Input(np.eye(2)),
            r"Input.pattern: expected None or a scipy.sparse matrix, got nda",
        ),
        (lambda: QPLayer(H=np.eye(2), b=Input(sp.eye_array(2)))(np.ones((1, 2))), "A: expected a"),
        (
            lambda: QPLayer(H=np.eye(2), lb=Learned(sp.eye_array(2)))(np.ones((1, 2))),
            "lb: expected a dense vector, got a sparse pattern",
        ),
        (
            lambda: solve_qp(np.eye(2), nbqp.Sparse(sp.eye_array(2), np.ones(2))),
            "g: expected a dense vector, got Sparse",
        ),
        (
            lambda: QPLayer(H=np.eye(2), C=Input(sp.eye_array(2)), u=1.0)(
                {"g": np.ones((1, 2)), "C": np.ones((1, 3))}
            ),
            r"values: expected shape \(2,\) or \(batch, 2\)",
        ),
    ],
)
def test_bad_input_is_named(declare: Any, message: str) -> None:
    with pytest.raises(nbqp.QPError, match=message):
        declare()
