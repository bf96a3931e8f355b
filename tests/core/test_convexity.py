"""Which H counts as positive semidefinite: whatever is so to within its rounding, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import nbqp
from nbqp.analysis import analyse_qp
from nbqp.convexity import find_nonconvex
from nbqp.problem import QP
from nbqp.watch import Watch

TOLERANCE, LEAST_DIAGONAL = 1e-10, 1e-3
"""As `nbqp.solve_qp` documents them."""

Array = np.ndarray


def lowest_eigenvalue(H: Array) -> float:
    """Of D^-1/2 H D^-1/2, D_ii = max(|H_ii|, 1e-3 max|H|)."""
    size = np.abs(H).max()
    root = np.sqrt(np.maximum(np.abs(np.diag(H)) / size, LEAST_DIAGONAL))
    return float(np.linalg.eigvalsh(H / size / np.outer(root, root))[0])


def matrix(rng: np.random.Generator, n: int, lowest: float, decades: float) -> Array:
    """Of eigenvalues 0, 0.1 to 1 and `lowest`, its variables in units that differ by so many decades."""
    Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    eigenvalues = np.where(rng.random(n) < 0.3, 0.0, rng.uniform(0.1, 1.0, n))
    eigenvalues[0], eigenvalues[-1] = 1.0, lowest
    units = 10.0 ** rng.uniform(-decades / 2, decades / 2, n)
    H = units[:, None] * ((Q * eigenvalues) @ Q.T) * units
    return (H + H.T) / 2


def nonconvex(H: Array) -> set[bool]:
    """What is found where H is dense, sparse, and one of a batch."""
    g, many = np.zeros(len(H)), np.zeros((3, len(H)))
    problems = (
        QP(H, g),
        QP(sp.csc_array(H), g),
        QP(np.stack([np.eye(len(H)), H, np.eye(len(H))]), many, batch=True),
    )
    found = [find_nonconvex(qp, analyse_qp(qp, Watch()), Watch()) for qp in problems]
    assert list(found[2][[0, 2]]) == [False, False]
    return {bool(found[0][0]), bool(found[1][0]), bool(found[2][1])}


@pytest.mark.parametrize("decades", [0, 4, 8, 16])
@pytest.mark.parametrize("lowest", [-1e-3, -1e-6, -1e-9, -1e-12, -1e-15, 0.0])
def test_a_negative_eigenvalue_is_told_from_rounding(lowest: float, decades: float) -> None:
    rng = np.random.default_rng(0)
    told = 0
    for unit in (1e-8, 1.0, 1e8):
        for n in (2, 7, 30):
            H = unit * matrix(rng, n, lowest, decades)
            eigenvalue = lowest_eigenvalue(H)
            if eigenvalue < -2.0 * TOLERANCE:
                assert nonconvex(H) == {True}
                told += 1
            elif eigenvalue > -0.5 * TOLERANCE:
                assert nonconvex(H) == {False}
    assert told > 0 or lowest > -1e-8 or decades > 8


def test_a_block_in_small_units_does_not_hide_behind_large_ones() -> None:
    H = np.eye(5)
    H[3:, 3:] = 1e-11 * np.array([[1.0, 2.0], [2.0, 1.0]])
    assert nonconvex(H) == {True}
    with pytest.raises(nbqp.NonconvexError):
        nbqp.solve_qp(np.diag([1.0, -1e-11]), np.zeros(2), lb=-1.0, ub=1.0)


@pytest.mark.parametrize("decades", [0, 8])
def test_what_rounding_makes_indefinite_is_accepted(decades: float) -> None:
    rng = np.random.default_rng(0)
    negative = 0
    for n in (3, 20, 80):
        X = rng.standard_normal((n // 2 + 1, n)) * 10.0 ** rng.uniform(-decades / 2, decades / 2, n)
        mean = X.mean(axis=0)
        for H in (X.T @ X, X.T @ X / len(X) - np.outer(mean, mean), matrix(rng, n, 0.0, decades)):
            negative += np.linalg.eigvalsh(H)[0] < 0.0
            assert nonconvex((H + H.T) / 2) == {False}
    assert negative > 0


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1e300])
def test_the_size_of_h_does_not_matter(size: float) -> None:
    assert nonconvex(size * np.eye(3)) == {False}
    assert nonconvex(size * np.array([[0.0, 1.0], [1.0, 0.0]])) == {True}


def test_a_zero_on_the_diagonal_needs_zeros_beside_it() -> None:
    assert nonconvex(np.diag([1.0, 0.0])) == {False}
    assert nonconvex(np.array([[1.0, 1e-5], [1e-5, 0.0]])) == {True}
    assert nonconvex(np.zeros((2, 2))) == {False}
