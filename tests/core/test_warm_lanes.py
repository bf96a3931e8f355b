"""Warm starts of a batch: the solutions of cold ones, from any start, whoever the neighbours are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nbqp
from tests.core.infeasible import random_infeasible_mixture
from tests.core.strategies import random_mixture

EPS = nbqp.Settings(eps_abs=1e-9)
PARTS = ("x", "y", "z", "z_box")
Start = tuple[np.ndarray, ...]


def parts(solution: Any) -> Start:
    return tuple(getattr(solution, name) for name in PARTS)


def assert_solutions(batch: nbqp.BatchSolution) -> None:
    """By the user's data, where a sample says that it is SOLVED; NaN fails."""
    worst = np.max([batch.primal_residual(), batch.dual_residual(), batch.duality_gap()], axis=0)
    for k, status in enumerate(batch.status):
        assert status is not nbqp.Status.SOLVED or worst[k] <= 1e-9


def moved_qps() -> tuple[dict[str, Any], Start]:
    """41 strictly convex QPs that share nothing, and the solutions from before they moved by a per cent."""
    rng = np.random.default_rng(0)
    C, x0 = rng.standard_normal((41, 15, 12)), rng.uniform(-1.0, 1.0, (41, 12))
    L = rng.standard_normal((41, 12, 12))
    data = {
        "H": L @ L.swapaxes(1, 2) + 0.1 * np.eye(12),
        "g": rng.standard_normal((41, 12)),
        "C": C,
        "u": np.einsum("kij,kj->ki", C, x0) + 0.2 + rng.random((41, 15)),
        "lb": np.full(12, -1.5),
        "ub": np.full((41, 12), 1.5),
    }
    before = nbqp.solve_batch(**data, settings=EPS)
    data["g"] = data["g"] * (1.0 + 0.01 * rng.standard_normal((41, 12)))
    data["C"] = C * (1.0 + 0.01 * rng.standard_normal(C.shape))
    return data, parts(before)


def test_sides_that_stay_take_one_step_and_few_that_change_a_few() -> None:
    data, start = moved_qps()
    cold = nbqp.solve_batch(**data, settings=EPS)
    warm = nbqp.solve_batch(**data, settings=EPS, warm_start=start)
    assert all(status is nbqp.Status.SOLVED for status in warm.status)
    assert_solutions(warm)
    np.testing.assert_allclose(warm.x, cold.x, atol=1e-7)
    held, holds = np.hstack(start[2:]) != 0.0, np.hstack(parts(cold)[2:]) != 0.0
    stay = (held == holds).all(axis=1)
    assert stay.sum() >= 20
    assert np.mean(warm.info.iter[stay] <= 2) >= 0.95
    assert warm.info.iter.mean() <= 0.4 * cold.info.iter.mean()
    np.testing.assert_array_equal(warm.info.factorizations >= warm.info.iter, True)


@pytest.mark.parametrize("threads", [1, 2])
def test_neighbours_order_and_threads_change_nothing(threads: int) -> None:
    """Beside starts that lead nowhere, are absent or not needed, and QPs without a solution."""
    data, start = moved_qps()
    alone = [
        nbqp.solve_batch(
            **{name: v[k : k + 1] if len(v) == 41 else v for name, v in data.items()},
            settings=EPS,
            warm_start=tuple(part[k : k + 1] for part in start),
        )
        for k in range(41)
    ]
    rng = np.random.default_rng(1)
    order = rng.permutation(41)
    data = {name: v[order] if len(v) == 41 else v for name, v in data.items()}
    start = tuple(part[order] for part in start)
    start[0][3] = 1e6
    start[2][5] *= -1.0
    start[2][8] = 1e3
    data["u"][11], data["C"][11, 0], data["C"][11, 1] = -50.0, 1.0, -1.0
    data["g"][14] = np.nan
    mixed = nbqp.solve_batch(**data, settings=EPS, warm_start=start, threads=threads)
    assert mixed.status[11] is nbqp.Status.PRIMAL_INFEASIBLE
    assert mixed.status[14] is nbqp.Status.INVALID_DATA
    assert_solutions(mixed)
    cold = nbqp.solve_batch(**data, settings=EPS)
    for k in (3, 5, 8):
        assert mixed.status[k] is nbqp.Status.SOLVED
        np.testing.assert_allclose(mixed.x[k], cold.x[k], atol=1e-7)
    for k in set(range(41)) - {3, 5, 8, 11, 14}:
        assert mixed.info.iter[k] == alone[order[k]].info.iter[0]
        for name in PARTS:
            one = getattr(alone[order[k]], name)[0]
            assert getattr(mixed, name)[k].tobytes() == one.tobytes()


