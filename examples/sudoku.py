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
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

import nbqp
from examples.command_line import positive_float, positive_int, seed, warm_up
from examples.history import History
from examples.sudoku_boards import (
    BoardsError,
    DataSet,
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


TOLERANCE = 1e-6
"""Of a solution, in absolute terms."""

RECIPES = {
    "qp": Recipe("QP, H = 0.1 I", 0.1, 0.02, 0.8),
    "lp": Recipe("LP, H = 0", 0.0, 0.05, 0.85),
    "learn-a": Recipe("LP, A alone, b = 1", 0.0, 0.03, 0.85, feasible=False, violation=1e-3),
    "optnet": Recipe("QP, H = 0.1 I, OptNet's rate of 0.1", 0.1, 0.1, 1.0),
}


class SudokuSolver(keras.Model):  # type: ignore[misc]
    """Puzzles (batch, 4, 4, 4) to boards of the same shape, by a QP whose constraints it learns.

    It counts, as metrics, the Newton steps per sample, the samples that ended unsolved (these keep
    their best iterate, so that one of them does not end a training), and the violation: the largest
    entry of |Ax - b|, for the x returned, the A learned, and b = 1 or A exp(log z0). Where b = 1
    may be out of reach it is the largest shift |s_e|; otherwise it is what the solver's tolerance
    and single precision leave, and more only where a sample is unsolved.

    remembered: None, or of how many boards the layer remembers the solutions in training, to start there in the next
    epoch. Inputs are then `numbered`.
    """

    def __init__(self, recipe: Recipe, seed: int, remembered: int | None = None) -> None:
        super().__init__()
        self.qp = QPLayer(
            H=recipe.curvature * np.eye(64) if recipe.curvature > 0 else None,
            A=Learned((40, 64), initializer=keras.initializers.RandomUniform(0.0, 1.0, seed=seed)),
            b=None if recipe.feasible else np.ones(40),
            lb=0.0,
            feasible=recipe.feasible,
            settings=nbqp.Settings(
                eps_abs=TOLERANCE, primal_infeasibility_solving=not recipe.feasible
            ),
            on_failure="keep",
            return_solution=True,
            violation=recipe.violation,
            warm_start=remembered,
        )
        self.newton_steps = keras.metrics.Mean(name="newton_steps")
        self.unsolved = keras.metrics.Sum(name="unsolved")
        self.violation = keras.metrics.Mean(name="violation")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The layer's x for g = -puzzle, as a board.

        inputs: puzzles, `numbered` or not. training: Keras hands it on, and the layer remembers solutions then.
        """
        numbers = isinstance(inputs, dict)
        g = -ops.reshape(inputs["puzzles"] if numbers else inputs, (-1, 64))
        out = self.qp({"g": g, "index": inputs["index"]} if numbers else g)
        self.newton_steps.update_state(out.newton_steps)
        solved = [ops.equal(out.status, status.value) for status in DIFFERENTIABLE]
        self.unsolved.update_state(ops.logical_not(ops.any(solved, axis=0)))
        self.violation.update_state(ops.max(ops.abs(self.residuals(out.x)), axis=1))
        return ops.reshape(out.x, (-1, 4, 4, 4))

    def residuals(self, x: Any) -> Any:
        """Ax - b of points (batch, 64), (batch, 40), in double precision."""
        A = ops.cast(self.qp.learned["A"], "float64")
        z0 = ops.exp(ops.cast(self.qp.log_z0, "float64")) if self.qp.feasible else None
        b = ops.ones(40, "float64") if z0 is None else ops.matmul(A, z0)
        return ops.matmul(ops.cast(x, "float64"), ops.transpose(A)) - b


def numbered(puzzles: Any, known: bool) -> dict[str, Any]:
    """Puzzles with their numbers, -1 for all unless they are `known`, whose solutions are remembered."""
    index = np.arange(len(puzzles)) if known else np.full(len(puzzles), -1)
    return {"puzzles": puzzles, "index": index}


def wrong(solutions: Any, boards: Any) -> Any:
    """Whether the arg-max of a board breaks a rule, (batch,)."""
    return breaks_rules(to_digits(boards))


def differs(solutions: Any, boards: Any) -> Any:
    """Whether the arg-max of a board is not the solution, (batch,)."""
    return ops.any(ops.not_equal(to_digits(boards), to_digits(solutions)), axis=(1, 2))


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """The options of a training, whatever the layer."""
    add = parser.add_argument
    add("--epochs", type=positive_int, default=10, metavar="N", help="default: %(default)s")
    boards = parser.add_mutually_exclusive_group()
    boards.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="arrays puzzles and solutions, (N, 4, 4, 4), one-hot, all zero where not given",
    )
    boards.add_argument(
        "--boards",
        type=positive_int,
        default=10_000,
        metavar="N",
        help="boards to make where there is no file; the last 1,000, or a tenth of fewer than "
        "2,000, are the test set (default: %(default)s)",
    )
    add("--seed", type=seed, default=0, help="default: %(default)s")
    add("--batch-size", type=positive_int, default=150, metavar="N", help="default: %(default)s")


def prepare(parser: argparse.ArgumentParser, args: argparse.Namespace, out: Path) -> DataSet:
    """The boards that the options ask for; makes the folder of the results.

    Raises
    ------
    SystemExit
        There are no such boards, or no such folder can be made; the parser says so.
    """
    try:
        boards = load_boards(args.data) if args.data else make_boards(args.boards, args.seed)
        out.mkdir(parents=True, exist_ok=True)
    except (BoardsError, OSError) as error:
        parser.error(str(error))
    return boards


def train(
    recipe: Recipe, boards: DataSet, args: argparse.Namespace, out: Path, remember: bool = False
) -> History:
    """Train, test after every epoch, and write history.json, predictions.npy and curves.png.

    Parameters
    ----------
    args
        Holds epochs, batch_size and seed.
    remember
        Whether each board starts at its solution of the epoch before.

    Returns
    -------
    History
        See `Recorder`; empty, and no file is written, where the first epoch was interrupted.
    """
    learn, test = boards.split()
    keras.utils.set_random_seed(args.seed)
    model = SudokuSolver(recipe, args.seed, len(learn.puzzles) if remember else None)
    learn_inputs: Any = numbered(learn.puzzles, known=True) if remember else learn.puzzles
    test_inputs: Any = numbered(test.puzzles, known=False) if remember else test.puzzles
    rate = keras.optimizers.schedules.ExponentialDecay(
        recipe.learning_rate,
        -(-len(learn.puzzles) // args.batch_size),
        recipe.decay,
        staircase=True,
    )
    model.compile(optimizer=keras.optimizers.Adam(rate), loss="mse", metrics=[wrong, differs])
    with training_progress() as progress:
        show = functools.partial(progress.console.print, soft_wrap=True, highlight=False)
        show(
            f"{recipe.label}: {len(learn.puzzles):,} boards to train with, "
            f"{len(test.puzzles):,} to test with"
        )
        recorder = Recorder(
            out / "history.json", progress, len(test.puzzles), show_violation=not recipe.feasible
        )
        try:
            warm_up(show)
            model.fit(
                learn_inputs,
                learn.solutions,
                batch_size=args.batch_size,
                epochs=args.epochs,
                validation_data=(test_inputs, test.solutions),
                callbacks=[recorder],
                verbose=0,
            )
        except KeyboardInterrupt:
            show("interrupted: the results are those so far")
    history = recorder.history
    if not history:
        return history
    predictions = ops.convert_to_numpy(model(test_inputs))
    np.save(out / "predictions.npy", predictions)
    shown = TOLERANCE if not recipe.feasible else None
    draw_curves(out / "curves.png", recipe.label, history, test, predictions, shown)
    samples = len(history["unsolved"]) * len(learn.puzzles)
    show(
        f"{sum(history['unsolved']):,.0f} of {samples:,} training samples ended unsolved; "
        f"results in {out}"
    )
    return history


def main(argv: Sequence[str] | None = None) -> int:
    """Train one layer."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.sudoku", description="Learn the rules of 4x4 Sudoku by a QP layer."
    )
    add = parser.add_argument
    add("--layer", choices=RECIPES, default="qp", help="default: %(default)s")
    add_training_options(parser)
    add("--out", type=Path, metavar="DIR", help="for the results; default: sudoku-LAYER")
    add(
        "--learning-rate",
        type=positive_float,
        metavar="R",
        help="of the first epoch; default: the layer's",
    )
    add(
        "--decay",
        type=positive_float,
        metavar="R",
        help="of the rate per epoch; default: the layer's",
    )
    add(
        "--warm-start",
        action="store_true",
        help="start each board at its solution of the epoch before, which saves Newton steps where an epoch changes A little",
    )
    args = parser.parse_args(argv)
    given = {key: getattr(args, key) for key in ("learning_rate", "decay")}
    recipe = dataclasses.replace(
        RECIPES[args.layer], **{key: value for key, value in given.items() if value is not None}
    )
    out = args.out or Path(f"sudoku-{args.layer}")
    boards = prepare(parser, args, out)
    return 0 if train(recipe, boards, args, out, args.warm_start) else 130


if __name__ == "__main__":
    sys.exit(main())
