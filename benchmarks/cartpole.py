"""The swing-up of a cart-pole with dry friction, learned by each layer: times and final losses.

    python -m benchmarks.cartpole --json results.json --markdown results.md

The forces of `examples.cartpole_task` are trained through each layer, epoch by epoch in turn, from the
same start, with the same noise and the same Adam. Times are averages over the epochs of the sum of a
layer's calls, one in each time step (`benchmarks.cartpole_layers`), as in the poster of Bambade,
Schramm, Taylor, Carpentier (2024). Every solution is judged by its projected gradient step.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nbqp
from benchmarks.arrays import Floats
from benchmarks.cartpole_layers import SIMULATORS, Rollout, Simulate
from benchmarks.peers import OURS, import_tensorflow
from benchmarks.report import (
    markdown_table,
    median,
    new_record,
    one_core,
    show,
    versions,
    write_json,
    write_markdown,
)
from examples.cartpole_simulation import CartPole
from examples.cartpole_task import HORIZON, RECIPES, noise
from examples.command_line import positive_float, positive_int, seed

PACKAGES = ("numba", "numpy", "tensorflow", "keras", "torch", "proxsuite", "qpth")
RECIPE = RECIPES["torques"]
BETAS = np.array([[0.9], [0.999]])
EPSILON = 1e-7


@dataclasses.dataclass
class Training:
    """Forces (horizon,) that are learned through a layer, and what its epochs took.

    moments (2, horizon): Adam's averages of the gradient and of its square; seconds: of whole epochs.
    """

    simulate: Simulate
    forces: Floats = dataclasses.field(default_factory=lambda: np.zeros(HORIZON))
    moments: Floats = dataclasses.field(default_factory=lambda: np.zeros((2, HORIZON)))
    rollouts: list[Rollout] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    def step(self, rate: float, perturbations: Floats) -> None:
        """One epoch: the perturbed forces (horizon, samples) rolled out, and Adam's step."""
        begin = time.perf_counter()
        found = self.simulate(self.forces[:, None] + perturbations)
        self.seconds.append(time.perf_counter() - begin)
        gradient = found.gradient.sum(axis=1)
        self.rollouts.append(found._replace(gradient=gradient))
        self.moments = BETAS * self.moments + (1.0 - BETAS) * [gradient, gradient**2]
        mean, square = self.moments / (1.0 - BETAS ** len(self.rollouts))
        self.forces = self.forces - rate * mean / (np.sqrt(square) + EPSILON)

    def loss(self) -> float:
        """The loss of the forces as they are, without perturbations."""
        return self.simulate(self.forces[:, None]).loss

    def mean(self, part: str) -> float:
        """Average milliseconds of an epoch, "forward" or "backward"."""
        return 1e3 * float(np.mean([getattr(found, part) for found in self.rollouts]))

    def residual(self) -> float:
        """The largest of all solutions."""
        return max(found.residual for found in self.rollouts)


HEADER = (
    *("layer", "forward", "ratio", "backward", "ratio", "both", "ratio", "epoch", "ratio"),
    *("final loss", "residual"),
)
LEGEND = (
    "Milliseconds an epoch, averages over the epochs: forward and backward of all calls of the layer, one "
    "in each of {horizon} time steps with {samples} perturbed samples; epoch: the simulation, too, median. "
    f"Ratio: over {OURS}. Final loss: of the learned forces, unperturbed. Residual: the largest "
    "|x - clip(x - (Hx + g))| of all QPs of all epochs, in Ns."
)


def table_rows(trainings: dict[str, Training]) -> list[list[str]]:
    """One row for each layer, in the columns of HEADER."""
    figures = {}
    for name, training in trainings.items():
        forward, backward = training.mean("forward"), training.mean("backward")
        epoch = 1e3 * median(training.seconds)
        figures[name] = (forward, backward, forward + backward, epoch)
    rows = []
    for name, training in trainings.items():
        row = [name]
        for mine, ours in zip(figures[name], figures[OURS], strict=True):
            row += [show(mine, ".1f"), show(mine / ours, ".2f")]
        rows.append([*row, show(training.loss(), ".5f"), show(training.residual(), ".0e")])
    return rows


def run(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Train through every layer; the record for JSON and the report in Markdown."""
    machine, plant = one_core(), CartPole()
    import_tensorflow()
    trainings = {
        name: Training(build(plant, args.eps_abs))
        for name, build in SIMULATORS.items()
        if name == OURS or name in args.peers
    }
    # All kernels: which ones a batch needs depends on what it holds.
    nbqp.warmup()
    for training in trainings.values():
        # Compiling, tracing and loading are no part of an epoch.
        for samples in (args.samples, 1):
            training.simulate(np.zeros((HORIZON, samples)))
    for epoch in range(args.epochs):
        sigma, rate = (at(epoch, args.epochs) for at in (RECIPE.sigma_at, RECIPE.rate_at))
        eps, _ = noise(args.seed, epoch, HORIZON, args.samples)
        for training in trainings.values():
            training.step(rate, sigma * eps)
        if (epoch + 1) % 50 == 0:
            losses = {name: f"{t.rollouts[-1].loss:.4f}" for name, t in trainings.items()}
            print(f"epoch {epoch + 1}/{args.epochs}: {losses}", file=sys.stderr)
    rows = table_rows(trainings)
    ours = trainings[OURS].rollouts
    settings = {**vars(args), "threads": 1, "horizon": HORIZON}
    record = {
        **new_record("cartpole", machine, versions(PACKAGES), settings),
        "first_gradient_error": {
            name: float(np.abs(t.rollouts[0].gradient - ours[0].gradient).max())
            / float(np.abs(ours[0].gradient).max())
            for name, t in trainings.items()
        },
        "layers": {
            name: {
                "final_loss": t.loss(),
                "losses": [found.loss for found in t.rollouts],
                "forward": [found.forward for found in t.rollouts],
                "backward": [found.backward for found in t.rollouts],
                "epoch": t.seconds,
                "residual": t.residual(),
            }
            for name, t in trainings.items()
        },
    }
    legend = LEGEND.format(horizon=HORIZON, samples=args.samples)
    return record, f"{markdown_table(HEADER, rows)}\n\n{legend}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the files asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cartpole",
        description="Train a cart-pole with dry friction through each layer.",
    )
    add = parser.add_argument
    peers = [name for name in SIMULATORS if name != OURS]
    add("--epochs", type=positive_int, default=800, metavar="N", help="default: %(default)s")
    add("--samples", type=positive_int, default=32, metavar="N", help="default: %(default)s")
    add("--eps-abs", type=positive_float, default=1e-9, metavar="EPS", help="default: %(default)s")
    add("--seed", type=seed, default=0, help="default: %(default)s")
    add("--peers", nargs="*", choices=peers, default=peers, help="default: all")
    add("--json", type=Path, metavar="FILE")
    add("--markdown", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    files = {name: vars(args).pop(name) for name in ("json", "markdown")}
    for file in filter(None, files.values()):
        # Before half an hour's work, not after it.
        file.parent.mkdir(parents=True, exist_ok=True)
    record, report = run(args)
    print(report)
    if files["json"]:
        write_json(files["json"], record)
    write_markdown(files["markdown"], report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
