"""Batches: each sample as if it were alone, whatever its neighbours and threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import nbqp
from nbqp import threads
from tests.core.oracles import Data, residuals

EPS = 1e-9
SETTINGS = nbqp.Settings(eps_abs=EPS)
BATCH, N, N_EQ, N_IN = 40, 12, 3, 8


def arguments() -> dict[str, Any]:
    rng = np.random.default_rng(8)
    A, x = rng.standard_normal((BATCH, N_EQ, N)), rng.random((BATCH, N))
    C, M = rng.standard_normal((N_IN, N)), rng.standard_normal((N, N))
    return {
        "H": M @ M.T,
        "g": rng.standard_normal((BATCH, N)),
        "A": A,
        "b": np.einsum("kij,kj->ki", A, x),
        "C": C,
        "l": x @ C.T - 0.1,
        "u": x @ C.T + rng.random((BATCH, N_IN)),
        "lb": 0.0,
        "ub": 2.0,
    }


ARGS = arguments()


def take(rows: Any) -> dict[str, Any]:
    """The same batch with some samples, in some order."""
    return {
        name: value[rows]
        if np.ndim(value) > (2 if name in "HAC" else 1) or name in "gblu"
        else value
        for name, value in ARGS.items()
    }


def same(one: nbqp.BatchSolution, other: nbqp.BatchSolution, rows: Any) -> None:
    for name in ("x", "y", "z", "z_box", "status"):
        np.testing.assert_array_equal(getattr(one, name)[rows], getattr(other, name))


def test_every_sample_is_solved_on_its_own_data() -> None:
    sol = nbqp.solve_batch(**ARGS, settings=SETTINGS)
    assert all(status is nbqp.Status.SOLVED for status in sol.status)
    assert sol.primal_residual().shape == (BATCH,)
    for k in range(BATCH):
        data = Data(**{name: np.asarray(v) for name, v in take(k).items()})
        res = residuals(data, sol.x[k], sol.y[k], sol.z[k], sol.z_box[k])
        assert max(abs(r) for r in res) <= EPS


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_are_bit_for_bit_those_of_any_other_batch(threads: int) -> None:
    whole = nbqp.solve_batch(**ARGS, settings=SETTINGS, threads=threads)
    for rows in (slice(3, 4), slice(None, None, -1), np.random.default_rng(9).permutation(BATCH)):
        part = nbqp.solve_batch(**take(rows), settings=SETTINGS, threads=1)
        same(whole, part, rows)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_bad_sample_has_its_status_and_leaves_the_others_alone(poison: float) -> None:
    good = nbqp.solve_batch(**ARGS, settings=SETTINGS)
    g = ARGS["g"].copy()
    g[5, 0] = poison
    l = ARGS["l"].copy()
    l[7] = 1e3
    bad = nbqp.solve_batch(**{**ARGS, "g": g, "l": l}, settings=SETTINGS)
    assert bad.status[5] is bad.status[7] is nbqp.Status.INVALID_DATA
    assert np.isnan(bad.x[[5, 7]]).all()
    rest = np.setdiff1d(np.arange(BATCH), [5, 7])
    np.testing.assert_array_equal(bad.x[rest], good.x[rest])


def test_an_infeasible_sample_leaves_the_others_alone() -> None:
    """diffcp, cvxpylayers: one infeasible item ends the batch."""
    good = nbqp.solve_batch(**ARGS, settings=SETTINGS)
    b = ARGS["b"].copy()
    b[4] = 1e3
    sol = nbqp.solve_batch(**{**ARGS, "b": b}, settings=SETTINGS)
    assert sol.status[4] is nbqp.Status.PRIMAL_INFEASIBLE
    rest = np.setdiff1d(np.arange(BATCH), [4])
    np.testing.assert_array_equal(sol.x[rest], good.x[rest])


def test_shared_sparse_data_and_warm_starts() -> None:
    shared = {
        "H": sp.eye_array(N, format="csc"),
        "g": ARGS["g"],
        "C": sp.csc_array(ARGS["C"]),
        "u": 1.0,
    }
    cold = nbqp.solve_batch(**shared, settings=SETTINGS)
    warm = nbqp.solve_batch(**shared, settings=SETTINGS, warm_start=cold)
    assert all(status is nbqp.Status.SOLVED for status in warm.status)
    # A solve aims a little below its tolerance, which a start within the tolerance may still have to reach.
    assert warm.info.iter.max() <= 1
    assert np.mean(warm.info.iter == 0) >= 0.9
    np.testing.assert_allclose(warm.x, cold.x, atol=1e-8)


def test_batch_sizes_have_to_agree() -> None:
    with pytest.raises(nbqp.ShapeError, match="expected a batch of"):
        nbqp.solve_batch(np.eye(2), np.ones((3, 2)), lb=np.zeros((2, 2)))


@pytest.mark.parametrize(
    "data",
    [
        {"lb": np.zeros((0, 3))},
        {"C": np.ones((1, 3)), "u": np.zeros((0, 1))},
        {"C": np.ones((0, 2, 3)), "l": 0.0},
        {"H": np.zeros((0, 3, 3))},
    ],
)
def test_an_empty_batch_may_be_that_of_any_datum(data: dict[str, np.ndarray]) -> None:
    sol = nbqp.solve_batch(**{"H": np.eye(3), "g": np.zeros(3), **data})
    assert sol.x.shape == (0, 3)
    assert len(sol.status) == 0


def test_an_empty_batch_is_no_error() -> None:
    sol = nbqp.solve_batch(np.eye(2), np.ones((0, 2)))
    assert sol.x.shape == (0, 2)


def test_a_batch_of_one_bad_sample_has_a_status_too() -> None:
    sol = nbqp.solve_batch(np.eye(2), np.full((1, 2), np.nan))
    assert sol.status[0] is nbqp.Status.INVALID_DATA


@pytest.mark.parametrize("method", ["auto", "semismooth"])
def test_a_sample_that_overflows_does_not_return_its_neighbours_solution(method: str) -> None:
    settings = nbqp.Settings(method=method)
    g = np.array([[-1.0, 2.0], [1e308, 1e308]])
    sol = nbqp.solve_batch(np.eye(2), g, lb=-5.0, settings=settings)
    alone = nbqp.solve_batch(np.eye(2), g[1:], lb=-5.0, settings=settings)
    assert sol.status[0] is nbqp.Status.SOLVED
    assert sol.status[1] is alone.status[0]
    np.testing.assert_array_equal(sol.x[1], alone.x[0])


def test_a_sample_that_has_not_run_has_no_residuals() -> None:
    limit = nbqp.Settings(time_limit=1e-12)
    sol = nbqp.solve_batch(**ARGS, settings=limit)
    not_run = sol.status == nbqp.Status.NOT_RUN
    assert not_run.any()
    for res in (sol.info.pri_res, sol.info.dua_res, sol.info.duality_gap):
        np.testing.assert_array_equal(np.isnan(res), not_run)


def test_a_failed_sample_does_not_stop_a_warm_start() -> None:
    g = np.array([[1.0, 1.0], [np.nan, 1.0]])
    before = nbqp.solve_batch(np.eye(2), g, lb=-0.5)
    after = nbqp.solve_batch(np.eye(2), np.nan_to_num(g), lb=-0.5, warm_start=before)
    assert [status.name for status in after.status] == ["SOLVED", "SOLVED"]
    np.testing.assert_allclose(after.x, [[-0.5, -0.5], [0.0, -0.5]], atol=1e-8)


def test_a_representation_is_a_line() -> None:
    sol = nbqp.solve_batch(np.eye(2), np.ones((50, 2)), lb=[0.0, 0.0], ub=np.ones(2))
    assert repr(sol).startswith(
        "BatchSolution(status={'SOLVED': 50}, n=2, n_eq=0, n_in=0, run_time="
    )
    single = nbqp.solve_qp(np.eye(2), np.ones(2))
    assert repr(single).startswith("Solution(status=SOLVED, n=2, n_eq=0, n_in=0, info=Info(iter=")
    assert "\n" not in repr(sol) + repr(single)


def test_a_thread_gets_its_share_of_work_or_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WORTH", 1e-3)
    monkeypatch.setattr(threads, "_processors", lambda: 4)
    count = threads.thread_count
    assert [count(1000, None, work) for work in (0.0, 1.9e-3, 2.1e-3, 1.0)] == [1, 1, 2, 4]
    assert count(1000, 3, 1.0) == 3
    assert [count(batch, None, 1.0) for batch in (0, 1, 2, 3)] == [1, 1, 2, 3]
    assert [count(batch, None, 1.0, at_once=8) for batch in (15, 16, 31, 40)] == [1, 2, 3, 4]
