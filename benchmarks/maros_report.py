"""What the results on a set of programs add up to: counts, means, profiles, a fit; as Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.adaptors import REPEATS, SHORT
from benchmarks.programs import Residuals
from benchmarks.report import markdown_table, show

LEVELS = (1e-3, 1e-6, 1e-9)
SHIFT = 0.01
"""Seconds added to the times of a shifted geometric mean."""
WRONG = 10.0
"""A residual of so many eps_abs contradicts the status "solved"."""
ROUNDING = 1e-14
"""A gap of so small a share of its terms' magnitudes may be rounding, the solver's or ours."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One program given to one solver.

    ended: "solved" or "unsolved" by the solver's own status, "killed" or "failed". seconds: of set-up
    and solution, the limit where the solver was killed, NaN where it failed. key: all that the
    result depends on.
    """

    problem: str
    solver: str
    eps: float
    limit: float
    ended: str
    status: str
    seconds: float
    residuals: Residuals
    memory: int
    counts: Mapping[str, float]
    key: dict[str, Any]

    @property
    def worst(self) -> float:
        """The largest of primal and dual residual and gap, NaN if one is."""
        return float(np.max(self.residuals[:3]))

    def solved_at(self, level: float) -> bool:
        """Said to be solved, in time, and the residuals agree."""
        return self.ended == "solved" and self.seconds <= self.limit and self.worst <= level

    @property
    def wrong(self) -> bool:
        """Said to be solved, and it is not by far."""
        return self.ended == "solved" and not self.worst <= WRONG * self.eps

    @property
    def rounding(self) -> bool:
        """Wrong by no more than the rounding of a gap whose terms are large."""
        primal, dual, gap, size = self.residuals
        return self.wrong and max(primal, dual) <= WRONG * self.eps and gap <= ROUNDING * size

    @property
    def infeasible(self) -> bool:
        """Said to be infeasible, or unbounded."""
        words = ("infeasible", "unbounded")
        return self.ended == "unsolved" and any(word in self.status.lower() for word in words)

    def counted_seconds(self, level: float) -> float:
        """Its time, the limit unless solved at the level."""
        return self.seconds if self.solved_at(level) else self.limit


def shifted_mean(seconds: Sequence[float]) -> float:
    """Shifted geometric mean exp(mean(log(t + SHIFT))) - SHIFT."""
    return float(np.exp(np.mean(np.log(np.asarray(seconds) + SHIFT))) - SHIFT)


def time_ratios(results: Sequence[Result], level: float) -> dict[str, list[float]]:
    """By solver, each program's time over that of its fastest solver; infinite where unsolved."""
    best: dict[str, float] = {}
    for result in results:
        if result.solved_at(level):
            seconds = best.get(result.problem, math.inf)
            best[result.problem] = min(seconds, result.seconds)
    ratios: dict[str, list[float]] = {}
    for result in results:
        solved = result.solved_at(level)
        ratio = result.seconds / best[result.problem] if solved else math.inf
        ratios.setdefault(result.solver, []).append(ratio)
    return ratios


