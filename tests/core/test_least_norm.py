"""Answers of least norm: the kernels against NumPy, and the system of the derivatives by each way."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse.linalg

import nbqp
from nbqp.kernels.active import (
    ABSENT,
    BOTH,
    LOWER,
    NEAR_LOWER,
    NEAR_UPPER,
    UPPER,
    VIOLATED_LOWER,
    VIOLATED_UPPER,
)
from nbqp.kernels.adjoint import REGULAR, SINGULAR
from nbqp.kernels.consistent_adjoint import solve_consistent_range
from nbqp.kernels.jit import entry
from nbqp.kernels.orthogonal import least_norm, triangularise
from nbqp.kernels.structure import Point, Shifts
from nbqp.least_norm import LeastNormSystem
from nbqp.problem import QP
from tests.core.derivatives import (
    adjoint_oracle,
    assert_matches,
    jvp_oracle,
    random_cotangents,
    random_tangents,
)
from tests.core.infeasible import random_infeasible_qp
from tests.core.strategies import Problem, random_qp

SIDES = (
    ABSENT, BOTH, LOWER, UPPER, NEAR_LOWER, NEAR_UPPER, VIOLATED_LOWER, VIOLATED_UPPER,
)  # fmt: skip


@entry
def decompose_and_solve(columns, rhs, rcond, p):
    """The rank, and |rhs| outside the range; p is overwritten by the solution of least norm."""
    order = np.empty(len(columns), dtype=np.int64)
    rank = triangularise(columns, order, rhs, rcond, np.zeros(1, dtype=np.int64))
    outside = np.sqrt(np.sum(rhs[rank:] ** 2))
    least_norm(columns, order, rank, rhs, p)
    return rank, outside


@pytest.mark.parametrize("zero_columns", [0, 2])
@pytest.mark.parametrize(
    ("m", "n", "rank"),
    [(9, 4, 4), (4, 9, 4), (6, 6, 6), (9, 5, 3), (5, 9, 3), (7, 7, 1), (6, 4, 0), (5, 0, 0), (0, 5, 0)],
    ids=lambda size: str(size),
)  # fmt: skip
def test_least_squares_of_least_norm_are_those_of_lapack(
    m: int, n: int, rank: int, zero_columns: int
) -> None:
    rng = np.random.default_rng([m, n, rank])
    K = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
    K = np.insert(K, [n // 2] * zero_columns, 0.0, axis=1)
    rhs, p = rng.standard_normal(m), np.empty(n + zero_columns)
    found, outside = decompose_and_solve(np.ascontiguousarray(K.T), rhs.copy(), 1e-10, p)
    expected = np.linalg.lstsq(K, rhs, rcond=1e-10)[0]
    assert found == rank
    np.testing.assert_allclose(
        p, expected, rtol=0.0, atol=1e-12 * (1.0 + np.abs(expected).max(initial=0.0))
    )
    np.testing.assert_allclose(outside, np.linalg.norm(rhs - K @ expected), atol=1e-12)


def test_a_small_column_is_found_among_large_dependent_ones() -> None:
    """Updated, the norms of the dependent ones are rounding noise, larger than the small one's."""
    rng = np.random.default_rng(1)
    K = 1e3 * np.outer(rng.standard_normal(30), rng.uniform(0.3, 1.0, 20))
    K[:, 7] = 3e-6 * rng.standard_normal(30)
    rhs, p = rng.standard_normal(30), np.empty(20)
    found, _ = decompose_and_solve(np.ascontiguousarray(K.T), rhs.copy(), 1e-10, p)
    assert found == 2
    expected = np.linalg.lstsq(K, rhs, rcond=1e-10)[0]
    np.testing.assert_allclose(p, expected, rtol=0.0, atol=1e-6 * np.abs(expected).max())


class System(NamedTuple):
    """The adjoint system of some samples of one QP, its right-hand sides in its range."""

    qp: QP
    side: np.ndarray
    side_box: np.ndarray
    r: Point
    r_s: Shifts


def singular_system(seed: int, batch: int = 3) -> System:
    """H of rank 2, the last equality a copy of the first, and any sides."""
    rng = np.random.default_rng(seed)
    n, n_eq, n_in = 7, 3, 5
    F, A = rng.standard_normal((2, n)), rng.standard_normal((n_eq, n))
    A[-1] = A[0]
    C = rng.standard_normal((n_in, n))
    qp = QP(F.T @ F, np.zeros(n), A, np.zeros(n_eq), C, np.zeros(n_in))
    M = np.vstack([A, C, np.eye(n)])
    side, side_box = (rng.choice(SIDES, (batch, size)) for size in (n_in, n))
    sides = np.hstack([np.full((batch, n_eq), BOTH), side, side_box])
    held = np.isin(sides, (BOTH, VIOLATED_LOWER, VIOLATED_UPPER))
    active = np.isin(sides, (LOWER, UPPER))
    # J'b for any b, row by row as in `adjoint_oracle`.
    b1, b4 = rng.standard_normal((2, batch, n))
    b3 = np.where(sides == ABSENT, 0.0, rng.standard_normal(sides.shape))
    b2 = np.where(held | active, b3, 0.0)
    r_x = b1 @ (F.T @ F) + b2 @ M
    rows = np.where(sides == ABSENT, 0.0, b1 @ M.T - np.where(held | active, 0.0, b3))
    shifts = np.where(held, b4 @ M.T - b2, 0.0)
    cut = [n_eq, n_eq + n_in]
    r = Point(r_x, *(np.ascontiguousarray(v) for v in np.split(rows, cut, axis=1)))
    r_s = Shifts(*(np.ascontiguousarray(v) for v in np.split(shifts, cut, axis=1)))
    return System(qp, side, side_box, r, r_s)


