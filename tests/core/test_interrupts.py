"""Ctrl-C and time limits in the middle of things: an honest answer, at once, and nothing is spoilt."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import nbqp
from nbqp.analysis import analyse_qp
from nbqp.convexity import find_nonconvex
from nbqp.kernels.jit import entry
from nbqp.kernels.kkt import factor_system, refactor_system
from nbqp.kernels.state import new_system
from nbqp.kernels.structure import EntriesReference, FactorReference, PatternReference
from nbqp.problem import QP
from nbqp.watch import OutOfTime, Watch

LONGEST = 10.0
"""Seconds that only a factorisation which goes on to its end takes."""


@entry
def factor_aborted(pattern_values, factor_values, entries_values, H, A, C, w, abort, out):
    """Factorise with abort[0] as given, then with 0; returns what is left undone of the former.

    out (2, values of the factor): overwritten by the second factor, and by one made with none before it.
    """
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    system = new_system(0.0, pattern, factor, abort)
    system.rho[0] = 1e-8
    system.mu_e[:] = 1e-6
    system.w[:] = w
    factor_system(pattern, factor, entries, H, A, C, system)
    undone = np.sum(np.isnan(system.factored))
    abort[0] = 0
    refactor_system(pattern, factor, entries, H, A, C, system)
    out[0] = system.L[: out.shape[1]]
    factor_system(pattern, factor, entries, H, A, C, system)
    out[1] = system.L[: out.shape[1]]
    return undone


def quadratic(rng: np.random.Generator, n: int) -> dict[str, Any]:
    C = rng.standard_normal((n, n))
    return {"H": np.eye(n), "g": rng.standard_normal(n), "C": C, "u": 0.1, "lb": -1.0}


@pytest.mark.parametrize("stopped", [0, 1])
def test_an_aborted_factorisation_is_no_factor(stopped: int) -> None:
    qp = QP(**quadratic(np.random.default_rng(0), 40) | {"u": np.full(40, 0.1)})
    analysis = analyse_qp(qp, Watch())
    out = np.zeros((2, analysis.values))
    matrices = qp.H.values[0], qp.A.values[0], qp.C.values[0]
    undone = factor_aborted(*analysis, *matrices, np.full(80, 1e-3), np.array([stopped]), out)
    assert undone == 80 * stopped
    np.testing.assert_array_equal(*out)


def test_nothing_is_said_of_an_h_that_was_not_looked_at_to_the_end() -> None:
    for batch in (False, True):
        H = np.array([[1.0, 2.0], [2.0, 1.0]])
        qp = QP(H[None] if batch else H, np.ones((1, 2)) if batch else np.ones(2), batch=batch)
        watch = Watch()
        watch.stop()
        with pytest.raises(OutOfTime):
            find_nonconvex(qp, analyse_qp(qp, Watch()), watch)
        assert find_nonconvex(qp, analyse_qp(qp, Watch()), Watch()).all()


def test_an_analysis_that_was_stopped_is_not_kept() -> None:
    H = sp.diags_array(
        [np.ones(76), np.full(77, 4.0), np.ones(76)], offsets=[-1, 0, 1], format="csc"
    )
    qp, watch = QP(H, np.ones(77)), Watch()
    watch.stop()
    with pytest.raises(OutOfTime):
        analyse_qp(qp, watch)
    assert sorted(analyse_qp(qp, Watch()).factor.perm) == list(range(77))


def assert_equal(one: Any, other: Any) -> None:
    """Bit for bit."""
    assert np.all(one.status == other.status)
    for name in ("x", "y", "z", "z_box", "s_e", "s_i", "s_box"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("limit", [1e-9, 1e-4, 1e-3, 1e-2])
def test_a_limit_anywhere_gives_an_honest_point_and_spoils_nothing(limit: float) -> None:
    data = quadratic(np.random.default_rng(0), 60) | {"u": np.full(60, 0.1)}
    solver = nbqp.Solver(**data)
    expected = solver.solve()
    for method in ("auto", "semismooth"):
        settings = nbqp.Settings(time_limit=limit, method=method)
        for sol in (nbqp.solve_qp(**data, settings=settings), solver.solve()):
            assert sol.status in (nbqp.Status.SOLVED, nbqp.Status.TIME_LIMIT_REACHED)
            assert np.isfinite(sol.x).all()
            if sol.status is nbqp.Status.SOLVED:
                assert max(sol.primal_residual(), sol.dual_residual()) <= 1e-8
            if sol.info.iter > 0:
                assert sol.info.pri_res == pytest.approx(sol.primal_residual(), rel=1e-6, abs=1e-12)
                assert sol.info.dua_res == pytest.approx(sol.dual_residual(), rel=1e-6, abs=1e-12)
    assert_equal(solver.solve(), expected)


def test_a_batch_that_has_no_time_says_so_of_every_sample() -> None:
    H = np.stack([np.eye(3), np.diag([1.0, 1.0, -1.0]), np.full((3, 3), np.nan)])
    for matrix in (H, H[0]):
        sol = nbqp.solve_batch(
            matrix, np.ones((3, 3)), lb=-1.0, settings=nbqp.Settings(time_limit=1e-9)
        )
        names = [status.name for status in sol.status]
        invalid = "INVALID_DATA" if matrix is H else "NOT_RUN"
        assert names == ["NOT_RUN", "NOT_RUN", invalid]


def test_a_time_limit_ends_the_scaling_of_large_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()

    def scale(*arguments: Any) -> None:
        abort, end = arguments[4], time.perf_counter() + 60.0
        while time.perf_counter() < end and not told.is_set():
            time.sleep(0.01)
            if abort[0] != 0:
                told.set()

    def solve(limit: float) -> nbqp.BatchSolution:
        settings = nbqp.Settings(time_limit=limit)
        return nbqp.solve_batch(np.eye(3), np.ones((4, 3)), C=np.ones((1, 3)), settings=settings)

    assert set(solve(60.0).status) == {nbqp.Status.SOLVED}
    monkeypatch.setattr("nbqp.threads.MANY_BYTES", 0)
    monkeypatch.setattr("nbqp.execution.shared_scaling", scale)
    assert set(solve(0.5).status) == {nbqp.Status.NOT_RUN}
    assert told.wait(60.0)


def raise_interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("g", "nbqp.problem.QP.with_vectors"),
        ("H", "nbqp.solver.find_nonconvex"),
        ("H", "copy.deepcopy"),
        ("H", "nbqp.solver._State"),
    ],
)
def test_an_interrupted_update_has_changed_nothing(
    name: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = nbqp.Solver(np.eye(2), np.array([-1.0, 2.0]), lb=-3.0)
    expected = solver.solve()
    data = {"g": np.array([5.0, 5.0]), "H": 2.0 * np.eye(2)}
    with monkeypatch.context() as patch:
        patch.setattr(place, raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            solver.update(**{name: data[name]})
    assert_equal(solver.solve(), expected)
    solver.update(lb=-3.0)
    np.testing.assert_allclose(solver.solve().x, [1.0, -2.0], atol=1e-8)


def filled(n: int = 12_000) -> dict[str, Any]:
    """Its factor is dense: one factorisation takes much longer than LONGEST."""
    rng = np.random.default_rng(0)
    R = sp.random_array((n, n), density=6.0 / n, rng=rng, format="csc")
    H = sp.csc_array(R + R.T + 24.0 * sp.eye_array(n))
    return {"H": H, "g": rng.standard_normal(n), "lb": -1.0}


@pytest.mark.large
def test_a_time_limit_ends_a_factorisation() -> None:
    start = time.perf_counter()
    sol = nbqp.solve_qp(**filled(), settings=nbqp.Settings(time_limit=2.0))
    assert time.perf_counter() - start < LONGEST
    assert sol.status is nbqp.Status.TIME_LIMIT_REACHED
    np.testing.assert_array_equal(sol.x, 0.0)


def interrupted(call: Callable[[], object]) -> None:
    """The call, interrupted after two seconds, ends at once."""
    handler = signal.signal(signal.SIGALRM, raise_interrupt)
    start = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, 2.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
    assert time.perf_counter() - start < LONGEST


@pytest.mark.large
def test_an_interrupt_ends_a_factorisation_and_spoils_nothing() -> None:
    """Of the check of H, of a solve, and of derivatives; the kernels do not go on behind the scenes."""
    nbqp.warmup()
    small = quadratic(np.random.default_rng(0), 60) | {"u": np.full(60, 0.1)}
    expected = nbqp.solve_qp(**small)
    data = filled()
    interrupted(lambda: nbqp.solve_qp(**data))
    unsolved = nbqp.solve_qp(**data, settings=nbqp.Settings(time_limit=0.1))
    # As if it were solved: its derivatives are those of a matrix all the same.
    solution = dataclasses.replace(unsolved, status=nbqp.Status.SOLVED)
    interrupted(lambda: nbqp.vjp(solution, dL_dx=np.ones(len(data["g"]))))
    interrupted(lambda: nbqp.jvp(solution, dg=np.ones(len(data["g"]))))
    assert_equal(nbqp.solve_qp(**small), expected)
