"""A single QP of ten variables: what a call costs when there is next to nothing to solve.

    python -m benchmarks.latency --json results.json --markdown results.md

Solvers take a new right-hand side and solve, as in `benchmarks.sequences`; layers solve a batch of one and
differentiate it, as in `benchmarks.layers`, with the matrices as constants and g as the input, in blocks
of calls: caches are warm, as they are in a loop of small steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from benchmarks import control, layers, sequences
from benchmarks.batches import SEED, Problem, random_dense
from benchmarks.judge import dense_reference
from benchmarks.peers import PEERS as LAYERS
from benchmarks.peers import PeerEntry, keras_layer
from benchmarks.report import (
    headline,
    markdown_table,
    new_record,
    one_core,
    versions,
    write_json,
    write_markdown,
)
from benchmarks.sequence_peers import PEERS as SOLVERS
from examples.command_line import positive_int

SIZE = 10
STEPS = 100
"""Of a sequence, or calls of a layer in a row."""
EPS = 1e-8
PACKAGES = (*layers.PACKAGES, "osqp", "piqp")
KERAS = PeerEntry(keras_layer, "tf_layer.QPLayer in double precision, eager under a gradient tape.")


def solver_qps(steps: int) -> control.Sequence:
    """Dense QPs with 3 equations and bounds, some of which hold, that differ in b."""
    random = np.random.default_rng(SEED)
    L, A = random.standard_normal((SIZE, SIZE)), random.standard_normal((3, SIZE))
    return control.Sequence(
        H=scipy.sparse.csc_array(L @ L.T / SIZE + 0.1 * np.eye(SIZE)),
        g=random.standard_normal(SIZE),
        A=scipy.sparse.csc_array(A),
        b=random.uniform(-0.5, 0.5, (steps, SIZE)) @ A.T,
        lb=np.full(SIZE, -1.0),
        ub=np.full(SIZE, 1.0),
        active=[],
    )


def layer_qp() -> Problem:
    """A QP of the kind of `random_dense`, of which g alone is an input."""
    return dataclasses.replace(random_dense(1, SIZE).sample(0), inputs=("g",))


def run(repeats: int) -> tuple[dict[str, Any], str]:
    """Measure solvers and layers; the record for JSON and the report in Markdown."""
    settings = {"threads": 1, "repeats": repeats, "eps_abs": EPS, "n": SIZE}
    record = new_record("latency", one_core(), versions(PACKAGES), settings)
    turns = max(1, repeats // STEPS)
    found = sequences.measure(solver_qps(STEPS), EPS, turns, SOLVERS)
    problem = layer_qp()
    peers = {**LAYERS, "nbqp, Keras": KERAS}
    measured = layers.measure(problem, dense_reference(problem), EPS, turns, peers, steps=STEPS)
    record["solvers"] = [dataclasses.asdict(one) for one in found]
    record["layers"] = [dataclasses.asdict(one) for one in measured]
    report = (
        headline(record, f"{repeats} repeats"),
        markdown_table(sequences.HEADER, sequences.table_rows(f"n = {SIZE}", STEPS, found)),
        sequences.LEGEND,
        markdown_table(layers.HEADER, layers.table_rows(f"n = {SIZE}", 1, EPS, measured)),
        layers.LEGEND,
    )
    return record, "\n\n".join(report) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=run.__doc__)
    parser.add_argument("--json", type=Path, help="where every sample goes")
    parser.add_argument("--markdown", type=Path, help="where the tables go, besides the output")
    parser.add_argument("--repeats", type=positive_int, default=500, help="default: %(default)s")
    options = parser.parse_args(argv)
    record, report = run(options.repeats)
    print(report)
    if options.json:
        write_json(options.json, record)
    write_markdown(options.markdown, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
