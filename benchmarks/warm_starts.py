"""What a warm start of a batch saves, against how far its QPs have moved: Newton steps and time, on one core.

    python -m benchmarks.warm_starts --json results.json --markdown results.md

QPs and LPs of the shape of the Sudoku layer's, from their solutions before all entries of A, and b = A z0 with it,
have changed by some per cent, as from epoch to epoch. Both solves are judged from the data.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nbqp
from benchmarks.batches import SEED, sudoku
from benchmarks.report import (
    headline,
    markdown_table,
    median,
    new_record,
    one_core,
    show,
    versions,
    write_json,
    write_markdown,
)

EPS_ABS = 1e-9
BATCH = 150
PROGRAMS = {"QP": 0.1, "LP": 0.0}
"""By their curvature."""
CHANGES = (0.001, 0.003, 0.01, 0.03, 0.1)
"""Standard deviations, relative to an entry."""


@dataclasses.dataclass
class Solve:
    """Cold or warm: Newton steps of a QP, seconds of each repeat, the worst residual or gap."""

    steps: float
    seconds: list[float]
    residual: float


@dataclasses.dataclass
class Move:
    """One program after one change."""

    program: str
    change: float
    cold: Solve
    warm: Solve


def measure(program: str, change: float, batch: int, repeats: int) -> Move:
    """Solve before the change, then cold and warm in turn."""
    problem = sudoku(batch, PROGRAMS[program])
    settings = nbqp.Settings(eps_abs=EPS_ABS)
    A = problem.A
    z0 = np.linalg.lstsq(A, problem.b)[0]
    moved = A * (1.0 + change * np.random.default_rng(SEED).standard_normal(A.shape))

    def solve(A: np.ndarray, b: np.ndarray, start: nbqp.BatchSolution | None) -> nbqp.BatchSolution:
        return nbqp.solve_batch(
            problem.H, problem.g, A, b, lb=0.0, settings=settings, warm_start=start, threads=1
        )

    before = solve(A, problem.b, None)
    starts = {"cold": None, "warm": before}
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    found = {}
    for _ in range(repeats + 1):
        for name, start in starts.items():
            begin = time.perf_counter()
            found[name] = solve(moved, moved @ z0, start)
            seconds[name].append(time.perf_counter() - begin)
    # The first ones load the kernels.
    solves = {
        name: Solve(float(one.info.iter.mean()), seconds[name][1:], _worst(one))
        for name, one in found.items()
    }
    return Move(program, change, **solves)


def _worst(found: nbqp.BatchSolution) -> float:
    return float(np.max([found.primal_residual(), found.dual_residual(), found.duality_gap()]))


HEADER = (
    *("program", "change", "steps, cold", "warm", "ratio"),
    *("microseconds a QP, cold", "warm", "ratio", "worst residual or gap"),
)


def table_rows(moves: Sequence[Move], batch: int) -> list[list[str]]:
    """One row for each, in the columns of HEADER."""
    rows = []
    for move in moves:
        cold, warm = (1e6 * median(one.seconds) / batch for one in (move.cold, move.warm))
        rows.append(
            [
                move.program,
                f"{100.0 * move.change:g}%",
                show(move.cold.steps, ".1f"),
                show(move.warm.steps, ".1f"),
                show(move.warm.steps / move.cold.steps, ".2f"),
                show(cold, ".0f"),
                show(warm, ".0f"),
                show(warm / cold, ".2f"),
                show(max(move.cold.residual, move.warm.residual), ".0e"),
            ]
        )
    return rows


def run(batch: int, repeats: int) -> tuple[dict[str, Any], str]:
    """Measure all moves; the record for JSON and the report in Markdown."""
    settings = {"threads": 1, "eps_abs": EPS_ABS, "batch": batch, "repeats": repeats, "seed": SEED}
    record = new_record("warm_starts", one_core(), versions(["numba", "numpy", "scipy"]), settings)
    moves = [measure(program, change, batch, repeats) for program in PROGRAMS for change in CHANGES]
    record["moves"] = [dataclasses.asdict(move) for move in moves]
    extent = f"{batch} QPs, eps_abs {EPS_ABS:g}, {repeats} repeats"
    table = markdown_table(HEADER, table_rows(moves, batch))
    return record, f"{headline(record, extent)}\n\n{table}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.warm_starts", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--json", type=Path, required=True, help="where every sample goes")
    parser.add_argument("--markdown", type=Path, help="where the table goes, besides the output")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"QPs (default: {BATCH})")
    parser.add_argument("--repeats", type=int, default=9, help="timed solves (default: 9)")
    options = parser.parse_args(arguments)
    for name in ("batch", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1")
    record, report = run(options.batch, options.repeats)
    write_json(options.json, record)
    write_markdown(options.markdown, report)
    print(report)


if __name__ == "__main__":
    main()
