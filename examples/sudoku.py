"""Learn the rules of 4x4 Sudoku from solved boards alone: `python -m examples.sudoku --help`.

The layer maps a puzzle p, one-hot and flattened to 64 numbers, to

    x(p) = argmin 1/2 x'Hx - p'x   s.t.   Ax = A exp(log z0),  x >= 0

and learns A, 40 x 64, and log z0 from the mean squared error to the solution (`--layer learn-a`: A
alone, with b = 1, by the closest feasible program where there is no feasible point). Nobody tells it the
rules: they are 64 equations of rank 40 (each cell, row, column and block holds each digit once).
The experiment is that of OptNet (Amos & Kolter, 2017), posed as in QPLayer (Bambade, Schramm,
Taylor, Carpentier, ICLR 2024), which makes the program feasible whatever A is.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

import nbqp
from examples.sudoku_boards import (
    BoardsError,
    breaks_rules,
    load_boards,
    make_boards,
    to_digits,
)
from examples.sudoku_report import Recorder, draw_curves, training_progress
from nbqp.derivative import DIFFERENTIABLE
from tf_layer import Learned, QPLayer


@dataclasses.dataclass(frozen=True)
class Recipe:
    """H = curvature * I, and Adam's step learning_rate * decay^epoch.

    feasible: b = A exp(log z0) with a learned z0; otherwise b = 1, and the layer solves the closest
    feasible program, with `violation` times the norms of its shifts in the loss.
    """

    label: str
    curvature: float
    learning_rate: float
    decay: float
    feasible: bool = True
    violation: float = 0.0


RECIPES = {
    "qp": Recipe("QP, H = 0.1 I", 0.1, 0.02, 0.8),
    "lp": Recipe("LP, H = 0", 0.0, 0.05, 0.85),
    "learn-a": Recipe("LP, A alone, b = 1", 0.0, 0.03, 0.85, feasible=False, violation=1e-3),
    "optnet": Recipe("OptNet parametrisation, solved by nbqp", 0.1, 0.1, 1.0),
}


class SudokuSolver(keras.Model):  # type: ignore[misc]
    """Puzzles (batch, 4, 4, 4) to boards of the same shape, by a QP whose constraints it learns.

    It counts, as metrics, the Newton steps per sample, the violation |Ax - b| and the samples that
    ended unsolved: these keep their best iterate, so that one of them does not end a training.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__()
        self.qp = QPLayer(
            H=recipe.curvature * np.eye(64) if recipe.curvature > 0 else None,
            A=Learned((40, 64), initializer=keras.initializers.RandomUniform(0.0, 1.0, seed=seed)),
            b=None if recipe.feasible else np.ones(40),
            lb=0.0,
            feasible=recipe.feasible,
            settings=nbqp.Settings(eps_abs=1e-6, primal_infeasibility_solving=not recipe.feasible),
            on_failure="keep",
            return_solution=True,
            violation=recipe.violation,
        )
        self.newton_steps = keras.metrics.Mean(name="newton_steps")
        self.unsolved = keras.metrics.Sum(name="unsolved")
        self.violation = keras.metrics.Mean(name="violation")

    def call(self, puzzles: Any) -> Any:
        """The layer's x for g = -puzzle, as a board."""
        out = self.qp(-ops.reshape(puzzles, (-1, 64)))
        self.newton_steps.update_state(out.newton_steps)
        solved = [ops.equal(out.status, status.value) for status in DIFFERENTIABLE]
        self.unsolved.update_state(ops.logical_not(ops.any(solved, axis=0)))
        self.violation.update_state(ops.norm(out.s_e, axis=1))
        return ops.reshape(out.x, (-1, 4, 4, 4))


def wrong(solutions: Any, boards: Any) -> Any:
    """Whether the arg-max of a board breaks a rule, (batch,)."""
    return breaks_rules(to_digits(boards))


def differs(solutions: Any, boards: Any) -> Any:
    """Whether the arg-max of a board is not the solution, (batch,)."""
    return ops.any(ops.not_equal(to_digits(boards), to_digits(solutions)), axis=(1, 2))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.sudoku", description="Learn the rules of 4x4 Sudoku by a QP layer."
    )
    add = parser.add_argument
    add("--layer", choices=RECIPES, default="qp", help="default: %(default)s")
    add("--epochs", type=_positive_int, default=10, metavar="N", help="default: %(default)s")
    boards = parser.add_mutually_exclusive_group()
    boards.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="arrays puzzles and solutions, (N, 4, 4, 4), one-hot, all zero where not given",
    )
    boards.add_argument(
        "--boards",
        type=_positive_int,
        default=10_000,
        metavar="N",
        help="boards to make where there is no file; the last 1,000, or a tenth of fewer than "
        "2,000, are the test set (default: %(default)s)",
    )
    add("--out", type=Path, metavar="DIR", help="for the results; default: sudoku-LAYER")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--batch-size", type=_positive_int, default=150, metavar="N", help="default: %(default)s")
    add("--learning-rate", type=float, metavar="R", help="of the first epoch; default: the layer's")
    add("--decay", type=float, metavar="R", help="of the rate per epoch; default: the layer's")
    args = parser.parse_args(argv)
    recipe = RECIPES[args.layer]
    given = {key: getattr(args, key) for key in ("learning_rate", "decay")}
    args.recipe = dataclasses.replace(recipe, **{k: v for k, v in given.items() if v is not None})
    args.out = args.out or Path(f"sudoku-{args.layer}")
    try:
        args.dataset = load_boards(args.data) if args.data else make_boards(args.boards, args.seed)
        args.out.mkdir(parents=True, exist_ok=True)
    except (BoardsError, OSError) as error:
        parser.error(str(error))
    return args


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Train, test after every epoch, and write history.json, predictions.npy and curves.png."""
    args = parse(argv)
    recipe: Recipe = args.recipe
    train, test = args.dataset.split()
    keras.utils.set_random_seed(args.seed)
    model = SudokuSolver(recipe, args.seed)
    rate = keras.optimizers.schedules.ExponentialDecay(
        recipe.learning_rate,
        -(-len(train.puzzles) // args.batch_size),
        recipe.decay,
        staircase=True,
    )
    model.compile(optimizer=keras.optimizers.Adam(rate), loss="mse", metrics=[wrong, differs])
    with training_progress() as progress:
        progress.console.print(
            f"{recipe.label}: {len(train.puzzles):,} boards to train with, "
            f"{len(test.puzzles):,} to test with"
        )
        recorder = Recorder(args.out / "history.json", progress, len(test.puzzles))
        try:
            model.fit(
                *train,
                batch_size=args.batch_size,
                epochs=args.epochs,
                validation_data=test,
                callbacks=[recorder],
                verbose=0,
            )
        except KeyboardInterrupt:
            progress.console.print("interrupted: the results are those so far")
    history = recorder.history
    if not history:
        return 130
    predictions = model.predict(test.puzzles, batch_size=args.batch_size, verbose=0)
    np.save(args.out / "predictions.npy", predictions)
    draw_curves(args.out / "curves.png", recipe.label, history, test, predictions)
    samples = len(history["unsolved"]) * len(train.puzzles)
    progress.console.print(
        f"{sum(history['unsolved']):,} of {samples:,} training samples ended unsolved; "
        f"results in {args.out}",
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
