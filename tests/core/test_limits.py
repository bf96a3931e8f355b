"""Time limits, interrupts, indefinite H: honest statuses, and nothing that hangs."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import scipy.sparse as sp

import nbqp

LONGEST = 10.0
"""Seconds that only a hang takes; that the limit struck, statuses and the exception say."""


def long_lp(n: int = 300, batch: int = 200) -> dict[str, object]:
    """A batch that takes seconds."""
    rng = np.random.default_rng(0)
    A = rng.random((n // 2, n))
    return {"g": rng.random((batch, n)), "A": A, "b": A @ rng.random(n), "lb": 0.0}


def test_a_time_limit_ends_a_batch_with_honest_statuses() -> None:
    nbqp.warmup()
    start = time.perf_counter()
    sol = nbqp.solve_batch(**long_lp(), settings=nbqp.Settings(time_limit=0.2))
    assert time.perf_counter() - start < LONGEST
    names = {status.name for status in sol.status}
    assert "NOT_RUN" in names
    assert names <= {"SOLVED", "TIME_LIMIT_REACHED", "NOT_RUN"}
    done = np.array([s is nbqp.Status.SOLVED for s in sol.status])
    assert (sol.primal_residual()[done] <= 1e-8).all()


def test_loading_the_kernels_does_not_count_towards_the_time_limit() -> None:
    """A new process loads for a quarter of a second, or compiles for much longer."""
    code = (
        "import numpy as np, nbqp\n"
        "settings = nbqp.Settings(time_limit=0.1)\n"
        "print(nbqp.solve_qp(np.eye(2), np.ones(2), settings=settings).status.name)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["SOLVED"]


def test_an_interrupt_ends_a_long_solve_at_once_and_leaves_the_solver_usable() -> None:
    nbqp.warmup()
    solver = nbqp.Solver(np.eye(2), np.ones(2))
    # A shell that starts the tests in the background has them ignore SIGINT.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        nbqp.solve_batch(**long_lp(batch=2000))
    assert time.perf_counter() - start < LONGEST
    timer.join()
    signal.signal(signal.SIGINT, handler)
    assert solver.solve().status is nbqp.Status.SOLVED


INDEFINITE = np.array([[1.0, 2.0], [2.0, 1.0]])


@pytest.mark.parametrize("H", [INDEFINITE, sp.csc_array(INDEFINITE), np.diag([1.0, -1e-6])])
def test_a_single_indefinite_h_raises(H: object) -> None:
    with pytest.raises(nbqp.NonconvexError, match="H: expected a positive semidefinite matrix"):
        nbqp.solve_qp(H, np.ones(2), lb=-1.0, ub=1.0)
    solver = nbqp.Solver(np.eye(2), np.ones(2))
    with pytest.raises(nbqp.QPError, match="H: expected"):
        solver.update(H=H)


def test_a_semidefinite_h_within_its_rounding_is_accepted() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 10, 60):
        L = rng.standard_normal((n // 2, n))
        H = L.T @ L - 1e-13 * np.eye(n)
        assert nbqp.solve_qp(H, np.ones(n), lb=-1.0, ub=1.0).status is nbqp.Status.SOLVED


def test_an_indefinite_sample_has_its_status_and_harms_no_other() -> None:
    H = np.stack([np.eye(2), INDEFINITE, 2.0 * np.eye(2)])
    sol = nbqp.solve_batch(H, np.ones(2), lb=-1.0, ub=1.0)
    assert [s.name for s in sol.status] == ["SOLVED", "NONCONVEX", "SOLVED"]
    for values in (sol.x, sol.primal_residual(), sol.dual_residual(), sol.duality_gap()):
        assert np.isnan(values[1]).all()
    np.testing.assert_allclose(sol.x[[0, 2]], [[-1.0, -1.0], [-0.5, -0.5]], atol=1e-8)
    shared = nbqp.solve_batch(INDEFINITE, np.ones((2, 2)), lb=-1.0, ub=1.0)
    assert [s.name for s in shared.status] == ["NONCONVEX", "NONCONVEX"]


def test_verbose_prints_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    nbqp.solve_qp(np.eye(2), np.ones(2), settings=nbqp.Settings(verbose=True))
    assert "SOLVED" in capsys.readouterr().out


def test_a_failed_update_leaves_the_solver_as_it_was() -> None:
    solver = nbqp.Solver(np.eye(2), np.array([-1.0, 2.0]), lb=-1.0, ub=1.0)
    for bad in ({"H": INDEFINITE}, {"g": np.ones(3)}, {"g": np.array([np.nan, 0.0])}, {"ub": -2.0}):
        with pytest.raises(nbqp.QPError):
            solver.update(**bad)
    solver.update(g=np.array([0.5, 0.0]))
    np.testing.assert_allclose(solver.solve().x, [-0.5, 0.0], atol=1e-8)


@pytest.mark.parametrize("curvature", [1e-2, 1e-4, 1e-6])
def test_flat_but_bounded_problems_are_never_called_unbounded(curvature: float) -> None:
    """A short last step along g was taken for a direction without curvature."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        L, g = rng.uniform(-0.8, 0.8, (2, 6)), rng.standard_normal(6)
        H = L.T @ L + curvature * np.eye(6)
        sol = nbqp.solve_qp(H, g)
        assert sol.status in (nbqp.Status.SOLVED, nbqp.Status.NUMERICAL_ERROR)
        np.testing.assert_allclose(sol.x, np.linalg.solve(H, -g), rtol=1e-6)
    for size in (1e6, 1e10, 1e14):
        big = nbqp.solve_qp(np.eye(2), size * np.array([1.0, -2.0]))
        assert big.status in (nbqp.Status.SOLVED, nbqp.Status.NUMERICAL_ERROR)