@pytest.mark.parametrize("mixture", [random_mixture, random_infeasible_mixture])
def test_misleading_starts_end_as_cold_ones(mixture: Any) -> None:
    rng = np.random.default_rng(2)
    differ = total = 0
    for problem in mixture(np.random.default_rng(13), 60):
        g = np.asarray(problem.args["g"])
        data = {**problem.args, "g": g + 0.1 * abs(g).max() * rng.standard_normal((9, len(g)))}
        cold = nbqp.solve_batch(**data, settings=EPS)
        size = 10.0 ** rng.integers(-3, 4, (9, 1))
        start = tuple(
            np.where(np.isfinite(part), part, 0.0) + size * rng.standard_normal(part.shape)
            for part in parts(cold)
        )
        warm = nbqp.solve_batch(**data, settings=EPS, warm_start=start)
        assert_solutions(warm)
        differ += sum(a is not b for a, b in zip(cold.status, warm.status, strict=True))
        total += 9
        solved = [
            a is b is nbqp.Status.SOLVED for a, b in zip(cold.status, warm.status, strict=True)
        ]
        full = problem.data.full()
        values = [
            np.sum(s.x * (0.5 * s.x @ full.H + data["g"]), axis=1)[solved] for s in (cold, warm)
        ]
        np.testing.assert_allclose(*values, rtol=1e-6, atol=1e-6)
    # Which of two ways finds a solution at this accuracy, or a certificate, may differ.
    assert differ <= 0.01 * total


def test_a_start_has_no_multipliers_of_absent_sides_or_slack_rows() -> None:
    """The solution with such multipliers, within the tolerance, is one without when it comes back."""
    C = np.eye(4)
    start = (np.zeros((9, 4)), np.zeros((9, 0)), np.full((9, 4), -1e-10), np.zeros((9, 4)))
    start[2][:, 1] = 1e-10
    warm = nbqp.solve_batch(np.eye(4), np.zeros((9, 4)), C=C, u=1.0, settings=EPS, warm_start=start)
    assert all(status is nbqp.Status.SOLVED for status in warm.status)
    np.testing.assert_array_equal(warm.z, 0.0)
    assert warm.info.iter.max() == 0


def test_samples_begun_when_time_is_over_have_their_starts() -> None:
    """Whatever has taken a step has a point with the residuals that it says, finite ones."""
    rng = np.random.default_rng(3)
    L, C = rng.standard_normal((2, 1200, 30, 30))
    data = {
        "H": L @ L.swapaxes(1, 2) + np.eye(30),
        "g": rng.standard_normal((1200, 30)),
        "C": C,
        "u": rng.random((1200, 30)),
        "lb": -1.0,
    }
    start = parts(nbqp.solve_batch(**data, settings=EPS))
    data["g"] = data["g"] + 0.5 * rng.standard_normal((1200, 30))
    begun = 0
    for limit in (0.002, 0.004, 0.008, 0.016):
        settings = nbqp.Settings(eps_abs=1e-9, time_limit=limit)
        batch = nbqp.solve_batch(**data, settings=settings, warm_start=start, threads=1)
        out_of_time = batch.status == nbqp.Status.TIME_LIMIT_REACHED
        begun += out_of_time.sum()
        np.testing.assert_array_equal(batch.info.iter[out_of_time] > 0, True)
        reported = batch.info.pri_res[out_of_time], batch.info.dua_res[out_of_time]
        measured = batch.primal_residual()[out_of_time], batch.dual_residual()[out_of_time]
        np.testing.assert_allclose(reported, measured, rtol=1e-6, atol=1e-12)
    assert begun > 0
