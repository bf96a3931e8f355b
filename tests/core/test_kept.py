"""What is found once: results by what they were made of, and what follows from a QP's matrices."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest

import nbqp
from nbqp.kept import Kept


def made(kept: Kept[str], name: str, size: int = 1) -> bool:
    """Whether a result was not kept and is made now."""
    calls: list[str] = []

    def make() -> str:
        calls.append(name)
        return name

    assert kept.find(size, lambda: name, make) == name
    return bool(calls)


def test_the_latest_results_are_kept() -> None:
    kept = Kept[str](count=2, size=10)
    assert made(kept, "a")
    assert made(kept, "b")
    assert not made(kept, "a")
    assert made(kept, "c")
    assert not made(kept, "a")
    assert made(kept, "b")


def test_results_that_are_too_large_are_not_kept() -> None:
    kept = Kept[str](count=5, size=10)
    assert made(kept, "small", 4)
    assert made(kept, "huge", 11)
    assert made(kept, "huge", 11)
    assert not made(kept, "small", 4)
    assert made(kept, "large", 7)
    assert made(kept, "small", 4)


def test_a_failure_is_not_kept() -> None:
    kept = Kept[str](count=5, size=10)

    def fail() -> str:
        raise ValueError("no result")

    with pytest.raises(ValueError, match="no result"):
        kept.find(1, lambda: "a", fail)
    assert made(kept, "a")


def counting(monkeypatch: pytest.MonkeyPatch, place: str, function: Any) -> list[None]:
    """The calls of a function from now on."""
    calls: list[None] = []

    def counted(*args: Any) -> Any:
        calls.append(None)
        return function(*args)

    monkeypatch.setattr(place, counted)
    return calls


def test_solves_and_derivatives_share_what_follows_from_the_matrices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scalings = counting(monkeypatch, "nbqp.execution.shared_scaling", nbqp.execution.shared_scaling)
    judgements = counting(
        monkeypatch, "nbqp.convexity.mark_nonconvex", nbqp.convexity.mark_nonconvex
    )
    rng = np.random.default_rng(0)
    L, A = rng.standard_normal((5, 5)), rng.standard_normal((2, 5))
    solver = nbqp.Solver(L @ L.T + np.eye(5), rng.standard_normal(5), A, np.ones(2), lb=-1.0)
    for _ in range(3):
        solver.update(g=rng.standard_normal(5))
        nbqp.vjp(solver.solve(), dL_dx=np.ones(5))
    assert (len(scalings), len(judgements)) == (1, 1)
    solver.update(A=2.0 * A)
    solver.solve()
    assert (len(scalings), len(judgements)) == (2, 1)


def test_a_scaling_that_was_cut_short_serves_no_other_solve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(1)
    A = rng.standard_normal((3, 6)) * 10.0 ** rng.integers(-3, 4, 6)
    data = {"H": np.eye(6), "g": rng.standard_normal(6), "A": A, "b": A @ np.ones(6), "lb": 0.0}
    expected, scale = nbqp.solve_qp(**data), nbqp.execution.shared_scaling

    def cut_short(pattern: Any, H: Any, A: Any, C: Any, abort: Any, scaling: Any) -> None:
        abort[0] = 1
        scale(pattern, H, A, C, abort, scaling)

    solver = nbqp.Solver(**data)
    with monkeypatch.context() as patch:
        patch.setattr("nbqp.execution.shared_scaling", cut_short)
        assert solver.solve().status is nbqp.Status.TIME_LIMIT_REACHED
    np.testing.assert_array_equal(solver.solve().x, expected.x)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda qp: pickle.loads(pickle.dumps(qp))])
def test_copies_of_a_problem_find_all_anew(duplicate: Any) -> None:
    solution = nbqp.solve_qp(np.eye(40), np.ones(40), A=np.ones((1, 40)), b=np.ones(1))
    problem = duplicate(solution.problem)
    np.testing.assert_array_equal(problem.A.values, solution.problem.A.values)
    calls: list[None] = []
    problem.found.find("scaling", lambda: calls.append(None))
    assert calls == [None]
    assert len(pickle.dumps(solution.problem.found)) < 200


def test_every_sample_keeps_the_scaling_of_its_matrices() -> None:
    rng = np.random.default_rng(2)
    L = rng.standard_normal((11, 9, 9))
    H = L @ L.swapaxes(1, 2) + np.eye(9)
    A = rng.standard_normal((11, 3, 9)) * 10.0 ** rng.integers(-3, 4, 9)
    solution = nbqp.solve_batch(H, rng.standard_normal((11, 9)), A, A @ np.ones(9), lb=-1.0)
    D, E, _ = solution.problem.found.find("scaling", lambda: None)
    rows = np.abs(E[:, :, None] * A * D[:, None]).max(axis=2)
    columns = np.abs(D[:, :, None] * H * D[:, None]).max(axis=1)
    columns = np.maximum(columns, np.abs(E[:, :, None] * A * D[:, None]).max(axis=1))
    np.testing.assert_allclose(rows, 1.0, atol=0.1)
    np.testing.assert_allclose(columns, 1.0, atol=0.1)
    anew = dataclasses.replace(solution, problem=copy.deepcopy(solution.problem))
    gradients, again = (nbqp.vjp(s, dL_dx=np.ones((11, 9))) for s in (solution, anew))
    np.testing.assert_array_equal(gradients.dL_dH, again.dL_dH)
    np.testing.assert_array_equal(gradients.dL_dA, again.dL_dA)
