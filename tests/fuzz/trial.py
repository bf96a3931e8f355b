"""One case, solved alone, in a batch and from a warm start, judged, and differentiated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    status: by name, of the single solve and, where they differ, in a batch and from a warm start. feasible:
    whether a solution is known that doubles can hold: planted, or found by any solver where neither
    a contradiction was planted nor a proof says that the objective falls for ever. apart: that of the case.
    """

    name: str
    family: str
    status: str
    feasible: bool
    solved: bool
    faults: tuple[str, ...]
    apart: str = ""
    gradient: GradientCheck | None = None


def run_case(case: Case, with_gradient: bool = False) -> Verdict:
    """Solve, judge and, if asked and defined, differentiate a case."""
    settings = nbqp.Settings(**case.settings)
    faults: list[str] = []
    args = case.data.args(case.sparse)
    batch = nbqp.solve_batch(**_stacked(case.data), settings=settings)
    try:
        single = nbqp.solve_qp(**args, settings=settings)
    except nbqp.NonconvexError:
        name = REFUSED
        if batch.status[0].name != "NONCONVEX":
            faults.append(f"{REFUSED}, but {batch.status[0].name} in a batch")
        faults += refusal_faults(case.data, refused=True)
        return Verdict(case.name, _family(case), name, False, False, tuple(faults), case.apart)
    faults += refusal_faults(case.data, refused=False)
    others = opinions(case)
    start = _beside(single)
    warm = nbqp.solve_qp(**args, settings=settings, warm_start=start)
    results = (("", single), ("in a batch: ", _Sample(batch)), ("from a warm start: ", warm))
    for where, found in results:
        faults += (where + fault for fault in _faults(case, found, others))
    statuses = [found.status.name for _, found in results]
    wanted = SOLUTIONS if case.truth is Truth.INFEASIBLE else SOLUTIONS[:1]
    solved = all(name in wanted for name in statuses)
    known = case.truth in (Truth.SOLVABLE, Truth.OPEN) and any(other.solves for other in others)
    if case.truth is Truth.OPEN:
        own = (Opinion.of(case, "", found) for _, found in results if found.status.name == "SOLVED")
        known = (known or any(one.solves for one in own)) and "DUAL_INFEASIBLE" not in statuses
    gradient = None
    if with_gradient and case.truth is Truth.SOLVABLE and statuses[0] == "SOLVED":
        gradient = check_gradient(case, single)
    return Verdict(
        case.name,
        _family(case),
        "+".join(dict.fromkeys(statuses)),
        known,
        solved,
        tuple(faults),
        case.apart,
        gradient,
    )


def _family(case: Case) -> str:
    return case.name.rpartition(" ")[0]


def _stacked(data: Data) -> dict[str, Any]:
    """All nine data with a batch axis of one."""
    args = data.args()
    return {name: value[None] for name, value in args.items()}


def _beside(found: nbqp.Solution) -> tuple[Any, ...]:
    """A start a little off the point that was found, its multipliers twice as large."""
    return (1.001 * found.x + 1e-3, 2.0 * found.y, 2.0 * found.z, 2.0 * found.z_box)


class _Sample:
    """The only sample of a batch, as a `Solution` has its parts."""

    def __init__(self, batch: nbqp.BatchSolution) -> None:
        for name in ("x", "y", "z", "z_box", "s_e", "s_i", "s_box", "status"):
            setattr(self, name, getattr(batch, name)[0])
        self.certificate = nbqp.Certificate(*(part[0] for part in batch.certificate))


def _faults(case: Case, found: Any, others: list[Opinion]) -> Iterator[str]:
    name = found.status.name
    if name in SOLUTIONS:
        yield from solution_faults(case, found, name)
    elif name == "PRIMAL_INFEASIBLE":
        yield from primal_proof_faults(case, found.certificate)
    elif name == "DUAL_INFEASIBLE":
        yield from dual_proof_faults(case, found.certificate)
    yield from contradictions(case, found, name, others)