@pytest.mark.parametrize("far", [1e6, 1e9, 1e12, 1e15])
def test_a_far_bound_ends_a_solve(far: float) -> None:
    """The same matrix was solved with for ever where rounding kept the line search short."""
    sol = nbqp.solve_qp(None, np.array([-1.0, 0.0]), lb=0.0, ub=far)
    if far <= 1e12 or sol.status is nbqp.Status.SOLVED:
        assert sol.status is nbqp.Status.SOLVED
        assert sol.x[0] == pytest.approx(far, rel=1e-9)
    else:
        assert sol.status in (nbqp.Status.NUMERICAL_ERROR, nbqp.Status.MAX_ITER_REACHED)


def test_a_misleading_warm_start_costs_little() -> None:
    """After some semismooth steps the smoothed phase starts afresh, whichever method leads there."""
    rng = np.random.default_rng(2)
    A, C = rng.standard_normal((10, 40)), rng.standard_normal((60, 40))
    args = (None, rng.standard_normal(40), A, A @ np.ones(40), C, C @ np.ones(40) - 1.0)
    start = [1e4 * rng.standard_normal(size) for size in (40, 10, 60, 40)]
    for method in ("auto", "smoothed"):
        solver = nbqp.Solver(*args, lb=-5.0, ub=5.0, settings=nbqp.Settings(method=method))
        cold = solver.solve()
        point = dict(zip(("x", "y", "z", "z_box"), start, strict=True))
        warm = solver.solve(dataclasses.replace(cold, **point))
        assert cold.status is warm.status is nbqp.Status.SOLVED
        assert warm.info.iter <= 45 + cold.info.iter


def test_an_unreachable_tolerance_returns_the_best_iterate() -> None:
    """Attempts to polish a point, cold ones included, never replace it by a worse one."""
    unsolved = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n = 9
        D = 10 ** rng.uniform(-3, 3, n)
        F = rng.normal(size=(n, n))
        H = D[:, None] * (F.T @ F + 0.01 * np.eye(n)) * D
        A = 10 ** rng.uniform(-3, 3, (4, 1)) * rng.normal(size=(4, n)) * D
        C = 10 ** rng.uniform(-3, 3, (12, 1)) * rng.normal(size=(12, n)) * D
        x = rng.normal(size=n) / D
        data = {"H": (H + H.T) / 2, "g": D * rng.normal(size=n), "A": A, "b": A @ x}
        data |= {"C": C, "u": C @ x, "lb": x - 1 / D}
        sol = nbqp.solve_qp(**data, settings=nbqp.Settings(eps_abs=1e-12))
        unsolved += sol.status is not nbqp.Status.SOLVED
        residuals = sol.primal_residual(), sol.dual_residual(), abs(sol.duality_gap())
        assert max(residuals) <= 1e-8, (seed, sol.status, residuals)
    assert unsolved > 0


@pytest.mark.parametrize("method", ["auto", "semismooth", "smoothed"])
def test_an_overflow_is_never_a_solution(method: str) -> None:
    """Maxima of residuals keep NaN, with the gap counted or not."""
    settings = nbqp.Settings(check_duality_gap=False, method=method)
    sol = nbqp.solve_qp(
        None, np.array([1.0, -1.0]), np.ones((1, 2)), [1e308], lb=-5.0, ub=5.0, settings=settings
    )
    assert sol.status is nbqp.Status.NUMERICAL_ERROR
    assert np.isfinite(sol.x).all()
    assert sol.primal_residual() > 1e307