def draw_profile(path: Path, results: Sequence[Result], level: float) -> None:
    """The performance profile: share of programs solved within a multiple of the best time.

    Source: Dolan, Moré, *Benchmarking optimization software with performance profiles*, 2002.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(
        xscale="log",
        xlabel="time / time of the fastest solver",
        ylabel=f"share of programs solved to {level:g}",
        ylim=(0, 1.01),
    )
    profiles = time_ratios(results, level)
    finite = [r for ratios in profiles.values() for r in ratios if r < math.inf]
    right = 1.1 * max(finite, default=10.0)
    for solver, ratios in profiles.items():
        at = np.sort([ratio for ratio in ratios if ratio < math.inf])
        share = np.arange(len(at) + 1) / len(ratios)
        axes.step([1.0, *at, right], [*share, share[-1]], where="post", label=solver)
    axes.set_xlim(1.0, right)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=150)


class Fit(NamedTuple):
    """seconds per factorisation = constant * nnz(L)^exponent over so many solves.

    spread: root mean square of the logarithm's errors.
    """

    solver: str
    exponent: float
    constant: float
    spread: float
    solves: int


def fit_factorisations(results: Iterable[Result]) -> list[Fit]:
    """Least squares of the logarithms, for each solver that counts factorisations."""
    points: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        counts = result.counts
        if counts.get("factorizations") and counts.get("nnz_factor"):
            seconds = counts["run_time"] / counts["factorizations"]
            points.setdefault(result.solver, []).append((counts["nnz_factor"], seconds))
    fits = []
    for solver, pairs in points.items():
        size, seconds = np.log(np.array(pairs).T)
        if len(set(size)) > 2:
            line = np.column_stack([size, np.ones(len(size))])
            (exponent, constant), *_ = np.linalg.lstsq(line, seconds, rcond=None)
            error = seconds - line @ np.array([exponent, constant])
            spread = float(np.sqrt(np.mean(error**2)))
            fits.append(Fit(solver, float(exponent), math.exp(constant), spread, len(pairs)))
    return fits


def levels_of(eps: float) -> list[float]:
    """The levels that solutions are counted at, the accuracy asked for among them."""
    return sorted({*LEVELS, eps}, reverse=True)


def summarise(results: Sequence[Result], eps: float) -> list[dict[str, Any]]:
    """By solver: the counts and the mean of the results at one eps_abs."""
    summaries = []
    for solver in dict.fromkeys(result.solver for result in results):
        own = [result for result in results if result.solver == solver]
        summaries.append(
            {
                "solver": solver,
                "eps": eps,
                "programs": len(own),
                "solved": {
                    f"{level:g}": sum(result.solved_at(level) for result in own)
                    for level in levels_of(eps)
                },
                "said_solved": sum(result.ended == "solved" for result in own),
                "wrong": [result.problem for result in own if result.wrong],
                "rounding": [result.problem for result in own if result.rounding],
                "infeasible": [result.problem for result in own if result.infeasible],
                "overtime": sum(result.seconds >= result.limit for result in own),
                "failed": sum(result.ended == "failed" for result in own),
                "shifted_mean": shifted_mean([result.counted_seconds(eps) for result in own]),
                "memory": max(result.memory for result in own),
            }
        )
    return summaries


def summary_table(summaries: Sequence[dict[str, Any]], eps: float) -> str:
    """A row for each solver."""
    levels = [f"{level:g}" for level in levels_of(eps)]
    best = min(summary["shifted_mean"] for summary in summaries)
    header = ("solver", *(f"solved {level}" for level in levels), "said solved", "wrong")
    header += (
        "by rounding",
        "infeasible",
        "overtime",
        "failed",
        "mean [s]",
        "ratio",
        "memory [MB]",
    )
    rows = []
    for summary in summaries:
        counts = [summary["solved"][level] for level in levels]
        counts.append(summary["said_solved"])
        counts += [len(summary[name]) for name in ("wrong", "rounding", "infeasible")]
        counts += [summary["overtime"], summary["failed"]]
        mean = summary["shifted_mean"]
        rows.append(
            [
                summary["solver"],
                *(str(count) for count in counts),
                show(mean, ".4f"),
                show(mean / best, ".2f"),
                show(summary["memory"] / 1e6, ".0f"),
            ]
        )
    return markdown_table(header, rows)


def doubtful_table(results: Iterable[Result]) -> str:
    """A row for each solution that is none by far, and each claim of infeasibility."""
    header = ("solver", "problem", "status", "primal", "dual", "gap", "gap / its terms")
    rows = []
    for result in results:
        if result.wrong or result.infeasible:
            primal, dual, gap, size = result.residuals
            share = gap / size if size else math.nan
            numbers = [show(number, ".1e") for number in (primal, dual, gap, share)]
            rows.append([result.solver, result.problem, result.status, *numbers])
    return markdown_table(header, rows) if rows else "None."


def times_table(results: Sequence[Result], eps: float) -> str:
    """A row for each program: seconds, in brackets where it is not solved to eps."""
    solvers = list(dict.fromkeys(result.solver for result in results))
    cells: dict[str, dict[str, str]] = {}
    for result in results:
        text = show(result.seconds, ".4f")
        text = text if result.solved_at(eps) else f"({text})"
        cells.setdefault(result.problem, {})[result.solver] = text
    rows = [[name, *(row.get(solver, "") for solver in solvers)] for name, row in cells.items()]
    return markdown_table(("problem", *solvers), rows)


def fit_lines(fits: Iterable[Fit]) -> str:
    """One line for each fit."""
    return "\n".join(
        f"- {fit.solver}: {fit.constant:.2e} s * nnz(L)^{fit.exponent:.2f} per factorisation, by "
        f"least squares of the logarithms over {fit.solves} solves (rms error "
        f"{fit.spread:.2f}: a factor of {math.exp(fit.spread):.2f})"
        for fit in fits
    )


LEGEND = (
    "Solved: the solver says so, within the time limit, and primal residual, dual residual and "
    "duality gap, absolute and from the data, are at most the level. Wrong: it says so, and one of "
    f"them is above {WRONG:g} eps; by rounding: that is the gap alone, and it is at most {ROUNDING:g} "
    "of its terms' magnitudes. Infeasible: it says that, or unbounded, though all programs have "
    "solutions. Overtime: it took the limit, or was killed. Failed: an exception, memory, or the end "
    f"of its process. Mean: shifted geometric mean (shift {1e3 * SHIFT:g} ms) of the seconds for "
    f"set-up and solution (the least of up to {REPEATS} solves while they take less than {SHORT:g} s "
    "together), the limit where it is not solved to eps; ratio: over the best. Memory: the most that "
    "its process took for a program, of those that it was not killed in."
)
