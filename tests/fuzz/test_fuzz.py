"""The fuzzer: a slice of it, what it found, and that its judge sees what is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import nbqp
from tests.core.oracles import Data
from tests.fuzz.campaign import Summary, report, run_campaign, run_chunk
from tests.fuzz.cases import APART, FAMILIES, Case, Truth, draw_case
from tests.fuzz.found import FOUND
from tests.fuzz.gradients import check_gradient
from tests.fuzz.judge import (
    Opinion,
    contradictions,
    dual_proof_faults,
    opinions,
    primal_proof_faults,
    refusal_faults,
    solution_faults,
)
from tests.fuzz.shrink import shrink
from tests.fuzz.trial import run_case

SEED = 2026


def solved(case: Case) -> nbqp.Solution:
    return nbqp.solve_qp(**case.data.args(), settings=nbqp.Settings(**case.settings))


@pytest.mark.parametrize("case", FOUND, ids=lambda case: case.name.replace(" ", "-"))
def test_what_was_found_is_mended(case: Case) -> None:
    verdict = run_case(case)
    assert verdict.faults == ()
    assert verdict.solved or case.apart


def test_a_slice_of_the_campaign_finds_nothing_wrong() -> None:
    summary = Summary(SEED)
    for verdict in run_chunk(SEED, 0, 1000):
        summary.add(verdict)
    assert summary.wrong == []
    assert summary.wrong_gradients == []
    assert summary.solved_share >= 0.995
    assert summary.told_share >= 0.9
    assert len(summary.gradients) >= 250
    assert {check.regular for _, check in summary.gradients} == {True, False}
    assert set(summary.tallies) == {*FAMILIES, *APART}
    assert f"{summary.cases:,} cases, seed {SEED}" in report(summary)


def test_the_campaign_counts_every_case_on_every_number_of_processes() -> None:
    one, two = (run_campaign(SEED, 30, np.inf, processes) for processes in (1, 2))
    assert one.cases == two.cases == 30
    assert one.tallies == two.tallies


def test_what_is_planted_is_true() -> None:
    counts, solves = dict.fromkeys(Truth, 0), 0
    for index in range(1500):
        case = draw_case(SEED, index)
        counts[case.truth] += 1
        if case.truth is Truth.SOLVABLE:
            assert case.point is not None
            planted = Opinion.of(case, "planted", case.point)
            # Rounding alone takes more than some tolerances allow, beside high costs.
            assert planted.excess <= (1.0 if planted.attainable else 100.0), case
            solves += planted.solves
        else:
            assert case.point is None
    assert min(counts.values()) > 50
    assert solves > 0.95 * counts[Truth.SOLVABLE]


@pytest.fixture(scope="module")
def case() -> Case:
    """One with equations, whose solution has active rows and bounds."""
    for index in range(1000):
        drawn = draw_case(SEED, index)
        data, plain = drawn.data, drawn.name.startswith("regular") and drawn.settings == {}
        if plain and 3 <= data.n <= 12 and len(data.b) > 0:
            found = solved(drawn)
            if np.abs(found.z).max(initial=0.0) > 0.1 and np.abs(found.z_box).max() > 0.1:
                return drawn
    raise AssertionError("no such case")


LIES = {
    "x": lambda found: found.x + 1e-6,
    "y": lambda found: found.y + 1e-6,
    "z": lambda found: -found.z,
    "z_box": lambda found: np.zeros_like(found.z_box),
    "s_box": lambda found: np.full_like(found.s_box, 1e-9),
}


@pytest.mark.parametrize("part", LIES)
def test_the_judge_sees_a_point_that_is_no_solution(case: Case, part: str) -> None:
    found = solved(case)
    assert list(solution_faults(case, found, "SOLVED")) == []
    lie = dataclasses.replace(found, **{part: LIES[part](found)})
    assert list(solution_faults(case, lie, "SOLVED")) != []


def test_the_judge_sees_a_higher_objective_than_others_found(case: Case) -> None:
    found, others = solved(case), opinions(case)
    assert [other.name for other in others if other.solves][-1] == "the planted point"
    assert list(contradictions(case, found, "SOLVED", others)) == []
    moved = (dataclasses.replace(found, x=found.x + step) for step in (1e-3, -1e-3))
    seen = [len(list(contradictions(case, point, "SOLVED", others))) for point in moved]
    assert max(seen) == len(others)


INFEASIBLE = Data(g=np.ones(2), C=np.ones((1, 2)), l=np.array([3.0]), lb=np.zeros(2), ub=np.ones(2))
UNBOUNDED = Data(g=np.array([-1.0, 0.0]), C=np.array([[1.0, -1.0]]), u=np.zeros(1), lb=np.zeros(2))


def test_the_judge_sees_a_proof_that_proves_nothing() -> None:
    case = Case("", INFEASIBLE.full())
    found = solved(case)
    assert found.status is nbqp.Status.PRIMAL_INFEASIBLE
    proof = found.certificate
    assert proof is not None
    assert list(primal_proof_faults(case, proof)) == []
    for change in ({"z": -proof.z}, {"z_box": 0.0 * proof.z_box}, {"z": proof.z * (1.0 + 1e-8)}):
        assert list(primal_proof_faults(case, proof._replace(**change))) != []
    feasible = dataclasses.replace(case, data=dataclasses.replace(case.data, l=np.array([1.5])))
    assert list(contradictions(feasible, found, "PRIMAL_INFEASIBLE", opinions(feasible))) != []


def test_the_judge_sees_a_direction_that_does_not_descend_for_ever() -> None:
    case = Case("", UNBOUNDED.full())
    found = solved(case)
    assert found.status is nbqp.Status.DUAL_INFEASIBLE
    proof = found.certificate
    assert proof is not None
    assert list(dual_proof_faults(case, proof)) == []
    for x in (-proof.x, np.array([1.0, 0.9]), np.array([0.0, 1.0]), np.array([np.nan, 1.0])):
        assert list(dual_proof_faults(case, proof._replace(x=x))) != []
    curved = dataclasses.replace(case, data=dataclasses.replace(case.data, H=1e-2 * np.eye(2)))
    assert list(dual_proof_faults(curved, proof)) != []
    assert list(contradictions(curved, found, "DUAL_INFEASIBLE", opinions(curved))) != []


@pytest.mark.parametrize(("least", "refused"), [(0.0, True), (1e-3, True), (-1e-3, False)])
def test_the_judge_sees_a_wrong_refusal(least: float, refused: bool) -> None:
    data = Data(H=np.diag([1.0, least]), g=np.zeros(2)).full()
    assert list(refusal_faults(data, refused)) != []
    assert list(refusal_faults(data, not refused)) == []


def test_the_check_of_gradients_sees_a_wrong_one(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = solved(case)
    right = check_gradient(case, found)
    assert right is not None
    assert right.error <= 1e-6 * right.condition
    vjp = nbqp.vjp

    def wrong(*args: Any, **kwargs: Any) -> nbqp.Gradients:
        grads = vjp(*args, **kwargs)
        return dataclasses.replace(grads, dL_dub=grads.dL_dub + 1e-2 * np.eye(len(found.x))[0])

    monkeypatch.setattr(nbqp, "vjp", wrong)
    seen = check_gradient(case, found)
    assert seen is not None
    assert seen.error > 1e3 * right.error


def test_shrinking_leaves_what_fails() -> None:
    start = draw_case(SEED, 1)

    def fails(case: Case) -> bool:
        return bool((case.data.ub < np.inf).any())

    start = dataclasses.replace(
        start, data=dataclasses.replace(start.data, ub=np.full(start.data.n, 9.87654))
    )
    small = shrink(start, fails)
    assert (small.data.n, len(small.data.b), len(small.data.l)) == (1, 0, 0)
    assert fails(small)
    assert small.data.ub == pytest.approx(10.0)
