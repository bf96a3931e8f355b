"""What a solve takes, counted on fixed problems: slower machines change nothing, slower code does."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numba
import numpy as np
import pytest
import scipy.sparse as sp

import nbqp
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


@pytest.mark.parametrize(
    ("data", "settings", "most"),
    [
        (sudoku_shaped(0.1, True), EPS, 9.6),
        (sudoku_shaped(0.0, True), EPS, 10.8),
        (sudoku_shaped(0.0, False), CLOSEST, 23.0),
    ],
    ids=["qp", "lp", "closest"],
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


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="NumPy allocates where kernels do not")
def test_a_newton_step_allocates_nothing() -> None:
    """A sample costs those of its checks, eight each, two at most: more than one in each step would show.

    The first eight are started in their lanes, the others beside them, in a workspace of their own.
    """
    from numba.core.runtime import _nrt_python, rtsys

    _nrt_python.memsys_enable_stats()

    def allocations(data: dict[str, Any], samples: int) -> int:
        part = {**data, "g": data["g"][:samples]}
        nbqp.solve_batch(**part, settings=EPS, threads=1)
        before = rtsys.get_allocation_stats().mi_alloc
        nbqp.solve_batch(**part, settings=EPS, threads=1)
        return int(rtsys.get_allocation_stats().mi_alloc - before)

    for data in (sudoku_shaped(0.1, True), sudoku_shaped(0.0, True)):
        counts = [allocations(data, samples) for samples in (9, 25, 41)]
        assert counts[1] - counts[0] <= 16 * 16
        assert counts[2] - counts[1] <= 16 * 16


@pytest.mark.parametrize("form", [np.asarray, sp.csc_array])
def test_gradients_of_shared_matrices_form_nothing_of_their_size_for_each_sample(form: Any) -> None:
    """Products over the batch: a 40 x 64 matrix for each of 2,000 samples would take 41 MB."""
    data = sudoku_shaped(0.1, True)
    data["g"] = np.tile(data["g"], (49, 1))[:2000]
    sol = nbqp.solve_batch(**{**data, "A": form(data["A"])}, settings=EPS)
    nbqp.vjp(sol, dL_dx=sol.x)
    tracemalloc.start()
    nbqp.vjp(sol, dL_dx=sol.x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 40 * 8 * data["g"].size
