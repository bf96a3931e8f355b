"""`tf_layer.description`: problems of the same matrices share them, others never do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf

import nbqp
from tf_layer import bridge, solve_qp
from tf_layer.description import Description

SETTINGS = nbqp.Settings()
A = sp.csc_array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
H = np.diag([1.0, 2.0, 3.0])


def described(
    H: np.ndarray = H, A: Any = A, g: Any = (1.0, -1.0, 0.5), b: Any = (1.0, 2.0)
) -> nbqp.problem.QP:
    """The problem that the layer makes of arrays, A sparse."""
    about = Description(len(H[-1]), ("H", "g", "b"), (("A", A.shape),), SETTINGS, "raise")
    vectors = np.array(g), np.array(b)
    return about.problem([H, *vectors, A.data, A.indices, A.indptr])


def test_the_same_matrices_are_found_again() -> None:
    first, second = described(), described(H.copy(), A.copy(), g=((0.0, 0.0, 1.0), (1.0, 1.0, 1.0)))
    assert second.found is first.found
    assert (first.batch, second.batch) == (1, 2)


@pytest.mark.parametrize(
    "other",
    [
        {"H": 2.0 * H},
        {"A": 2.0 * A},
        {"A": sp.csc_array([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])},
        {"A": sp.csc_array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]]), "b": np.zeros(3)},
        {"H": np.stack([H, H])},
    ],
)
def test_other_matrices_are_not(other: dict[str, Any]) -> None:
    mine, its = described(), described(**other)
    assert its.found is not mine.found
    expected = nbqp.problem.QP(
        **{"H": H, "A": A, "g": [1.0, -1.0, 0.5], "b": [1.0, 2.0], **other}, batch=True
    )
    for name in ("H", "A"):
        found, right = getattr(its, name), getattr(expected, name)
        for part in ("shape", "p", "i", "values"):
            np.testing.assert_array_equal(getattr(found, part), getattr(right, part))


def test_names_are_part_of_what_is_the_same() -> None:
    """One matrix as the rows of A, or of C."""
    M, x = np.ones((1, 2)), np.zeros((1, 2))
    rows = {
        name: Description(2, (name, "g", side), (), SETTINGS, "raise").problem([M, x, np.ones(1)])
        for name, side in (("A", "b"), ("C", "u"))
    }
    assert (rows["A"].n_eq, rows["A"].n_in) == (1, 0)
    assert (rows["C"].n_eq, rows["C"].n_in) == (0, 1)


def test_a_batch_of_bad_vectors_is_judged_beside_good_matrices() -> None:
    good = described(g=((1.0, 1.0, 1.0), (2.0, 2.0, 2.0)))
    bad = described(g=((1.0, 1.0, 1.0), (2.0, np.nan, 2.0)))
    assert bad.found is good.found
    np.testing.assert_array_equal(good.invalid, [False, False])
    np.testing.assert_array_equal(bad.invalid, [False, True])


def test_gradients_share_the_matrices_of_their_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    """One scaling for a step, although the learned A is another one in each."""
    scale, calls = nbqp.execution.shared_scaling, []

    def counted(*args: Any) -> Any:
        calls.append(None)
        return scale(*args)

    monkeypatch.setattr("nbqp.execution.shared_scaling", counted)
    rng = np.random.default_rng(0)
    rows = tf.Variable(rng.standard_normal((2, 4)))
    g = tf.constant(rng.standard_normal((3, 4)))
    for step in range(1, 4):
        with tf.GradientTape() as tape:
            b = tf.linalg.matvec(rows, tf.ones(4, tf.float64))
            loss = tf.reduce_sum(solve_qp(tf.eye(4, dtype=tf.float64), g, rows, b).x ** 2)
        rows.assign_sub(0.1 * tape.gradient(loss, rows))
        assert len(calls) == step


def gradients_of_all(forget: bool) -> list[Any]:
    """Those of H, A and b of a batch that shares no matrix, twice; forget: the solution's problem in between."""
    rng = np.random.default_rng(3)
    L, A = rng.standard_normal((5, 6, 6)), rng.standard_normal((5, 2, 6))
    data = [tf.constant(part) for part in (L @ L.swapaxes(1, 2) + np.eye(6), A, A @ np.ones(6))]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(data)
        H, A, b = data
        loss = tf.reduce_sum(solve_qp(H, -tf.ones((5, 6), tf.float64), A, b, lb=0.0).x ** 2)
    if forget:
        bridge.solved.clear()
    return [part for _ in range(2) for part in tape.gradient(loss, data)]


def test_gradients_take_the_problem_that_was_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, bit for bit, as one made anew of the data, which is made where it is not kept."""
    expected, made, make = gradients_of_all(forget=True), [], Description.problem

    def counted(about: Description, arrays: Any, batch: int | None = None) -> Any:
        made.append(batch)
        return make(about, arrays, batch)

    monkeypatch.setattr(Description, "problem", counted)
    for found, wanted in zip(gradients_of_all(forget=False), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert made == [None]
    gradients_of_all(forget=True)
    assert made == [None, None, 5, 5]
