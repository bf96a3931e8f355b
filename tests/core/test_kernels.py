"""Ordering, symbolic and numeric factorisation against dense oracles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from nbqp.kernels.jit import entry
from nbqp.kernels.kkt import kkt_pattern, locate_entries
from nbqp.kernels.ldl import factorise
from nbqp.kernels.structure import Factor, FactorReference, Ints
from nbqp.kernels.symbolic import (
    PANEL,
    column_counts,
    elimination_tree,
    locate,
    order_columns,
    plan_factor,
)
from nbqp.kernels.triangular import solve_permuted
from nbqp.kernels.vector import WIDTH
from nbqp.problem import QP
from tests.core.factorisations import symbolic_ldl


def upper(K: sp.csc_array) -> tuple[np.ndarray, np.ndarray]:
    triangle = sp.csc_array(sp.triu(K, format="csc"))
    triangle.sort_indices()
    return triangle.indptr.astype(np.int64), triangle.indices.astype(np.int64)


def entries_of_factor(K: sp.csc_array, perm: np.ndarray) -> int:
    """Entries of L in an order of elimination, its diagonal included, by boolean elimination."""
    return len(perm) + int(symbolic_ldl(K.toarray()[np.ix_(perm, perm)] != 0.0).counts.sum())


@entry
def factor_and_solve(values, Kp, Ki, Kx, expected, rhs):
    """The solution, the factor's values and pivots in pivot order, and how many were replaced."""
    factor = FactorReference(*values)
    N = len(rhs)
    L = np.zeros(factor.val_ptr[len(factor.val_ptr) - 1] + WIDTH)
    for j in range(N):
        for p in range(Kp[j], Kp[j + 1]):
            L[locate(factor, Ki[p], j)] = Kx[p]
    D = np.zeros(N)
    signs = np.empty(N)
    x = np.empty(N)
    for k in range(N):
        signs[k] = expected[factor.perm[k]]
        x[k] = rhs[factor.perm[k]]
    stale = np.ones(len(factor.first) - 1, dtype=np.bool_)
    work = np.zeros((N + PANEL) * PANEL)
    local, abort = np.zeros(N, dtype=np.int64), np.zeros(1, dtype=np.int64)
    replaced = factorise(factor, signs, stale, L, D, local, work, abort)
    solve_permuted(factor, L, D, x, np.zeros(N + WIDTH))
    out = np.empty(N)
    for k in range(N):
        out[factor.perm[k]] = x[k]
    return out, L, D, replaced


def order(N: int, Kp: Ints, Ki: Ints, perm: Ints, most: int = 2**62) -> tuple[int, bool]:
    """Overwrites perm; how many entries L has, and whether perm is complete."""
    entries, complete = order_columns(N, Kp, Ki, most, np.zeros(1, dtype=np.int64), perm)
    return int(entries), bool(complete)


def analyse(N: int, Kp: Ints, Ki: Ints) -> Factor:
    """The symbolic factorisation."""
    perm = np.empty(N, dtype=np.int64)
    order(N, Kp, Ki, perm)
    return plan_factor(N, Kp, Ki, perm)


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


