"""One case, solved alone and in a batch, cold and from a warm start, judged, and differentiated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import nbqp
from tests.core.oracles import Data
from tests.fuzz.cases import Case, Truth
from tests.fuzz.gradients import GradientCheck, check_gradient
from tests.fuzz.judge import (
    Opinion,
    contradictions,
    dual_proof_faults,
    opinions,
    primal_proof_faults,
    refusal_faults,
    solution_faults,
)

REFUSED = "NonconvexError"
SOLUTIONS = ("SOLVED", "SOLVED_CLOSEST_PRIMAL_FEASIBLE")
PROOFS = {Truth.INFEASIBLE: "PRIMAL_INFEASIBLE", Truth.UNBOUNDED: "DUAL_INFEASIBLE"}
GIVEN_UP = ("NUMERICAL_ERROR", "MAX_ITER_REACHED")


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    status: by name, of the single solve and, where they differ, in a batch and from warm starts. feasible:
    whether a solution is known that doubles can hold: planted, or found by any solver where neither
    a contradiction was planted nor a proof says that the objective falls for ever. flawed: whether that
    there is none was planted, told: whether the solver says so, or found a point within the tolerances. apart: that of the case.
    """

    name: str
    family: str
    status: str
    feasible: bool
    solved: bool
    flawed: bool
    told: bool
    faults: tuple[str, ...]
    apart: str = ""
    gradient: GradientCheck | None = None


def run_case(case: Case, with_gradient: bool = False) -> Verdict:
    """Solve, judge and, if asked and defined, differentiate a case."""
    settings = nbqp.Settings(**case.settings)
    faults: list[str] = []
    args = case.data.args(case.sparse)
    batch = nbqp.solve_batch(**_stacked(case.data), settings=settings)
    first, last = _Sample(batch, 0), _Sample(batch, SAMPLES - 1)
    if not first.is_same(last):
        faults.append("two equal samples of a batch differ")
    try:
        single = nbqp.solve_qp(**args, settings=settings)
    except nbqp.NonconvexError:
        name = REFUSED
        if first.status.name != "NONCONVEX":
            faults.append(f"{REFUSED}, but {first.status.name} in a batch")
        faults += refusal_faults(case.data, refused=True)
        nothing = 4 * (False,)
        return Verdict(case.name, _family(case), name, *nothing, tuple(faults), case.apart)
    faults += refusal_faults(case.data, refused=False)
    others = opinions(case)
    start = _beside(single)
    warm = nbqp.solve_qp(**args, settings=settings, warm_start=start)
    starts = tuple(np.stack(SAMPLES * [part]) for part in start)
    warm_batch = nbqp.solve_batch(**_stacked(case.data), settings=settings, warm_start=starts)
    warm_first = _Sample(warm_batch, 0)
    if not warm_first.is_same(_Sample(warm_batch, SAMPLES - 1)):
        faults.append("two equal samples of a batch from a warm start differ")
    results = (
        ("", single),
        ("in a batch: ", first),
        ("from a warm start: ", warm),
        ("in a batch from a warm start: ", warm_first),
    )
    for where, found in results:
        faults += (where + fault for fault in _faults(case, found, others))
    statuses = [found.status.name for _, found in results]
    wanted = SOLUTIONS if case.truth is Truth.INFEASIBLE else SOLUTIONS[:1]
    solved = all(name in wanted for name in statuses)
    known = case.truth in (Truth.SOLVABLE, Truth.OPEN) and any(other.solves for other in others)
    if case.truth is Truth.OPEN:
        own = (Opinion.of(case, "", found) for _, found in results if found.status.name == "SOLVED")
        known = (known or any(one.solves for one in own)) and "DUAL_INFEASIBLE" not in statuses
    flawed = case.truth in PROOFS
    told = flawed and all(name in (*SOLUTIONS, PROOFS[case.truth]) for name in statuses)
    gradient = None
    if with_gradient and case.truth is Truth.SOLVABLE and statuses[0] == "SOLVED":
        gradient = check_gradient(case, single, batch if first.status.name == "SOLVED" else None)
    return Verdict(
        case.name,
        _family(case),
        "+".join(dict.fromkeys(statuses)),
        known,
        solved,
        flawed,
        told,
        tuple(faults),
        case.apart,
        gradient,
    )


def _family(case: Case) -> str:
    return case.name.rpartition(" ")[0]


SAMPLES = 3


def _stacked(data: Data) -> dict[str, Any]:
    """A batch of the case, a bad sample, and the case again."""
    args = {name: np.stack(SAMPLES * [value]) for name, value in data.args().items()}
    args["g"][1] = np.nan
    return args


def _beside(found: nbqp.Solution) -> tuple[Any, ...]:
    """A start a little off the point that was found, its multipliers twice as large."""
    return (1.001 * found.x + 1e-3, 2.0 * found.y, 2.0 * found.z, 2.0 * found.z_box)


PARTS = ("x", "y", "z", "z_box", "s_e", "s_i", "s_box")


class _Sample:
    """A sample of a batch, as a `Solution` has its parts."""

    def __init__(self, batch: nbqp.BatchSolution, index: int) -> None:
        for name in (*PARTS, "status"):
            setattr(self, name, getattr(batch, name)[index])
        self.certificate = nbqp.Certificate(*(part[index] for part in batch.certificate))

    def is_same(self, other: _Sample) -> bool:
        """Whether status and point are those of another, bit for bit."""
        parts = ((getattr(self, name), getattr(other, name)) for name in PARTS)
        return self.status is other.status and all(a.tobytes() == b.tobytes() for a, b in parts)


def _faults(case: Case, found: Any, others: list[Opinion]) -> Iterator[str]:
    name = found.status.name
    if name in SOLUTIONS:
        yield from solution_faults(case, found, name)
    elif name == "PRIMAL_INFEASIBLE":
        yield from primal_proof_faults(case, found.certificate)
    elif name == "DUAL_INFEASIBLE":
        yield from dual_proof_faults(case, found.certificate)
    elif name not in GIVEN_UP:
        yield f"{name}, of good data without a limit"
    yield from contradictions(case, found, name, others)
