"""Solve many random problems, and hold every result against its data: ``python -m tests.fuzz``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.report import machine_facts, new_record, versions, write_json
from tests.fuzz.campaign import Summary, report, run_campaign
from tests.fuzz.cases import Case, draw_case
from tests.fuzz.shrink import shrink
from tests.fuzz.trial import run_case


def _place(text: str) -> tuple[int, int]:
    """The seed and the index of SEED:INDEX."""
    seed, _, index = text.partition(":")
    if not (seed.isdecimal() and index.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected SEED:INDEX, got {text}")
    return int(seed), int(index)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, help="default: one per processor")
    parser.add_argument("--json", type=Path, help="write the results there as well")
    parser.add_argument(
        "--replay",
        type=_place,
        metavar="SEED:INDEX",
        help="one case: its verdict and its data, shrunk",
    )
    return parser.parse_args()


def _replay(seed: int, index: int) -> int:
    """Print a case and, if its result is wrong, the smallest that is in the same way; 1 if it is.

    A wrong gradient is not shrunk: it rests on what was planted.
    """
    case = draw_case(seed, index)
    verdict = run_case(case, with_gradient=True)
    print(case, verdict, sep="\n")
    kinds = [fault.split()[0] for fault in verdict.faults]

    def fails(smaller: Case) -> bool:
        return [fault.split()[0] for fault in run_case(smaller).faults] == kinds

    if kinds:
        smallest = shrink(case, fails)
        print("shrunk:", smallest, run_case(smallest), sep="\n")
    return int(bool(kinds) or (verdict.gradient is not None and verdict.gradient.wrong))


def main() -> int:
    """Run the campaign that the arguments describe; the exit code is 1 if any result is wrong."""
    arguments = _arguments()
    if arguments.replay:
        return _replay(*arguments.replay)
    # For the processes that it starts: each has a core to itself.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("cases", total=arguments.cases)

        def show(summary: Summary) -> None:
            text = f"{len(summary.wrong)} wrong, {100.0 * summary.solved_share:.2f}% solved"
            bar.update(task, completed=summary.cases, description=text)

        summary = run_campaign(
            arguments.seed, arguments.cases, arguments.seconds, arguments.processes, show
        )
    print(report(summary))
    if arguments.json:
        record = {
            **new_record(
                "fuzz",
                machine_facts(),
                versions(("numba", "numpy", "clarabel", "piqp", "highspy")),
                {"seed": summary.seed},
            ),
            "cases": summary.cases,
            "seconds": summary.seconds,
            "solved_share": summary.solved_share,
            "tallies": {
                sort: {**vars(tally), "statuses": dict(tally.statuses)}
                for sort, tally in summary.tallies.items()
            },
            "gradients": len(summary.gradients),
            "wrong_gradients": [[name, *check] for name, check in summary.wrong_gradients],
            "failures": [dataclasses.asdict(verdict) for verdict in summary.failures],
        }
        write_json(arguments.json, record)
    return min(1, len(summary.wrong) + len(summary.wrong_gradients))


if __name__ == "__main__":
    sys.exit(main())
