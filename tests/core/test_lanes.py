"""Eight QPs at once: vectors as numbers, their factors, and what a batch makes of any QP."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import nbqp
from nbqp.analysis import analyse_qp
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.kkt import factor_system, solve_regularised
from nbqp.kernels.lane_problem import worst_lane_ratio
from nbqp.kernels.lanes import put, take
from nbqp.kernels.number import any_of, larger, maximum, minimum, opposite, where, zeros
from nbqp.kernels.state import new_system
from nbqp.kernels.structure import EntriesReference, FactorReference, PatternReference
from nbqp.kernels.vector import WIDTH, splat
from nbqp.problem import QP
from nbqp.watch import Watch
from tests.core.infeasible import random_infeasible_mixture
from tests.core.strategies import random_mixture

EPS = nbqp.Settings(eps_abs=1e-9)
SPECIAL = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.nan, 1e-300])


@kernel
def formulas(x, y, out):
    """One of everything that numbers can do."""
    total = 0.0
    peak = -1.0
    highest = -1.0
    for i in range(len(x)):
        total += 2.0 * x[i]
        total -= y[i] / 3.0
        peak = maximum(peak, abs(x[i]))
        highest = larger(highest, y[i])
        holds = (x[i] > y[i]) & opposite(y[i] <= 0.0) | (x[i] != x[i])
        out[i] = where(holds, minimum(x[i], 1.0) - y[i], -x[i])
    out[0] = where(any_of(x[0] == y[0]), out[0], 1.0 / (total + peak))
    out[1] *= 0.5
    out[2] = highest


@entry
def one_by_one(x, y, out):
    for k in range(len(x)):
        formulas(x[k], y[k], out[k])


@entry
def together(x, y, out):
    """As `one_by_one`, for eight rows."""
    size = x.shape[1]
    wide_x = zeros(splat(0.0), size)
    wide_y = zeros(splat(0.0), size)
    wide_out = zeros(splat(0.0), size)
    for k in range(WIDTH):
        put(x[k], wide_x, k)
        put(y[k], wide_y, k)
    formulas(wide_x, wide_y, wide_out)
    for k in range(WIDTH):
        take(wide_out, k, out[k])


def test_a_kernel_means_the_same_on_vectors_as_on_doubles() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, WIDTH, 40))
    x[:, 2:10], y[:, 2:10] = rng.permuted(np.tile(SPECIAL, (2, WIDTH, 1)), axis=2)
    x[:, 0] += 3.0
    single, wide = np.zeros_like(x), np.zeros_like(x)
    with np.errstate(all="ignore"):
        one_by_one(x, y, single)
        together(x, y, wide)
    np.testing.assert_array_equal(single, wide)
    # NaN where one of them is.
    np.testing.assert_array_equal(wide[:, 2], np.maximum.reduce(y, axis=1, initial=-1.0))


@entry
def solve_eight(pattern_values, factor_values, entries_values, H, A, C, w, r, d):
    """Solutions d (8, N') of the KKT systems with weights w (8, m) and right-hand sides r (8, N')."""
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    system = new_system(splat(0.0), pattern, factor, np.zeros(1, dtype=np.int64))
    n, n_eq = pattern.n, pattern.n_eq
    wide_H = zeros(splat(0.0), len(H))
    wide_A = zeros(splat(0.0), len(A))
    wide_C = zeros(splat(0.0), len(C))
    system.rho[0] = 1e-3
    system.mu_e[:] = 1e-2
    for k in range(WIDTH):
        put(H, wide_H, k)
        put(A, wide_A, k)
        put(C, wide_C, k)
        put(w[k], system.w, k)
        put(r[k, :n], system.r1, k)
        put(r[k, n : n + n_eq], system.r2, k)
        put(r[k, n + n_eq :], system.r3, k)
    factor_system(pattern, factor, entries, wide_H, wide_A, wide_C, system)
    solve_regularised(pattern, factor, system)
    for k in range(WIDTH):
        take(system.dx, k, d[k, :n])
        take(system.dy, k, d[k, n : n + n_eq])
        take(system.dz, k, d[k, n + n_eq :])


@pytest.mark.parametrize("shape", [(5, 2, 3), (23, 9, 30), (64, 40, 1), (40, 1, 70)])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_eight_systems_have_the_solutions_of_numpy(
    shape: tuple[int, int, int], density: float
) -> None:
    n, n_eq, n_in = shape
    rng = np.random.default_rng(3)
    M = [rng.standard_normal((rows, n)) * (rng.random((rows, n)) <= density) for rows in shape]
    H, A, C = M[0].T @ M[0], M[1], M[2]
    qp = QP(sp.csc_array(H), np.zeros(n), A=A, b=np.zeros(n_eq), C=C, u=1.0)
    w = 10.0 ** rng.uniform(-3, 3, (WIDTH, n_in + n))
    w[rng.random(w.shape) < 0.3] = np.inf
    r = rng.standard_normal((WIDTH, n + n_eq + n_in + n))
    d = np.zeros_like(r)
    solve_eight(*analyse_qp(qp, Watch()), qp.H.values[0], qp.A.values[0], qp.C.values[0], w, r, d)
    rows = np.vstack([A, C, np.eye(n)])
    for k in range(WIDTH):
        kept = np.concatenate([np.full(n + n_eq, True), np.isfinite(w[k])])
        lower = np.concatenate([np.full(n_eq, 1e-2), np.where(np.isfinite(w[k]), w[k], 1.0)])
        K = np.block([[H + 1e-3 * np.eye(n), rows.T], [rows, -np.diag(lower)]])
        exact = np.linalg.solve(K[np.ix_(kept, kept)], r[k, kept])
        np.testing.assert_allclose(d[k, kept], exact, rtol=1e-8, atol=1e-8 * abs(exact).max())
        assert not d[k, ~kept].any()


@entry
def lane_ratios(res, tol, out):
    """`worst_lane_ratio` of eight QPs, each a row of residuals and of tolerances (8, 3)."""
    wide_res = zeros(splat(0.0), res.shape[1])
    wide_tol = zeros(splat(0.0), res.shape[1])
    for lane in range(WIDTH):
        put(res[lane], wide_res, lane)
        put(tol[lane], wide_tol, lane)
    for lane in range(WIDTH):
        out[lane] = worst_lane_ratio(wide_res, wide_tol, lane)


def test_the_worst_residual_of_a_lane_is_infinite_where_one_is_no_number() -> None:
    rng = np.random.default_rng(0)
    res, tol, found = rng.random((WIDTH, 3)), 0.5 + rng.random((WIDTH, 3)), np.empty(WIDTH)
    expected = (res / tol).max(axis=1)
    for place in range(3):
        res[place, place], expected[place] = np.nan, np.inf
    lane_ratios(res, tol, found)
    np.testing.assert_array_equal(found, expected)


def with_other_costs(args: dict[str, Any], count: int) -> dict[str, Any]:
    """A batch of one QP and of others with other g, of which some may have no solution."""
    g = np.asarray(args["g"])
    changes = np.random.default_rng(5).standard_normal((count, len(g)))
    changes[0] = 0.0
    return {**args, "g": g + abs(g).max() * changes}


@pytest.mark.parametrize("mixture", [random_mixture, random_infeasible_mixture])
def test_a_batch_finds_what_single_solves_find(mixture: Any) -> None:
    counts = {True: 0, False: 0}
    for problem in mixture(np.random.default_rng(11), 60):
        data = with_other_costs(problem.args, 11)
        batch = nbqp.solve_batch(**data, settings=EPS)
        for k, g in enumerate(data["g"]):
            single = nbqp.solve_qp(**{**data, "g": g}, settings=EPS)
            counts[batch.status[k] is single.status] += 1
            if batch.status[k] is nbqp.Status.SOLVED:
                assert batch.primal_residual()[k] <= 1e-9
                assert batch.dual_residual()[k] <= 1e-9
                assert batch.duality_gap()[k] <= 1e-9
    # Which of two ways finds a solution at this accuracy, or a certificate, may differ.
    assert counts[False] <= 0.01 * counts[True]


def test_neighbours_that_are_left_to_the_other_kernel_change_nothing() -> None:
    """Contradicting, unbounded, invalid and tiny QPs among easy ones."""
    rng = np.random.default_rng(2)
    n = 12
    data = {
        "H": np.tile(np.eye(n), (24, 1, 1)),
        "g": rng.standard_normal((24, n)),
        "C": rng.standard_normal((24, 6, n)),
        "u": rng.random((24, 6)),
    }
    alone = nbqp.solve_batch(**data, settings=EPS)
    data["C"][1], data["u"][1] = np.vstack([np.eye(n)[:3], -np.eye(n)[:3]]), -1.0
    data["H"][5] = data["C"][5] = 0.0
    data["g"][9] = np.nan
    data["u"][13] *= 1e-12
    data["g"][17] *= 1e12
    mixed = nbqp.solve_batch(**data, settings=EPS)
    assert mixed.status[1] is nbqp.Status.PRIMAL_INFEASIBLE
    assert mixed.status[5] is nbqp.Status.DUAL_INFEASIBLE
    assert mixed.status[9] is nbqp.Status.INVALID_DATA
    others = np.delete(np.arange(24), [1, 5, 9, 13, 17])
    for name in ("x", "y", "z", "z_box"):
        np.testing.assert_array_equal(getattr(alone, name)[others], getattr(mixed, name)[others])


def test_easy_qps_of_a_batch_end_in_their_lanes() -> None:
    """No outer step of the other kernel: random strictly convex QPs."""
    rng = np.random.default_rng(4)
    C, x0 = rng.standard_normal((100, 20, 20)), rng.standard_normal((100, 20))
    u = np.einsum("kij,kj->ki", C, x0) + rng.random((100, 20))
    batch = nbqp.solve_batch(np.eye(20), rng.standard_normal((100, 20)), C=C, u=u, settings=EPS)
    assert all(status is nbqp.Status.SOLVED for status in batch.status)
    assert (batch.info.iter_ext == 0).mean() >= 0.98


def test_a_lane_forgets_whom_it_held() -> None:
    """QPs that overflow, contradict or run away leave no trace in those that take their lanes."""
    rng = np.random.default_rng(6)
    for _ in range(40):
        size, n = int(rng.integers(9, 30)), int(rng.integers(1, 8))
        H = np.tile(np.eye(n), (size, 1, 1))
        C = rng.standard_normal((size, n, n))
        u = rng.standard_normal((size, n)) + rng.choice([-2.0, 2.0], (size, 1))
        g = rng.standard_normal((size, n))
        wild = rng.random(size) < 0.5
        H[wild] *= rng.choice([0.0, 1e-200, 1e200], (wild.sum(), 1, 1))
        C[wild] *= rng.choice([0.0, 1e-300, 1e300], (wild.sum(), 1, 1))
        g[wild] *= rng.choice([1e-300, 1.0, 1e150], (wild.sum(), 1))
        data = {"H": H, "g": g, "C": C, "u": u}
        together = nbqp.solve_batch(**data, settings=EPS, threads=1)
        for k in np.flatnonzero(~wild):
            alone = nbqp.solve_batch(
                **{name: v[k : k + 1] for name, v in data.items()}, settings=EPS
            )
            assert together.status[k] is alone.status[0]
            assert together.info.iter[k] == alone.info.iter[0]
            for name in ("x", "y", "z", "z_box"):
                np.testing.assert_array_equal(getattr(together, name)[k], getattr(alone, name)[0])


def test_multipliers_of_absent_sides_are_zero_also_where_the_gap_does_not_count() -> None:
    """A Newton step for the sides that seem to hold may give one that is not there a multiplier."""
    settings = nbqp.Settings(eps_abs=1e-6, check_duality_gap=False)
    for seed in (384, *range(60)):
        rng = np.random.default_rng(seed)
        F = rng.standard_normal((3, 3))
        H, g = F @ F.T + 0.1 * np.eye(3), rng.standard_normal((16, 3))
        C, u = rng.standard_normal((3, 3)), rng.random(3)
        batch = nbqp.solve_batch(H, g, C=C, u=u, settings=settings)
        assert (batch.z >= 0.0).all()
        np.testing.assert_allclose(
            batch.x, nbqp.solve_batch(H, g, C=C, u=u, settings=EPS).x, atol=1e-3
        )


def test_a_time_limit_leaves_no_sample_that_was_begun_as_not_run() -> None:
    rng = np.random.default_rng(7)
    C = rng.standard_normal((3000, 30, 20))
    u = rng.standard_normal((3000, 30))
    g = rng.standard_normal((3000, 20))
    settings = nbqp.Settings(eps_abs=1e-9, time_limit=0.02)
    batch = nbqp.solve_batch(np.eye(20), g, C=C, u=u, settings=settings, threads=1)
    assert nbqp.Status.NOT_RUN in batch.status
    for status, steps in zip(batch.status, batch.info.iter, strict=True):
        assert (status is nbqp.Status.NOT_RUN) == (steps == 0)


@pytest.mark.parametrize("most", [30, 31, 60, 299, 300])
def test_few_iterations_suffice_for_as_much_in_a_batch(most: int) -> None:
    """Contradicting rows: the steps of lanes, which find no certificates, take none away."""
    rng = np.random.default_rng(8)
    A = rng.standard_normal((30, 15, 20))
    A[:, -1] = A[:, 0]
    b = rng.standard_normal((30, 15))
    settings = nbqp.Settings(max_iter=most)
    batch = nbqp.solve_batch(np.eye(20), np.ones((30, 20)), A, b, settings=settings)
    single = [
        nbqp.solve_qp(np.eye(20), np.ones(20), A[k], b[k], settings=settings) for k in range(30)
    ]
    assert [sol.status for sol in single] == list(batch.status)
