"""Warm starts of a batch: the solutions of cold ones, from any start, whoever the neighbours are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nbqp
from nbqp.analysis import analyse_qp
from nbqp.execution import new_output, shared_or_own_scaling, to_options, to_warm_start
from nbqp.kernels.side_by_side import solve_lanes_range
from nbqp.problem import QP
from nbqp.watch import Watch
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


def test_a_sample_begun_when_time_is_over_has_its_start() -> None:
    """Its steps from there were in vain: the point with the residuals that it has, no multiplier of an absent side."""
    data, _ = moved_qps()
    rng = np.random.default_rng(3)
    qp = QP(**data, batch=True)
    watch = Watch()
    analysis = analyse_qp(qp, watch)
    start = tuple(rng.standard_normal((41, size)) for size in (12, 0, 15, 12))
    warm = to_warm_start(start, (12, 0, 15, 12), 41)
    out = new_output(qp)
    out.iter[::2] = 1
    watch.abort[0] = 1
    common = *analysis, qp.data(), shared_or_own_scaling(qp, watch), warm, to_options(EPS)
    solve_lanes_range(*common, watch.abort, 0, 41, out)
    assert not out.x[1::2].any()
    assert np.isnan(out.residuals[1::2]).all()
    x, z, z_box = start[0], np.maximum(start[2], 0.0), start[3]
    np.testing.assert_array_equal(out.x[::2], x[::2])
    np.testing.assert_array_equal(out.z[::2], z[::2])
    np.testing.assert_array_equal(out.z_box[::2], z_box[::2])
    rows = np.einsum("kij,kj->ki", data["C"], x) - data["u"]
    primal = np.maximum(rows.max(axis=1), np.abs(x).max(axis=1) - 1.5)
    forces = np.einsum("kij,ki->kj", data["C"], z) + z_box
    dual = np.abs(np.einsum("kij,kj->ki", data["H"], x) + data["g"] + forces).max(axis=1)
    np.testing.assert_allclose(out.residuals[::2, 0], np.maximum(primal, 0.0)[::2], rtol=1e-12)
    np.testing.assert_allclose(out.residuals[::2, 1], dual[::2], rtol=1e-12)
