"""Time against the batch size, the length of a QP and the number of threads; fits and a figure.

Run as `python -m benchmarks.scaling --json FILE [--markdown FILE] [--figure FILE]`. A step is
`nbqp.solve_batch` and `nbqp.vjp`, after a first call, on one processor unless said otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nbqp
from benchmarks.batches import SEED, sudoku
from benchmarks.control import closed_loop, masses
from benchmarks.report import (
    headline,
    machine_facts,
    markdown_table,
    median,
    new_record,
    show,
    versions,
    write_json,
    write_markdown,
)

EPS_ABS = 1e-9
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
HORIZONS = (10, 20, 40, 80, 160, 320, 640, 1000)
"""Of predictive control: 15 variables and 12 equations a stage."""
HORIZON_BATCHES = (1, 8)
THREADS_BATCH = 1024
FITTED = {"batch": 128, "horizon": 80}
"""Fits leave out smaller sizes: batches that a call's own time counts in, and QPs that fit in lanes."""


@dataclasses.dataclass
class Point:
    """One size: seconds of each repeat, and the worst residual or gap of a solution."""

    size: int
    seconds: list[float] = dataclasses.field(default_factory=list)
    residual: float = 0.0

    @property
    def time(self) -> float:
        """Median seconds."""
        return median(self.seconds)


@dataclasses.dataclass
class Sweep:
    """Times of steps on QPs of one kind; their number, or None where it is the size."""

    name: str
    unit: str
    batch: int | None
    points: list[Point]

    def exponent(self) -> float:
        """The power p of time ~ size^p, by least squares of the logarithms, over sizes that are FITTED."""
        used = [point for point in self.points if point.size >= FITTED[self.unit]]
        if len(used) < 2:
            return math.nan
        sizes = np.log([point.size for point in used])
        return float(np.polyfit(sizes, np.log([point.time for point in used]), 1)[0])


def puzzles(batch: int) -> dict[str, Any]:
    """The QPs of a Sudoku layer, which share all but g."""
    problem = sudoku(batch, 0.1)
    return {name: getattr(problem, name) for name in ("H", "g", "A", "b", "lb")}


def steering(batch: int, horizon: int) -> dict[str, Any]:
    """Predictive control of a chain of masses by sparse QPs that differ in b."""
    sequence = closed_loop(masses(6, horizon), batch)
    names = ("H", "g", "A", "lb", "ub")
    return {"b": sequence.b, **{name: getattr(sequence, name) for name in names}}


@contextlib.contextmanager
def processors(count: int) -> Iterator[None]:
    """Confine this process, which then takes as many threads, to so many processors, where it can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(mine)[-count:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def step(data: dict[str, Any]) -> Callable[[], nbqp.BatchSolution]:
    """One solve and the gradients of |x|^2 / 2."""
    settings = nbqp.Settings(eps_abs=EPS_ABS)

    def run() -> nbqp.BatchSolution:
        solution = nbqp.solve_batch(**data, settings=settings)
        nbqp.vjp(solution, dL_dx=solution.x)
        return solution

    return run


def time_step(size: int, run: Callable[[], nbqp.BatchSolution], repeats: int) -> Point:
    """Warm up, then repeat; the worst residual of all is recorded."""
    point = Point(size)
    run()
    for _ in range(repeats):
        begin = time.perf_counter()
        solution = run()
        point.seconds.append(time.perf_counter() - begin)
        worst = [solution.primal_residual(), solution.dual_residual(), solution.duality_gap()]
        point.residual = max(point.residual, float(np.max(worst)))
    return point


def sweeps(batches: Sequence[int], horizons: Sequence[int], repeats: int) -> list[Sweep]:
    """Time against the batch size of a Sudoku layer's QPs, and against the horizon of control."""
    found = [
        Sweep(
            "Sudoku QP, n = 64",
            "batch",
            None,
            [time_step(size, step(puzzles(size)), repeats) for size in batches],
        )
    ]
    for batch in HORIZON_BATCHES:
        points = [time_step(size, step(steering(batch, size)), repeats) for size in horizons]
        found.append(Sweep(f"control, {batch} at a time", "horizon", batch, points))
    return found


def thread_ratio(batch: int, repeats: int) -> tuple[float, float, float]:
    """Seconds of a step with one and with two threads, in turn, and their ratio."""
    run = step(puzzles(batch))
    run()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for threads, samples in seconds.items():
            with processors(threads):
                begin = time.perf_counter()
                run()
                samples.append(time.perf_counter() - begin)
    one, two = median(seconds[1]), median(seconds[2])
    return one, two, one / two


def draw(found: Sequence[Sweep], path: Path) -> None:
    """Milliseconds a batch against the batch size and against the horizon."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes, unit in ((left, "batch"), (right, "horizon")):
        for sweep in found:
            if sweep.unit == unit:
                times = [1e3 * point.time for point in sweep.points]
                axes.loglog([p.size for p in sweep.points], times, marker="o", label=sweep.name)
        axes.set(xlabel=unit, ylabel="milliseconds a batch")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


HEADER = ("sweep", "size", "milliseconds", "microseconds a QP", "worst residual or gap")


def report(found: Sequence[Sweep], threads: tuple[float, float, float], head: str) -> str:
    """The table, the fits and the ratio of threads, in Markdown."""
    rows = []
    for sweep in found:
        for point in sweep.points:
            count = sweep.batch or point.size
            rows.append(
                [
                    sweep.name,
                    f"{sweep.unit} {point.size}",
                    show(1e3 * point.time, ".3g"),
                    show(1e6 * point.time / count, ".3g"),
                    show(point.residual, ".0e"),
                ]
            )
    fits = ", ".join(
        f"{sweep.unit}^{show(sweep.exponent(), '.2f')} ({sweep.name})" for sweep in found
    )
    one, two, ratio = threads
    return "\n\n".join(
        [
            head,
            markdown_table(HEADER, rows),
            f"Time grows as {fits}: batches of {FITTED['batch']} and horizons of "
            f"{FITTED['horizon']}, and more.",
            f"{THREADS_BATCH} Sudoku QPs: {1e3 * one:.1f} ms with one thread, {1e3 * two:.1f} ms "
            f"with two, {ratio:.2f} times faster.\n",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where every sample goes")
    parser.add_argument("--markdown", type=Path, help="where the report goes, besides the output")
    parser.add_argument("--figure", type=Path, help="where the figure goes")
    parser.add_argument("--repeats", type=int, default=9, help="timed repeats (default: 9)")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, once")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats: expected at least 1")
    few = 3 if options.quick else None
    repeats = 1 if options.quick else options.repeats
    machine = machine_facts()
    print("one and two threads ...", file=sys.stderr, flush=True)
    threads = thread_ratio(THREADS_BATCH, repeats)
    print("batch sizes and horizons ...", file=sys.stderr, flush=True)
    with processors(1):
        found = sweeps(BATCHES[:few], HORIZONS[:few], repeats)
    settings = {"eps_abs": EPS_ABS, "repeats": repeats, "seed": SEED}
    record = {
        **new_record("scaling", machine, versions(["numba", "numpy", "scipy"]), settings),
        "threads": dict(zip(("one", "two", "ratio"), threads, strict=True)),
        "sweeps": [{**dataclasses.asdict(sweep), "exponent": sweep.exponent()} for sweep in found],
    }
    write_json(options.json, record)
    head = headline(record, f"{repeats} repeats", f"load {machine['load']:.2f} before")
    text = report(found, threads, head)
    write_markdown(options.markdown, text)
    if options.figure:
        draw(found, options.figure)
    print(text)


if __name__ == "__main__":
    main()
