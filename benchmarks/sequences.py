"""Sequences of QPs: the steps of a model predictive controller, cold and from the last solution.

    python -m benchmarks.sequences --json sequences.json --markdown sequences.md

Every peer solves the same sequence in the same process, on one thread, in turn over the repeats. What
a peer returned is judged by NumPy from the data.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import control
from benchmarks.control import Plant, Sequence, closed_loop
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
from benchmarks.sequence_peers import NOTES, OURS, PEERS, SequencePeer, StepPoint

PLANTS: dict[str, Callable[[], Plant]] = {
    "quadcopter": control.quadcopter,
    "masses": control.masses,
}
WARM_UPS = 2
# A step that misses the tolerance by more than this factor has failed.
SLACK = 10.0
# A peer that has taken so many seconds takes no further step.
LONG = 60.0
PACKAGES = ("numba", "numpy", "scipy", "proxsuite", "osqp", "piqp")


def residuals(sequence: Sequence, k: int, point: StepPoint) -> dict[str, float]:
    """Primal and dual residuals and duality gap of step k, from the data alone.

    primal  |Ax - b|, lb - x, x - ub
    dual    |Hx + g + A'y + z|, and |z| on an infinite side
    gap     |x'(Hx + g) + b'y + ub'z_+ - lb'z_-|,      z_+ = max(z, 0), z_- = max(-z, 0)
    """
    (x, y, z), b = point, sequence.b[k]
    gradient = sequence.H @ x + sequence.g
    side = np.where(z > 0, sequence.ub, sequence.lb)
    bounded = np.isfinite(side)
    primal = np.concatenate([np.abs(sequence.A @ x - b), sequence.lb - x, x - sequence.ub])
    dual = np.concatenate([np.abs(gradient + sequence.A.T @ y + z), np.abs(z) * ~bounded])
    return {
        "primal": float(np.max(primal)),
        "dual": float(np.max(dual)),
        "gap": abs(float(x @ gradient + b @ y + z[bounded] @ side[bounded])),
    }


@dataclasses.dataclass
class Measurement:
    """A peer on a sequence: seconds of each step by repeat, and the first repeat's counts.

    errors: the worst over all steps and repeats. failed: steps beyond `SLACK` times the tolerance,
    in the worst repeat. failure: why the peer has no figures.
    """

    peer: str
    wall: list[list[float]] = dataclasses.field(default_factory=list)
    process: list[list[float]] = dataclasses.field(default_factory=list)
    counts: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    failed: int = 0
    failure: str = ""

    def run(self, sequence: Sequence, eps: float, peer: SequencePeer) -> None:
        """Take all steps once, time them by the wall and by the process, and judge them."""
        wall: list[float] = []
        process: list[float] = []
        failed = 0
        for k, b in enumerate(sequence.b):
            process_begin, begin = time.process_time(), time.perf_counter()
            peer.step(b)
            wall.append(time.perf_counter() - begin)
            process.append(time.process_time() - process_begin)
            errors = residuals(sequence, k, peer.point())
            for name, error in errors.items():
                # NaN is the worst of all.
                self.errors[name] = float(np.maximum(self.errors.get(name, 0.0), error))
            failed += not all(error <= SLACK * eps for error in errors.values())
            if not self.wall:
                for name, count in peer.counts().items():
                    self.counts.setdefault(name, []).append(int(count))
            if sum(wall) > LONG:
                break
        self.wall.append(wall)
        self.process.append(process)
        self.failed = max(self.failed, failed)

    def step(self, clock: str) -> float:
        """Median seconds of a step by "wall" or "process", over all steps and repeats."""
        runs: list[list[float]] = getattr(self, clock)
        return median([seconds for run in runs for seconds in run])

    def total(self) -> float:
        """Median over the repeats of the seconds of all steps, by the process."""
        return median([math.fsum(run) for run in self.process])

    def remark(self, steps: int) -> str:
        """Why there are no figures, or only those of the first steps."""
        taken = min((len(run) for run in self.wall), default=steps)
        return self.failure or (f"stopped after {taken} steps" if taken < steps else "")


def measure(
    sequence: Sequence, eps: float, repeats: int, peers: Iterable[str]
) -> list[Measurement]:
    """Warm up every peer, then let them run in turn, starting with another one each time."""
    measurements = {name: Measurement(name) for name in peers}

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
        peer = PEERS[name](sequence, eps)
        for b in sequence.b[:WARM_UPS]:
            peer.step(b)

    def repeat(name: str) -> None:
        measurement = measurements[name]
        if math.fsum(seconds for run in measurement.wall for seconds in run) > LONG:
            return
        peer = PEERS[name](sequence, eps)
        gc.collect()
        measurement.run(sequence, eps, peer)

    for name in measurements:
        attempt(name, functools.partial(warm_up, name))
    names = [name for name in measurements if not measurements[name].failure]
    for first in range(repeats):
        for k in range(len(names)):
            name = names[(first + k) % len(names)]
            if not measurements[name].failure:
                attempt(name, functools.partial(repeat, name))
    return list(measurements.values())


HEADER = (
    *("case", "peer", "step", "process", "total", "ratio", "iterations", "most"),
    *("primal", "dual", "gap", "failed", "remark"),
)
LEGEND = (
    "step, process: median microseconds of one step, by the wall and by the process: the new b and "
    "the solve. total: milliseconds of all steps, by the process, the median of the repeats. ratio: "
    f"process over that of {OURS}. iterations: mean of a step, and the most. Worst over the steps and "
    "the repeats: primal and dual residual, duality gap. failed: steps with one of these beyond "
    f"{SLACK:g} times eps_abs. A peer that has taken {LONG:.0f} s takes no further step."
)


def table_rows(case: str, steps: int, measurements: list[Measurement]) -> list[list[str]]:
    """One row for each peer, in the columns of HEADER."""
    ours = next((found for found in measurements if found.peer == OURS), Measurement(OURS))
    rows = []
    for found in measurements:
        if found.failure:
            dashes = ["-"] * (len(HEADER) - 3)
            rows.append([case, found.peer, *dashes, found.failure.replace("|", "/")])
            continue
        iterations = found.counts["iterations"]
        rows.append(
            [
                case,
                found.peer,
                show(1e6 * found.step("wall"), ".0f"),
                show(1e6 * found.step("process"), ".0f"),
                show(1e3 * found.total(), ".0f"),
                show(found.step("process") / ours.step("process"), ".2f"),
                show(float(np.mean(iterations)), ".1f"),
                str(max(iterations)),
                *(show(found.errors[name], ".0e") for name in ("primal", "dual", "gap")),
                str(found.failed),
                found.remark(steps),
            ]
        )
    return rows


def run(
    cases: Iterable[str], steps: int, eps: float, repeats: int, peers: Iterable[str]
) -> tuple[dict[str, Any], str]:
    """Measure the cases; the record for JSON and the report in Markdown."""
    peers = list(peers)
    settings = {"threads": 1, "repeats": repeats, "steps": steps, "eps_abs": eps}
    record: dict[str, Any] = {
        **new_record("sequences", one_core(), versions(PACKAGES), settings),
        "peers": NOTES,
        "results": [],
    }
    rows = []
    sizes = []
    for case in cases:
        print(f"{case}, {steps} steps ...", file=sys.stderr, flush=True)
        sequence = closed_loop(PLANTS[case](), steps)
        measurements = measure(sequence, eps, repeats, peers)
        rows += table_rows(case, steps, measurements)
        n_eq, n = sequence.A.shape
        held = sum(count > 0 for count in sequence.active)
        sizes.append(
            f"- {case}: n = {n}, n_eq = {n_eq}, {sequence.bounded.shape[0]} bounded variables; bounds "
            f"hold the solution in {held} of {steps} steps, up to {max(sequence.active)} of them."
        )
        record["results"].append(
            {
                "case": case,
                "active": sequence.active,
                "peers": [dataclasses.asdict(found) for found in measurements],
            }
        )
    head = headline(record, f"{steps} steps, eps_abs {eps:g}, eps_rel 0, {repeats} repeats")
    notes = "\n".join([*sizes, *(f"- {note}" for note in NOTES)])
    return record, "\n\n".join([head, markdown_table(HEADER, rows), LEGEND, notes]) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequences", description=run.__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where every sample goes")
    parser.add_argument("--markdown", type=Path, help="where the table goes, besides the output")
    parser.add_argument("--steps", type=int, default=200, help="steps of a run (default: 200)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (default: 5)")
    parser.add_argument("--eps", type=float, default=1e-6, help="eps_abs (default: 1e-6)")
    parser.add_argument("--cases", nargs="+", choices=PLANTS, default=list(PLANTS))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    options = parser.parse_args(arguments)
    for name in ("steps", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1")
    record, table = run(options.cases, options.steps, options.eps, options.repeats, options.peers)
    write_json(options.json, record)
    write_markdown(options.markdown, table)
    print(table)


if __name__ == "__main__":
    main()