def test_outer_steps_are_bounded_too() -> None:
    """Ten million of them, each better by rounding, were taken without a factorisation."""
    A = np.array([[7.820198851459531], [55.84074720558835]])
    b = np.array([-32680.76830951592, -233359.60585138903])
    sol = nbqp.solve_qp(None, np.array([-338087.0]), A, b, lb=-4179.020115762978)
    assert sol.info.iter_ext <= 1001
    assert sol.x[0] == pytest.approx(b[0] / A[0, 0], rel=1e-12)
    C, u = np.array([[-0.7], [-0.6], [1.6]]), np.array([6391.7, 5478.6, -14609.6])
    assert nbqp.solve_qp(np.array([[1.54]]), np.array([-5709.0]), C=C, u=u).info.iter_ext <= 1001


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(
    "accuracy", [{"eps_abs": 1e-2}, {"eps_abs": 1e-4}, {"eps_rel": 0.1}, {"eps_rel": 1e-3}]
)
def test_no_multiplier_is_that_of_an_absent_side_where_the_gap_does_not_count(
    accuracy: dict[str, float], batch: bool
) -> None:
    """The step for the sides that hold took a side for an equation, whose multiplier may have either sign."""
    settings = nbqp.Settings(check_duality_gap=False, **accuracy)
    solve, solved = nbqp.solve_batch if batch else nbqp.solve_qp, 0
    rng = np.random.default_rng(0)
    for _ in range(150):
        n, n_in = int(rng.integers(1, 6)), int(rng.integers(1, 6))
        C, x0 = rng.standard_normal((n_in, n)), rng.random(n)
        data = {
            "H": np.diag(rng.choice([0.0, 1.0], n)),
            "g": rng.standard_normal(n) * 10.0 ** rng.integers(-2, 2),
            "C": C * 10.0 ** rng.integers(-1, 2, (n_in, 1)),
            "lb": np.zeros(n),
            "ub": x0 * rng.choice([1e-3, 1.0, np.inf], n),
        }
        data["u"] = data["C"] @ np.minimum(x0, data["ub"]) + rng.choice([0.0, 0.1], n_in)
        if batch:
            data["g"] = data["g"][None]
        found = solve(**data, settings=settings)
        if np.ravel(found.status)[0] is nbqp.Status.SOLVED:
            solved += 1
            assert (found.z >= 0.0).all()
            assert (np.atleast_2d(found.z_box)[:, data["ub"] == np.inf] <= 0.0).all()
    # The others are unbounded.
    assert solved > 75