def superlu_entries(K: sp.csc_array) -> int:
    """Entries of L in the order of SuperLU's minimum degree, pivots kept on the diagonal."""
    options = {"SymmetricMode": True}
    factor = splu(K, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
    order = np.argsort(factor.perm_c)
    return entries_of_factor(K, order)


MOST_FILL = 1.1
"""Entries of L in our order to those in SuperLU's, at most: ties cost up to 6% of them on grids."""


def random_pattern(rng: np.random.Generator) -> sp.csc_array:
    N = int(rng.integers(20, 150))
    pattern = sp.random_array((N, N), density=3.0 / N, rng=rng) != 0
    return sp.csc_array((pattern + pattern.T).astype(float) + 20.0 * sp.eye_array(N))


def kkt_matrix(rng: np.random.Generator) -> sp.csc_array:
    n, m = int(rng.integers(10, 90)), int(rng.integers(5, 60))
    A = sp.random_array((m, n), density=3.0 / n, rng=rng)
    return sp.csc_array(
        sp.block_array([[20.0 * sp.eye_array(n), A.T], [A, -20.0 * sp.eye_array(m)]])
    )


def grid(rng: np.random.Generator) -> sp.csc_array:
    """The five-point stencil, where the natural order fills most."""
    k = int(rng.integers(6, 13))
    line = sp.diags_array([np.ones(k - 1), np.ones(k - 1)], offsets=[-1, 1])
    eye = sp.eye_array(k)
    return sp.csc_array(sp.kron(line, eye) + sp.kron(eye, line) + 20.0 * sp.eye_array(k * k))


@pytest.mark.parametrize("matrix", [random_pattern, kkt_matrix, grid])
@pytest.mark.parametrize("seed", range(6))
def test_the_ordering_is_a_permutation_with_as_little_fill_as_superlu(
    matrix: Callable[[np.random.Generator], sp.csc_array], seed: int
) -> None:
    K = matrix(np.random.default_rng(seed))
    perm = np.empty(K.shape[0], dtype=np.int64)
    order(len(perm), *upper(K), perm)
    assert sorted(perm) == list(range(len(perm)))
    assert entries_of_factor(K, perm) <= MOST_FILL * superlu_entries(K)


@pytest.mark.parametrize("matrix", [random_pattern, kkt_matrix, grid])
def test_the_entries_of_a_factor_are_counted_while_it_is_ordered(
    matrix: Callable[[np.random.Generator], sp.csc_array],
) -> None:
    K = matrix(np.random.default_rng(5))
    perm = np.empty(K.shape[0], dtype=np.int64)
    entries, complete = order(len(perm), *upper(K), perm)
    assert (entries, complete) == (entries_of_factor(K, perm), True)
    assert order(len(perm), *upper(K), perm, most=entries) == (entries, True)
    for most in (0, entries // 2, entries - 1):
        least, complete = order(len(perm), *upper(K), perm, most=most)
        assert not complete
        assert most < least <= entries


@entry
def tree_and_counts(N, Kp, Ki, parent, count):
    elimination_tree(N, Kp, Ki, parent)
    column_counts(N, Kp, Ki, parent, count)


@pytest.mark.parametrize("matrix", [random_pattern, kkt_matrix, grid])
def test_the_elimination_tree_and_the_column_counts_are_those_of_boolean_elimination(
    matrix: Callable[[np.random.Generator], sp.csc_array],
) -> None:
    K = matrix(np.random.default_rng(3))
    parent, count = np.empty((2, K.shape[0]), dtype=np.int64)
    tree_and_counts(len(parent), *upper(K), parent, count)
    expected = symbolic_ldl(K.toarray() != 0.0)
    np.testing.assert_array_equal(parent, expected.etree)
    np.testing.assert_array_equal(count, expected.counts + 1)


def test_an_arrow_fills_nothing_and_a_dense_matrix_keeps_its_triangle() -> None:
    arrow = np.eye(50)
    arrow[0] = arrow[:, 0] = 1.0
    for matrix, entries in ((arrow, 99), (np.ones((20, 20)), 210), (np.eye(5), 5)):
        perm = np.empty(len(matrix), dtype=np.int64)
        K = sp.csc_array(matrix)
        order(len(matrix), *upper(K), perm)
        assert entries_of_factor(K, perm) == entries


def test_every_entry_of_the_kkt_matrix_has_a_place_of_its_own() -> None:
    """One half of H counts; its diagonal stands where the regularisation is added."""
    rng = np.random.default_rng(2)
    M = rng.random((8, 8))
    qp = QP(H=M @ M.T, g=np.ones(8), A=rng.random((3, 8)), b=np.ones(3), C=np.eye(8), u=np.ones(8))
    pattern = qp.pattern()
    factor = analyse(8 + 3 + 8, *kkt_pattern(pattern))
    entries = locate_entries(pattern, factor)
    H = entries.H.reshape(8, 8).T  # stored by columns
    upper_half = H[np.triu_indices(8, 1)]
    assert (H[np.tril_indices(8, -1)] == -1).all()
    np.testing.assert_array_equal(np.diag(H), entries.diagonal[:8])
    places = np.concatenate([upper_half, entries.A, entries.C, entries.diagonal])
    assert len(places) == 28 + 24 + 8 + 19
    assert len(np.unique(places)) == len(places)
    assert 0 <= places.min() <= places.max() < factor.val_ptr[-1]


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_gaps_are_what_no_entry_of_a_matrix_fills(density: float) -> None:
    rng = np.random.default_rng(3)
    M, A, C = (
        rng.random(shape) * (rng.random(shape) < density) for shape in [(9, 9), (4, 9), (5, 9)]
    )
    qp = QP(H=M + M.T, g=np.ones(9), A=A, b=np.ones(4), C=C, u=np.ones(5))
    factor = analyse(18, *kkt_pattern(qp.pattern()))
    entries = locate_entries(qp.pattern(), factor)
    empty = [place for begin, end in entries.gaps.reshape(-1, 2) for place in range(begin, end)]
    filled = [*entries.H[entries.H >= 0], *entries.A, *entries.C]
    assert sorted([*empty, *filled]) == list(range(factor.val_ptr[-1]))


def test_dense_rows_of_an_lp_are_eliminated_after_all_variables() -> None:
    """A variable after a row left that row a pivot of rounding noise, 1 / rho times its entries."""
    A = np.random.default_rng(0).random((40, 64))
    qp = QP(g=np.ones(64), A=A, b=A.sum(axis=1), lb=0.0)
    factor = analyse(104, *kkt_pattern(qp.pattern()))
    assert set(factor.perm[:64]) == set(range(64))


def controller(stages: int, states: int, inputs: int) -> sp.csc_array:
    """The KKT matrix of stages x_k+1 = A x_k + B u_k: a state meets one more equation than its neighbours."""
    rng = np.random.default_rng(0)
    here = np.hstack([np.eye(states), np.zeros((states, inputs))])
    before = -rng.standard_normal((states, states + inputs))
    eye, shift = sp.eye_array(stages), sp.eye_array(stages, k=-1)
    M = sp.csc_array(sp.kron(eye, here) + sp.kron(shift, before))
    n, m = M.shape[1], M.shape[0]
    return sp.csc_array(sp.block_array([[sp.eye_array(n), M.T], [M, -0.1 * sp.eye_array(m)]]))


def test_variables_that_meet_much_the_same_rows_share_panels() -> None:
    """Six states and two inputs a stage; apart, each state would have a panel, and the inputs one."""
    stages = 20
    K = controller(stages, 6, 2)
    factor = analyse(K.shape[0], *upper(K))
    assert len(factor.first) - 1 < 5 * stages
    stored = int(np.sum(np.diff(factor.first) * np.diff(factor.row_ptr)))
    assert stored <= 1.6 * entries_of_factor(K, factor.perm)


def test_panels_of_a_controller_factorise_its_matrix() -> None:
    K = controller(8, 6, 2)
    n = 8 * 8
    signs = np.where(np.arange(len(K.toarray())) < n, 1.0, -1.0)
    perm, L, pivots = factorised(K.toarray(), signs)
    np.testing.assert_allclose(
        L @ np.diag(pivots) @ L.T, K.toarray()[np.ix_(perm, perm)], atol=1e-12
    )
