"""Ordering, symbolic and numeric factorisation against dense oracles."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from nbqp.kernels.jit import entry
from nbqp.kernels.kkt import kkt_pattern, locate_entries
from nbqp.kernels.ldl import factorise, solve_permuted
from nbqp.kernels.ordering import approximate_minimum_degree
from nbqp.kernels.structure import FactorReference
from nbqp.kernels.symbolic import PANEL, analyse, locate
from nbqp.problem import QP


def upper(K: sp.csc_array) -> tuple[np.ndarray, np.ndarray]:
    triangle = sp.csc_array(sp.triu(K, format="csc"))
    triangle.sort_indices()
    return triangle.indptr.astype(np.int64), triangle.indices.astype(np.int64)


def fill_in(K: sp.csc_array, perm: np.ndarray) -> int:
    """Entries of L by boolean elimination."""
    pattern = np.asarray(K.toarray() != 0)[np.ix_(perm, perm)]
    N = len(perm)
    for k in range(N):
        below = k + 1 + np.flatnonzero(pattern[k + 1 :, k])
        pattern[np.ix_(below, below)] = True
    return int(np.tril(pattern).sum())


@entry
def factor_and_solve(values, Kp, Ki, Kx, expected, rhs):
    """The solution, the factor's values and pivots in pivot order, and how many were replaced."""
    factor = FactorReference(*values)
    N = len(rhs)
    L = np.zeros(factor.val_ptr[len(factor.val_ptr) - 1])
    for j in range(N):
        for p in range(Kp[j], Kp[j + 1]):
            L[locate(factor, Ki[p], j)] = Kx[p]
    D = np.zeros(N)
    signs = np.empty(N)
    x = np.empty(N)
    for k in range(N):
        signs[k] = expected[factor.perm[k]]
        x[k] = rhs[factor.perm[k]]
    replaced = factorise(factor, signs, L, D, np.zeros(N, dtype=np.int64), np.zeros(N * PANEL))
    solve_permuted(factor, L, D, x, np.zeros(N))
    out = np.empty(N)
    for k in range(N):
        out[factor.perm[k]] = x[k]
    return out, L, D, replaced


def factorised(K: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order of elimination, the dense unit lower factor and the pivots."""
    triangle = sp.csc_array(np.triu(K))
    triangle.sort_indices()
    N = len(K)
    factor = analyse(N, *upper(triangle))
    data = (*upper(triangle), triangle.data, signs.astype(float), np.zeros(N))
    _, values, pivots, replaced = factor_and_solve(factor, *data)
    assert replaced == 0
    L = np.eye(N)
    for J in range(len(factor.first) - 1):
        rows = factor.rows[factor.row_ptr[J] : factor.row_ptr[J + 1]]
        panel = values[factor.val_ptr[J] : factor.val_ptr[J + 1]].reshape(-1, len(rows))
        for k, column in enumerate(panel):
            L[rows[k + 1 :], factor.first[J] + k] = column[k + 1 :]
    return factor.perm, L, pivots


@pytest.mark.parametrize("seed", range(12))
def test_the_factorisation_solves_quasi_definite_systems(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 120)), int(rng.integers(0, 60))
    density = float(rng.choice([0.02, 0.1, 0.5, 1.0]))
    M = sp.random_array((n, n), density=density, rng=rng)
    A = sp.random_array((m, n), density=density, rng=rng)
    H = M @ M.T + sp.eye_array(n)
    K = sp.csc_array(sp.block_array([[H, A.T], [A, -sp.eye_array(m)]]))
    triangle = sp.csc_array(sp.triu(K, format="csc"))
    triangle.sort_indices()
    Kp, Ki = upper(K)
    factor = analyse(n + m, Kp, Ki)
    rhs = rng.standard_normal(n + m)
    expected = np.r_[np.ones(n), -np.ones(m)]
    x, _, _, replaced = factor_and_solve(factor, Kp, Ki, triangle.data, expected, rhs)
    assert replaced == 0
    np.testing.assert_allclose(K @ x, rhs, atol=1e-8)


@entry
def order(N, Kp, Ki, perm):
    approximate_minimum_degree(N, Kp, Ki, perm)


@pytest.mark.parametrize("seed", range(10))
def test_the_ordering_is_a_permutation_with_little_fill(seed: int) -> None:
    rng = np.random.default_rng(seed)
    N = int(rng.integers(2, 60))
    pattern = sp.random_array((N, N), density=0.08, rng=rng) != 0
    K = sp.csc_array((pattern + pattern.T).astype(float) + sp.eye_array(N))
    perm = np.empty(N, dtype=np.int64)
    order(N, *upper(K), perm)
    assert sorted(perm) == list(range(N))
    assert fill_in(K, perm) <= fill_in(K, np.arange(N))


def test_an_arrow_fills_nothing_and_a_dense_matrix_keeps_its_triangle() -> None:
    arrow = np.eye(50)
    arrow[0] = arrow[:, 0] = 1.0
    for matrix, entries in ((arrow, 99), (np.ones((20, 20)), 210), (np.eye(5), 5)):
        perm = np.empty(len(matrix), dtype=np.int64)
        K = sp.csc_array(matrix)
        order(len(matrix), *upper(K), perm)
        assert fill_in(K, perm) == entries


def test_every_entry_of_the_kkt_matrix_has_a_place_of_its_own() -> None:
    rng = np.random.default_rng(2)
    H = np.diag(rng.random(8))
    qp = QP(H=H, g=np.ones(8), A=rng.random((3, 8)), b=np.ones(3), C=np.eye(8), u=np.ones(8))
    pattern = qp.pattern()
    factor = analyse(8 + 3 + 8, *kkt_pattern(pattern))
    entries = locate_entries(pattern, factor)
    places = np.concatenate([entries.A, entries.C, entries.diagonal])
    assert len(np.unique(places)) == len(places)
    assert places.max() < factor.val_ptr[-1]


def test_dense_rows_of_an_lp_are_eliminated_after_all_variables() -> None:
    """A variable after a row left that row a pivot of rounding noise, 1 / rho times its entries."""
    A = np.random.default_rng(0).random((40, 64))
    qp = QP(g=np.ones(64), A=A, b=A.sum(axis=1), lb=0.0)
    factor = analyse(104, *kkt_pattern(qp.pattern()))
    assert set(factor.perm[:64]) == set(range(64))
