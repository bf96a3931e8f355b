"""Differentiable QP layers: forward and backward times, with their accuracy, on one thread.

    python -m benchmarks.layers --json results.json --markdown results.md

Every peer solves the same batches in the same process, in turn over the repeats; times are medians.
What a peer returned is judged by NumPy from the data: residuals, the distance to an exact solution,
and the gradient's error against the KKT system of the exact active set.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.batches import (
    SEED,
    Problem,
    control,
    learned_rules,
    random_dense,
    random_rows,
    sudoku,
)
from benchmarks.judge import Reference, dense_reference, gradient_errors, residuals
from benchmarks.peers import OURS, PEERS, Peer, PeerEntry
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

WARM_UPS = 2
# A peer that has taken so many seconds for one batch is not measured once more.
LONG = 60.0
# In its turn a peer takes so many steps in a row, as training does, or fewer that take so many seconds.
STEPS = 10
TURN = 0.5
PACKAGES = (
    "numba",
    "numpy",
    "scipy",
    "tensorflow",
    "keras",
    "torch",
    "proxsuite",
    "qpth",
    "cvxpylayers",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """Programs by name, each built for a batch size, and the accuracies asked for."""

    programs: dict[str, Callable[[int], Problem]]
    batch: int = 150
    eps_abs: tuple[float, ...] = (1e-5, 1e-9)


CASES = {
    "sudoku": Case(
        {
            "QP": functools.partial(sudoku, curvature=0.1),
            "LP": functools.partial(sudoku, curvature=0.0),
        }
    ),
    "closest": Case(
        {
            "feasible": functools.partial(random_rows, feasible=True),
            "infeasible": functools.partial(random_rows, feasible=False),
        },
        batch=128,
        eps_abs=(1e-6,),
    ),
    "learn-a": Case({"LP": learned_rules}, eps_abs=(1e-6,)),
    "random": Case(
        {f"n={n}": functools.partial(random_dense, n=n) for n in (50, 100)}, 128, eps_abs=(1e-9,)
    ),
    "control": Case({"n=330": functools.partial(control, horizon=22)}, 8, eps_abs=(1e-9,)),
    "long control": Case({"n=990": functools.partial(control, horizon=66)}, 1, eps_abs=(1e-9,)),
}


@dataclasses.dataclass
class Measurement:
    """A peer on a batch: seconds of each repeat, the worst errors over them, or a failure."""

    peer: str
    samples: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    failure: str = ""

    def time_step(self, name: str, step: Callable[[], None]) -> None:
        """Time one step by the wall and by the process (all its threads)."""
        process, wall = time.process_time(), time.perf_counter()
        step()
        self.samples.setdefault(f"{name}_wall", []).append(time.perf_counter() - wall)
        self.samples.setdefault(f"{name}_process", []).append(time.process_time() - process)

    def subtract(self, name: str, part: str) -> None:
        """Take the last time of another step, which it contains, from the last one of a step."""
        for clock in ("wall", "process"):
            self.samples[f"{name}_{clock}"][-1] -= self.samples[f"{part}_{clock}"][-1]

    def judge(self, problem: Problem, reference: Reference, peer: Peer) -> None:
        """Keep the worst of the errors so far, NaN being the worst of all."""
        point = peer.point()
        gradients = gradient_errors(peer.gradients(), reference.gradients)
        errors = {
            **residuals(problem, point),
            "x_error": float(np.max(np.abs(point.x - reference.point.x))),
            **{f"dL_d{name}_error": error for name, error in gradients.items()},
        }
        for name, error in errors.items():
            self.errors[name] = float(np.maximum(self.errors.get(name, 0.0), error))

    def time(self, name: str) -> float:
        """Median seconds of a step, NaN after a failure."""
        return math.nan if self.failure else median(self.samples[name])

    def worst(self, *names: str) -> float:
        """The largest of the named errors, NaN after a failure."""
        return math.nan if self.failure else float(np.max([self.errors[name] for name in names]))


def measure(
    problem: Problem,
    reference: Reference,
    eps: float,
    repeats: int,
    peers: Mapping[str, PeerEntry] = PEERS,
    steps: int = STEPS,
) -> list[Measurement]:
    """Warm up every peer, then time up to so many steps of each in turn, starting with another one each time."""
    measurements = {name: Measurement(name) for name in peers}
    built: dict[str, Peer] = {}
    spent: dict[str, float] = {}

    def attempt(name: str, action: Callable[[], None]) -> None:
        """A peer that fails is out, with its reason; the others go on."""
        try:
            action()
        except ImportError as error:
            measurements[name].failure = f"not installed: {error}"
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            measurements[name].failure = f"failed: {type(error).__name__}: {reason}"

    def warm_up(name: str) -> None:
        peer = peers[name].build(problem, eps)
        begin = time.perf_counter()
        for _ in range(WARM_UPS):
            peer.forward()
            peer.backward()
            spent[name] = time.perf_counter() - begin
            if spent[name] > LONG / 10.0:
                break
        built[name] = peer

    def repeat(name: str) -> None:
        measurement, peer = measurements[name], built[name]
        if measurement.samples and spent[name] > LONG:
            return
        gc.collect()
        begin = time.perf_counter()
        for _ in range(steps):
            measurement.time_step("forward", peer.forward)
            measurement.time_step("backward", peer.backward)
            if peer.whole:
                measurement.subtract("backward", "forward")
            if time.perf_counter() - begin > TURN:
                break
        spent[name] += time.perf_counter() - begin
        measurement.judge(problem, reference, peer)

    for name in peers:
        attempt(name, functools.partial(warm_up, name))
    names = list(built)
    for first in range(repeats):
        for k in range(len(names)):
            name = names[(first + k) % len(names)]
            if not measurements[name].failure:
                attempt(name, functools.partial(repeat, name))
    return list(measurements.values())


HEADER = (
    *("case", "eps_abs", "peer", "forward", "process", "ratio", "backward", "process", "ratio"),
    *("primal", "KKT", "x error", "gradient error", "remark"),
)
LEGEND = (
    f"Medians in microseconds per QP, wall and process time, over turns of some steps in a row, or fewer "
    f"that take {TURN:g} s; ratio: wall time over that of "
    f"{OURS}. Worst over the batch and the repeats: primal residual; KKT: the largest of primal "
    "residual, dual residual and duality gap; x error: distance to the exact solution in the "
    "maximum norm; gradient error: relative, the worst of all inputs. Of a closest "
    f"feasible QP, primal is |A's_e + C's_i|. A peer that has taken {LONG:.0f} s is not repeated."
)


def table_rows(
    case: str, batch: int, eps: float, measurements: Sequence[Measurement]
) -> list[list[str]]:
    """One row for each peer, in the columns of HEADER."""
    ours = next(measurement for measurement in measurements if measurement.peer == OURS)
    rows = []
    for found in measurements:
        row = [case, f"{eps:g}", found.peer]
        for step in ("forward", "backward"):
            wall, process = found.time(f"{step}_wall"), found.time(f"{step}_process")
            ratio = wall / ours.time(f"{step}_wall")
            row += [show(1e6 * wall / batch, ".0f"), show(1e6 * process / batch, ".0f")]
            row.append(show(ratio, ".2f"))
        for names in (
            ("primal_residual",),
            ("primal_residual", "dual_residual", "duality_gap"),
            ("x_error",),
            tuple(name for name in found.errors if name.startswith("dL_d")),
        ):
            row.append(show(found.worst(*names), ".0e"))
        rows.append([*row, found.failure.replace("|", "/")])
    return rows


def run(cases: Sequence[str], repeats: int, quick: bool) -> tuple[dict[str, Any], str]:
    """Measure the cases; the record for JSON and the report in Markdown."""
    settings = {
        "threads": 1,
        "repeats": repeats,
        "steps": STEPS,
        "turn": TURN,
        "warm_ups": WARM_UPS,
        "seed": SEED,
    }
    record: dict[str, Any] = {
        **new_record("layers", one_core(), versions(PACKAGES), settings),
        "peers": {name: entry.note for name, entry in PEERS.items()},
        "results": [],
    }
    rows = []
    for name in cases:
        case = CASES[name]
        batch = min(case.batch, 15) if quick else case.batch
        for program, build in case.programs.items():
            problem = build(batch)
            reference = dense_reference(problem)
            for eps in case.eps_abs:
                print(f"{name} {program}, eps_abs {eps:g} ...", file=sys.stderr, flush=True)
                measurements = measure(problem, reference, eps, repeats)
                rows += table_rows(f"{name} {program}", batch, eps, measurements)
                record["results"].append(
                    {
                        "case": name,
                        "program": program,
                        "batch": batch,
                        "eps_abs": eps,
                        "margin": reference.margin,
                        "peers": [dataclasses.asdict(found) for found in measurements],
                    }
                )
    turns = f"{repeats} repeats of up to {STEPS} steps"
    notes = "\n".join(f"- {name}: {entry.note}" for name, entry in PEERS.items())
    head = headline(record, turns)
    return record, "\n\n".join([head, markdown_table(HEADER, rows), LEGEND, notes]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=run.__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where every sample goes")
    parser.add_argument("--markdown", type=Path, help="where the table goes, besides the output")
    parser.add_argument("--repeats", type=int, default=21, help="turns of each peer (default: 21)")
    parser.add_argument("--quick", action="store_true", help="at most 15 QPs and 3 repeats")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats: expected at least 1")
    repeats = min(options.repeats, 3) if options.quick else options.repeats
    record, table = run(options.cases, repeats, options.quick)
    write_json(options.json, record)
    write_markdown(options.markdown, table)
    print(table)


if __name__ == "__main__":
    main()