def solve_consistent(
    system: System, code: np.ndarray, begin: int = 0, largest: int = 100
) -> tuple[Point, np.ndarray]:
    """b and b4, NaN where they are not written; code is overwritten."""
    found = Point(*(np.full_like(part, np.nan) for part in system.r))
    b4 = np.full_like(system.r.x, np.nan)
    system_range = (*system[1:], largest, np.zeros(1, dtype=np.int64), begin, len(code))
    pattern, data = system.qp.pattern(), system.qp.data()
    solve_consistent_range(pattern, data, *system_range, found, b4, code[:, None])
    return found, b4


@pytest.mark.parametrize("seed", range(8))
def test_consistent_adjoints_are_solved_as_by_the_whole_system(seed: int) -> None:
    system, code = singular_system(seed), np.full(3, SINGULAR)
    found, b4 = solve_consistent(system, code)
    assert (code == REGULAR).all()
    H, A, C = (matrix.sample(0) for matrix in (system.qp.H, system.qp.A, system.qp.C))
    for k in range(3):
        whole = LeastNormSystem(H, A, C, system.side[k], system.side_box[k])
        b, expected_b4 = whole.solve_adjoint(*(tuple(v[k] for v in p) for p in system[3:]))
        for ours, expected in zip((*found, b4), (*b, expected_b4), strict=True):
            np.testing.assert_allclose(ours[k], expected, atol=1e-9)


def test_inconsistent_and_large_adjoints_stay_singular_and_others_are_left_alone() -> None:
    system = singular_system(0, batch=4)
    system.r.y[2, -1] += 1e-3  # its row is a copy of the first, whose right-hand side stays
    code = np.array([SINGULAR, REGULAR, SINGULAR, SINGULAR])
    found, b4 = solve_consistent(system, code, begin=1)
    assert code.tolist() == [SINGULAR, REGULAR, SINGULAR, REGULAR]
    for part in (*found, b4):
        assert np.isnan(part[:2]).all()
        assert np.isfinite(part[3]).all()
    code = np.full(4, SINGULAR)
    found, _ = solve_consistent(system, code, largest=7)
    assert (code == SINGULAR).all()
    assert np.isnan(found.x).all()


SINGULAR_PROBLEMS = [
    random_qp(np.random.default_rng(0), kind="lp_nonunique", n=8, name="face"),
    random_qp(np.random.default_rng(1), kind="low_rank", n=10, redundant=1, name="redundant"),
    random_qp(np.random.default_rng(2), n=8, duplicates=2, degenerate=True, name="degenerate"),
    random_infeasible_qp(np.random.default_rng(3), contradiction="mixed", name="infeasible"),
    random_infeasible_qp(np.random.default_rng(4), contradiction="rows", kind="lp", name="lp"),
]


@pytest.mark.filterwarnings("ignore:.*multipliers are not unique")
@pytest.mark.parametrize("problem", SINGULAR_PROBLEMS, ids=lambda p: p.name)
def test_large_singular_systems_are_solved_by_lsmr(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    lsmr, shapes = scipy.sparse.linalg.lsmr, []

    def counted(J: scipy.sparse.sparray, *args: object, **options: object) -> object:
        shapes.append(J.shape)
        return lsmr(J, *args, **options)

    monkeypatch.setattr(scipy.sparse.linalg, "lsmr", counted)
    for module in ("nbqp.kkt_system", "nbqp.least_norm"):
        monkeypatch.setattr(f"{module}.LARGEST_DENSE", 0)
    settings = nbqp.Settings(eps_abs=1e-10, primal_infeasibility_solving=True)
    sol, rng = nbqp.solve_qp(**problem.args, settings=settings), np.random.default_rng(5)
    given = random_cotangents(rng, sol, ("x", "y", "z", "s_e", "s_i"))
    grads = nbqp.vjp(sol, **given)
    assert_matches(grads, adjoint_oracle(problem.data, sol, given), atol=1e-6)
    moved = random_tangents(rng, problem.data, ("g", "A", "b"))
    forward = nbqp.jvp(sol, **moved)
    assert_matches(forward, jvp_oracle(problem.data, sol, moved), atol=1e-6)
    assert len(shapes) == 2