@pytest.mark.parametrize("most", [1, 2, *range(4, 12), 17])
@pytest.mark.parametrize("feasible", [False, True])
def test_no_limit_of_steps_is_passed(most: int, feasible: bool) -> None:
    """Whatever step comes last, that for the sides that hold included."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        C = rng.standard_normal((12, 8))
        data = {"H": np.eye(8), "g": 9.0 * rng.standard_normal(8), "C": C, "u": 1.0}
        if not feasible:
            data["l"] = 0.5
        for method in ("auto", "semismooth", "smoothed"):
            for closest in (False, True):
                settings = nbqp.Settings(
                    method=method, max_iter=most, primal_infeasibility_solving=closest
                )
                for start in (None, (np.ones(8), [], np.ones(12), np.ones(8))):
                    info = nbqp.solve_qp(**data, settings=settings, warm_start=start).info
                    assert info.iter <= most
                    assert info.iter_ext <= most


def test_active_sets_that_alternate_end() -> None:
    """Rounding decides, and one subproblem took a million Newton steps, all that were allowed."""
    C = np.zeros((3, 4))
    C[0, 3] = -0.007369443374406377
    C[1, [0, 1, 3]] = 208602.4377984995, -688519.7278197436, -863593.3996159451
    C[2, 1] = 1.3861012760047954e-06
    sol = nbqp.solve_qp(
        g=np.array([-0.701560311739092, -1.7787278009669032, 0.35957640790928, 0.22982168107559]),
        A=np.array([[1.218887111705047e-05, 0.0, 0.0, -8.616443146682188e-06]]),
        b=np.array([-0.0953920764659415]),
        C=C,
        l=np.array([-8637.784654372259, 266820718059.3364, -36367.68909734962]),
        u=np.array([77922.64342192699, 266820844153.1508, 27778.46183136095]),
        lb=np.array([-213242.42582958302, -325645.42489653814, -248532.912, -250657.75961540322]),
        ub=np.array([-20648.46087878062, -133051.45994573578, -55938.947, -58063.794664600835]),
        settings=nbqp.Settings(eps_abs=1e-6, max_iter=1_000_000),
    )
    assert sol.info.iter < 100_000


def test_a_single_solve_that_has_no_time_says_so() -> None:
    rng = np.random.default_rng(0)
    M, C = rng.standard_normal((2, 400, 400))
    settings = nbqp.Settings(time_limit=1e-9)
    sol = nbqp.solve_qp(M @ M.T, np.ones(400), C=C, u=-np.ones(400), settings=settings)
    assert sol.status is nbqp.Status.TIME_LIMIT_REACHED


@pytest.mark.large
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_an_interrupt_during_the_analysis_is_an_exception(share: float) -> None:
    """Where a kernel wrapped its results, it crashed the process."""
    code = (
        "import signal, sys, time, numpy as np, scipy.sparse as sp, nbqp\n"
        "nbqp.solve_qp(np.eye(2), np.ones(2))\n"
        "def ring(*_): raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGALRM, ring)\n"
        "H = sp.diags_array([np.full(99_999, -1.0), np.full(100_000, 2.0), np.full(99_999, -1.0)],"
        " offsets=[-1, 0, 1], format='csc')\n"
        "start = time.perf_counter()\n"
        "nbqp.Solver(H, np.ones(100_000))\n"
        f"signal.setitimer(signal.ITIMER_REAL, {share} * (time.perf_counter() - start))\n"
        "try:\n"
        "    nbqp.Solver(H, np.ones(100_000))\n"
        "    time.sleep(10)\n"
        "except KeyboardInterrupt:\n"
        "    print(nbqp.solve_qp(np.eye(2), np.ones(2)).status.name)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["SOLVED"]


@pytest.mark.parametrize("size", [1e10, 1e11, 1e12, 1e13])
def test_huge_costs_prove_no_infeasibility(size: float) -> None:
    """A'y + C'z as a difference with Hx + g is 0 to within the rounding of these."""
    H = np.array([[0.52, -0.5, -0.68], [-0.5, 2.51, 1.97], [-0.68, 1.97, 1.89]])
    C, u = np.array([[-1.4, -0.1, -1.1], [-0.7, -1.6, 1.1]]), np.array([-3.91, 1.25])
    rng, lb = np.random.default_rng(0), np.array([0.2, -0.8, 1.1])
    for _ in range(50):
        sol = nbqp.solve_qp(H, size * rng.standard_normal(3), C=C, u=u, lb=lb)
        assert sol.status is not nbqp.Status.PRIMAL_INFEASIBLE


def test_a_warm_start_is_no_solution_where_the_gap_is_left_out() -> None:
    solver = nbqp.Solver(None, np.ones(1), lb=0.0, settings=nbqp.Settings(check_duality_gap=False))
    start = solver.solve()
    solver.update(lb=-1.0)
    assert solver.solve(start).x[0] == pytest.approx(-1.0, abs=1e-7)
    solver.update(lb=-np.inf)
    moved = solver.solve(start)
    assert moved.status is nbqp.Status.DUAL_INFEASIBLE
    assert moved.z_box[0] == 0.0


def test_a_relative_tolerance_sizes_the_gap_by_its_terms() -> None:
    """They cancel at an optimum without active rows."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        F = rng.standard_normal((6, 6))
        H, g = F.T @ F + 0.1 * np.eye(6), 1e6 * rng.standard_normal(6)
        sol = nbqp.solve_qp(H, g, settings=nbqp.Settings(eps_rel=1e-9))
        assert sol.status is nbqp.Status.SOLVED
        np.testing.assert_allclose(sol.x, np.linalg.solve(H, -g), rtol=1e-6)


def test_ill_conditioned_rows_of_lps_are_met() -> None:
    """Directions that the factor solved to 1e-7 only made the smoothed phase leave feasibility."""
    rng = np.random.default_rng(9)
    g = -np.zeros((150, 64))
    for row in g:
        for cell in rng.permutation(16)[:6]:
            row[4 * cell + rng.integers(4)] = -1.0
    left, _, right = np.linalg.svd(rng.random((40, 64)), full_matrices=False)
    A = left @ np.diag(np.logspace(0.0, -5.0, 40) * 5.0) @ right
    sol = nbqp.solve_batch(None, g, A, A @ np.exp(rng.standard_normal(64)), lb=0.0)
    solved = np.array([status is nbqp.Status.SOLVED for status in sol.status])
    # A few in a thousand of such LPs are beyond double precision, whichever way they are solved.
    assert solved.mean() >= 0.99
    assert sol.primal_residual()[solved].max() <= 1e-8
