"""Many cases on all processors, and what they add up to."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

import numpy as np

from benchmarks.report import markdown_table
from tests.fuzz.cases import APART, draw_case
from tests.fuzz.gradients import GradientCheck
from tests.fuzz.trial import REFUSED, Verdict, run_case

CHUNK = 250


@dataclass
class Tally:
    """What the cases of one sort came to."""

    statuses: Counter[str] = field(default_factory=Counter)
    feasible: int = 0
    solved: int = 0
    flawed: int = 0
    told: int = 0
    wrong: int = 0

    def add(self, verdict: Verdict) -> None:
        """Count a case."""
        self.statuses[verdict.status] += 1
        self.feasible += verdict.feasible
        self.solved += verdict.feasible and verdict.solved
        self.flawed += verdict.flawed
        self.told += verdict.told
        self.wrong += bool(verdict.faults)


@dataclass
class Summary:
    """A campaign's results. failures: the cases that are wrong, and those that should be solved."""

    seed: int
    tallies: dict[str, Tally] = field(default_factory=dict)
    gradients: list[tuple[str, GradientCheck]] = field(default_factory=list)
    failures: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, verdict: Verdict) -> None:
        """Count a case."""
        sort = verdict.apart or verdict.family
        self.tallies.setdefault(sort, Tally()).add(verdict)
        if verdict.gradient is not None:
            self.gradients.append((verdict.name, verdict.gradient))
        if verdict.faults or (verdict.feasible and not verdict.solved and not verdict.apart):
            self.failures.append(verdict)

    @property
    def cases(self) -> int:
        """How many there were."""
        return sum(tally.statuses.total() for tally in self.tallies.values())

    @property
    def wrong(self) -> list[Verdict]:
        """Those whose result is not true."""
        return [verdict for verdict in self.failures if verdict.faults]

    @property
    def wrong_gradients(self) -> list[tuple[str, GradientCheck]]:
        """Those whose error is not explained by the condition."""
        return [(name, check) for name, check in self.gradients if check.wrong]

    @property
    def solved_share(self) -> float:
        """Of the cases with a solution, those apart left out."""
        counted = self._counted()
        return sum(t.solved for t in counted) / max(1, sum(t.feasible for t in counted))

    @property
    def told_share(self) -> float:
        """Of the cases that were planted without a solution, those apart left out, how many are known as such."""
        counted = self._counted()
        return sum(t.told for t in counted) / max(1, sum(t.flawed for t in counted))

    def _counted(self) -> list[Tally]:
        return [tally for sort, tally in self.tallies.items() if sort not in APART]


def run_chunk(seed: int, begin: int, end: int) -> list[Verdict]:
    """The verdicts on cases begin..end-1."""
    verdicts = []
    for index in range(begin, end):
        try:
            verdicts.append(run_case(draw_case(seed, index), with_gradient=True))
        except Exception as error:
            raise RuntimeError(f"case {seed}:{index} raised") from error
    return verdicts


def run_campaign(
    seed: int,
    cases: int,
    seconds: float,
    processes: int | None = None,
    progress: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Run `cases` cases, or as many as `seconds` allow, on so many processes; None: one per processor."""
    summary, start = Summary(seed), time.monotonic()
    count = processes or os.cpu_count() or 1
    # Spawned: solvers of other people start threads, which a fork does not survive.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        chunks = _chunks(cases)
        running = {
            pool.submit(run_chunk, seed, *chunk) for chunk in itertools.islice(chunks, 2 * count)
        }
        while running:
            done = next(as_completed(running))
            running.remove(done)
            for verdict in done.result():
                summary.add(verdict)
            summary.seconds = time.monotonic() - start
            progress(summary)
            chunk = next(chunks, None)
            if chunk is not None and summary.seconds < seconds:
                running.add(pool.submit(run_chunk, seed, *chunk))
    return summary


def _chunks(cases: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, cases, CHUNK):
        yield begin, min(begin + CHUNK, cases)


def report(summary: Summary) -> str:
    """Markdown: a row a family, gradients, and every failure by the name that draws it again."""

    def row(sort: str, tally: Tally) -> list[str]:
        named = {
            "solved": ("SOLVED", "SOLVED_CLOSEST_PRIMAL_FEASIBLE"),
            "infeasible": ("PRIMAL_INFEASIBLE",),
            "unbounded": ("DUAL_INFEASIBLE",),
            "not convex": (REFUSED,),
        }
        counts = {key: sum(tally.statuses[s] for s in names) for key, names in named.items()}
        rest = tally.statuses.total() - sum(counts.values())
        cells = [
            tally.statuses.total(),
            *counts.values(),
            rest,
            tally.feasible,
            tally.feasible - tally.solved,
            tally.flawed,
            tally.flawed - tally.told,
        ]
        return [sort, *(f"{cell:,}" for cell in cells), str(tally.wrong)]

    header = (
        "family", "cases", "SOLVED", "infeasible", "unbounded", "not convex", "given up or undecided",
        "with a solution", "of these not solved", "without, as planted", "of these not told", "wrong",
    )  # fmt: skip
    lines = [markdown_table(header, (row(*item) for item in sorted(summary.tallies.items())))]
    lines.append(
        f"\n{summary.cases:,} cases, seed {summary.seed}, {summary.seconds:.0f} s; "
        f"{len(summary.wrong)} wrong; solved of those with a solution, those apart left out: "
        f"{100.0 * summary.solved_share:.3f}%; told of those planted without one: "
        f"{100.0 * summary.told_share:.3f}%."
    )
    for regular in (True, False):
        errors = [check.error for _, check in summary.gradients if check.regular is regular]
        if errors:
            half, most, worst = np.quantile(errors, [0.5, 0.99, 1.0])
            sort = "with a derivative" if regular else "without"
            lines.append(
                f"{len(errors):,} gradients at solutions {sort}: error {half:.0e} (median), "
                f"{most:.0e} (99%), {worst:.0e} (worst)."
            )
    lines.append(f"{len(summary.wrong_gradients)} gradients wrong.")
    lines += [f"- wrong: {v.name}: {'; '.join(v.faults)}" for v in summary.wrong]
    lines += [f"- gradient: {name}: {check}" for name, check in summary.wrong_gradients]
    lines += [f"- not solved: {v.name}: {v.status}" for v in summary.failures if not v.faults]
    return "\n".join(lines)
