"""What a solve takes, counted on fixed problems: slower machines change nothing, slower code does."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import scipy.sparse as sp

import nbqp
from nbqp.analysis import analyse_qp
from nbqp.execution import new_output, shared_or_own_scaling, to_options, to_warm_start
from nbqp.kernels.jit import entry
from nbqp.kernels.lane_problem import Batch, put_sample, share_rows
from nbqp.kernels.smoothed import WITHIN, measure_point, take_step
from nbqp.kernels.starting import BALANCE, OUTWARD, regularise, start_smoothed
from nbqp.kernels.state import new_workspace
from nbqp.kernels.structure import (
    DataReference,
    EntriesReference,
    FactorReference,
    OutputReference,
    PatternReference,
    PointReference,
    ScalingReference,
)
from nbqp.kernels.vector import WIDTH, splat
from nbqp.problem import QP
from nbqp.watch import Watch
from tests.core.infeasible import random_infeasible_mixture
from tests.core.strategies import random_mixture

CLOSEST = nbqp.Settings(eps_abs=1e-9, primal_infeasibility_solving=True)
EPS = nbqp.Settings(eps_abs=1e-9)


def sudoku_shaped(curvature: float, feasible: bool) -> dict[str, Any]:
    """A 40 x 64 and uniform, one-hot costs, x >= 0: the programs that a Sudoku layer meets."""
    rng = np.random.default_rng(3)
    A, g = rng.random((40, 64)), np.zeros((41, 16, 4))
    for row in g:
        cells = rng.permutation(16)[:6]
        row[cells, rng.integers(4, size=6)] = -1.0
    H = curvature * np.eye(64) if curvature else None
    b = A @ np.exp(rng.standard_normal(64)) if feasible else np.ones(40)
    return {"H": H, "g": g.reshape(41, 64), "A": A, "b": b, "lb": 0.0}


def dense(n: int) -> dict[str, Any]:
    """40 QPs that share nothing, with n/4 equations and n rows."""
    rng = np.random.default_rng(5)
    L, A, C = (rng.standard_normal((40, rows, n)) for rows in (n, n // 4, n))
    x0 = rng.standard_normal((40, n, 1))
    return {
        "H": L.swapaxes(1, 2) @ L / n + 0.1 * np.eye(n),
        "g": rng.standard_normal((40, n)),
        "A": A,
        "b": (A @ x0)[:, :, 0],
        "C": C,
        "u": (C @ x0)[:, :, 0] + rng.random((40, n)),
    }


def chain(stages: int) -> dict[str, Any]:
    """Eight controllers of three masses in a row, each pushed, from other first positions."""
    rng = np.random.default_rng(6)
    step = np.eye(6) + 0.1 * np.block(
        [
            [np.zeros((3, 3)), np.eye(3)],
            [np.diag([1.0, 1.0], 1) - 2.0 * np.eye(3) + np.diag([1.0, 1.0], -1), np.zeros((3, 3))],
        ]
    )
    push = np.vstack([np.zeros((3, 3)), 0.1 * np.eye(3)])
    rows = [
        sp.kron(sp.eye_array(stages), np.hstack([push, -np.eye(6)])),
        sp.kron(sp.eye_array(stages, k=-1), np.hstack([np.zeros((6, 3)), step])),
    ]
    b = np.zeros((8, 6 * stages))
    b[:, :6] = -0.5 * rng.standard_normal((8, 6)) @ step.T
    bound = np.tile([0.5] * 3 + [4.0] * 6, stages)
    return {
        "H": sp.eye_array(9 * stages, format="csc"),
        "g": np.zeros(9 * stages),
        "A": sp.csc_array(rows[0] + rows[1]),
        "b": b,
        "lb": -bound,
        "ub": bound,
    }


@pytest.mark.parametrize(
    ("data", "settings", "most"),
    [
        (dense(50), EPS, 10.3),
        pytest.param(
            *(dense(100), EPS, 12.4),
            marks=pytest.mark.skipif(
                numba.config.DISABLE_JIT, reason="as plain Python it takes minutes"
            ),
        ),
        (chain(12), EPS, 7.0),
        (sudoku_shaped(0.1, True), EPS, 9.6),
        (sudoku_shaped(0.0, True), EPS, 10.8),
        (sudoku_shaped(0.0, False), CLOSEST, 23.0),
    ],
    ids=["dense-50", "dense-100", "control", "qp", "lp", "closest"],
)
def test_factorisations_of_a_batch(
    data: dict[str, Any], settings: nbqp.Settings, most: float
) -> None:
    sol = nbqp.solve_batch(**data, settings=settings)
    assert all(status.name.startswith("SOLVED") for status in sol.status)
    assert sol.info.factorizations.mean() <= most


@pytest.mark.parametrize(
    ("curvature", "change", "most"),
    [(0.1, 0.01, 2.5), (0.1, 0.1, 6.0), (0.0, 0.003, 5.0), (0.0, 0.01, 7.5)],
)
def test_a_warm_start_saves_steps(curvature: float, change: float, most: float) -> None:
    """From the solutions before A, and b with it, have changed a little, as between epochs."""
    data = sudoku_shaped(curvature, True)
    rng = np.random.default_rng(4)
    before = nbqp.solve_batch(**data, settings=EPS)
    z0 = np.linalg.lstsq(data["A"], data["b"])[0]
    data["A"] = data["A"] * (1.0 + change * rng.standard_normal(data["A"].shape))
    data["b"] = data["A"] @ z0
    cold = nbqp.solve_batch(**data, settings=EPS)
    warm = nbqp.solve_batch(**data, settings=EPS, warm_start=before)
    assert all(status is nbqp.Status.SOLVED for status in warm.status)
    assert warm.info.iter.mean() <= min(most, 0.9 * cold.info.iter.mean())
    np.testing.assert_allclose(
        np.sum(warm.x * data["g"], axis=1) + 0.5 * curvature * np.sum(warm.x**2, axis=1),
        np.sum(cold.x * data["g"], axis=1) + 0.5 * curvature * np.sum(cold.x**2, axis=1),
        atol=1e-7,
    )


@pytest.mark.large
def test_factorisations_of_varied_problems() -> None:
    feasible = [
        nbqp.solve_qp(**problem.args, settings=EPS)
        for problem in random_mixture(np.random.default_rng(7), 200)
    ]
    infeasible = [
        nbqp.solve_qp(**problem.args, settings=CLOSEST)
        for problem in random_infeasible_mixture(np.random.default_rng(5), 120)
    ]
    # Those of single hard ones differ between machines.
    assert np.median([sol.info.factorizations for sol in feasible]) <= 10
    assert np.mean([sol.info.factorizations for sol in infeasible]) <= 20


def test_single_dense_programs_end_with_a_step_for_the_sides_that_hold() -> None:
    """10 steps in the median; where the sides were sought at residuals of 1e-5, by semismooth steps, 12."""
    counts = []
    for seed in range(7):
        rng = np.random.default_rng(seed)
        n, n_eq = 60, 15
        L, A, C = (rng.standard_normal((rows, n)) for rows in (n, n_eq, n))
        x0 = rng.standard_normal(n)
        H, u = L.T @ L / n + 0.1 * np.eye(n), C @ x0 + rng.random(n)
        found = nbqp.solve_qp(H, rng.standard_normal(n), A, A @ x0, C, u=u, settings=EPS)
        worst = max(found.primal_residual(), found.dual_residual(), abs(found.duality_gap()))
        assert worst <= EPS.eps_abs
        counts.append(found.info.iter)
    assert np.median(counts) <= 10
    assert max(counts) <= 12


@entry
def take_steps(
    pattern_values, factor_values, entries_values, data, scaling, warm, options, abort, out, count
):
    """Start the first eight QPs of a batch in lanes, and take so many steps with all of them."""
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    ws = new_workspace(0.0, pattern, factor, entries, abort)
    wide = new_workspace(splat(0.0), pattern, factor, entries, abort)
    batch = Batch(
        DataReference(*data),
        ScalingReference(*scaling),
        PointReference(*warm),
        np.zeros(len(out.status), dtype=np.bool_),
        options,
        options,
        OutputReference(*out),
    )
    share_rows(ws, batch, wide)
    for lane in range(WIDTH):
        put_sample(ws, batch, lane, wide, lane)
    regularise(wide)
    start_smoothed(wide, OUTWARD, BALANCE)
    total, sides = measure_point(wide, options, 0.0)
    for _ in range(count):
        take_step(wide, 0.0, WITHIN, total, sides)
        total, sides = measure_point(wide, options, 0.0)


def allocations(run: Callable[[], Any]) -> int:
    """How many arrays kernels make in a second run."""
    from numba.core.runtime import _nrt_python, rtsys

    _nrt_python.memsys_enable_stats()
    run()
    before = rtsys.get_allocation_stats().mi_alloc
    run()
    return int(rtsys.get_allocation_stats().mi_alloc - before)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="NumPy allocates where kernels do not")
@pytest.mark.parametrize("curvature", [0.1, 0.0])
def test_a_newton_step_of_eight_allocates_nothing(curvature: float) -> None:
    qp = QP(**sudoku_shaped(curvature, True), batch=True)
    watch = Watch()
    analysis, scaling = analyse_qp(qp, watch), shared_or_own_scaling(qp, watch)
    warm = to_warm_start(None, (qp.n, qp.n_eq, qp.n_in, qp.n), qp.batch)
    out, options = new_output(qp), to_options(EPS)

    def run(count: int) -> Callable[[], Any]:
        common = *analysis, qp.data(), scaling, warm, options, watch.abort, out
        return lambda: take_steps(*common, count)

    assert allocations(run(2)) == allocations(run(7)) > 0


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="NumPy allocates where kernels do not")
def test_a_sample_allocates_as_much_as_its_checks() -> None:
    """Eight each, two at most. The first eight QPs are started in their lanes, the others in a workspace beside."""
    for data in (sudoku_shaped(0.1, True), sudoku_shaped(0.0, True)):

        def run(samples: int, data: dict[str, Any] = data) -> Callable[[], Any]:
            part = {**data, "g": data["g"][:samples]}
            return lambda: nbqp.solve_batch(**part, settings=EPS, threads=1)

        counts = [allocations(run(samples)) for samples in (9, 25, 41)]
        assert counts[1] - counts[0] <= 16 * 16
        assert counts[2] - counts[1] <= 16 * 16


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="NumPy allocates where kernels do not")
def test_a_sample_of_the_derivatives_allocates_little() -> None:
    """Four arrays: a group of eight looks for null vectors."""
    data = sudoku_shaped(0.1, True)
    few, many = (
        nbqp.solve_batch(**{**data, "g": data["g"][:samples]}, settings=EPS) for samples in (8, 40)
    )
    counts = [allocations(lambda s=s: nbqp.vjp(s, dL_dx=s.x)) for s in (few, many)]  # type: ignore[misc]
    assert counts[1] - counts[0] <= 4 * 32


@pytest.mark.parametrize("form", [np.asarray, sp.csc_array])
def test_gradients_of_shared_matrices_form_nothing_of_their_size_for_each_sample(form: Any) -> None:
    """Products over the batch take 15 MB: a 40 x 64 matrix for each of 2,000 samples would be 41."""
    data = sudoku_shaped(0.1, True)
    data["g"] = np.tile(data["g"], (49, 1))[:2000]
    sol = nbqp.solve_batch(**{**data, "A": form(data["A"])}, settings=EPS)
    nbqp.vjp(sol, dL_dx=sol.x)
    tracemalloc.start()
    nbqp.vjp(sol, dL_dx=sol.x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 20 * 8 * data["g"].size
