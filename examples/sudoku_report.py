"""What a Sudoku training shows as it goes, and what it leaves behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.figures import BLUE, GREY, INK, ORANGE, RED, finish_epochs
from examples.history import History, append
from examples.sudoku_boards import Boards, DataSet


def training_progress() -> Progress:
    """A bar over the batches of an epoch, with the loss, the boards wrong and the time."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  wrong of test {task.fields[wrong]}"),
        TimeElapsedColumn(),
    )


class Recorder(keras.callbacks.Callback):  # type: ignore[misc]
    """Shows a training and writes its history after every epoch.

    Parameters
    ----------
    path
        The history as JSON, a list over the epochs for each key: `train_loss` and `test_loss`,
        mean squared errors; `test_wrong` and `test_differs`, numbers of test boards; `newton_steps`,
        the mean of a training sample; `seconds` of training, the test left out; `violation`, the
        mean over the test boards of the largest entry of |Ax - b|; `unsolved` and `test_unsolved`,
        numbers of samples.
    progress
        Of `training_progress`.
    tests
        The number of test boards.
    show_violation
        Whether the lines have the violation, which says little where it is 0 by construction.
    """

    def __init__(self, path: Path, progress: Progress, tests: int, show_violation: bool) -> None:
        super().__init__()
        self._show_violation = show_violation
        self.history: History = {}
        self._path, self._progress, self._tests = path, progress, tests
        self._task = progress.add_task("epoch", total=None, loss="-", wrong="-")

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Start the bar and the clock."""
        self._progress.reset(
            self._task,
            total=self.params["steps"],
            description=f"epoch {epoch + 1}/{self.params['epochs']}",
        )
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Advance the bar."""
        self._progress.update(self._task, advance=1, loss=f"{(logs or {})['loss']:.4f}")

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        """Stop the clock: the test follows the training of an epoch."""
        self._seconds = time.perf_counter() - self._begin

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write the history and print its last line."""
        logs = logs or {}
        row = {
            "train_loss": float(logs["loss"]),
            "test_loss": float(logs["val_loss"]),
            "test_wrong": round(logs["val_wrong"] * self._tests),
            "test_differs": round(logs["val_differs"] * self._tests),
            "newton_steps": float(logs["newton_steps"]),
            "seconds": self._seconds,
            "violation": float(logs["val_violation"]),
            "unsolved": round(logs["unsolved"]),
            "test_unsolved": round(logs["val_unsolved"]),
        }
        append(self.history, row, self._path)
        self._progress.update(self._task, wrong=str(row["test_wrong"]))
        violation = f" violation {row['violation']:.0e}" if self._show_violation else ""
        self._progress.console.print(
            f"epoch {epoch + 1:2d}  loss {row['train_loss']:.1e} test {row['test_loss']:.1e}"
            f"  wrong {row['test_wrong']:4d} differs {row['test_differs']:4d}{violation}"
            f"  steps {row['newton_steps']:.1f}  unsolved {row['unsolved']}  {row['seconds']:.1f} s",
            highlight=False,
            soft_wrap=True,
        )


def draw_curves(
    path: Path,
    title: str,
    history: History,
    test: DataSet,
    predictions: Boards,
    tolerance: float | None,
) -> None:
    """Draw the losses, the wrong boards and one test board, the first that is wrong if any is.

    Where the violation is not zero by construction, ``tolerance`` is what it is judged by, and it
    has a panel too; None otherwise.
    """
    widths = (1.2, 1.2, 1) if tolerance is None else (1.2, 1.2, 1.2, 1)
    figure = Figure(figsize=(4.1 * sum(widths), 4.4), dpi=150, layout="constrained")
    figure.suptitle(f"4x4 Sudoku: {title}", color=INK, fontweight="bold")
    loss, wrong, *rest = figure.subplots(1, len(widths), width_ratios=widths)
    _plot(loss, history, {"train_loss": ("training", BLUE), "test_loss": ("test", RED)})
    loss.set_title("mean squared error", color=INK)
    loss.set_yscale("log")
    lines = {"test_differs": ("not the solution", BLUE), "test_wrong": ("break a rule", RED)}
    _plot(wrong, history, lines)
    wrong.lines[0].set(linewidth=5, alpha=0.4)  # often the same: seen below the other line
    _count_boards(wrong, len(test.puzzles))
    wrong.set_title(f"boards of {len(test.puzzles):,} in the test", color=INK)
    if tolerance is not None:
        _plot(rest[0], history, {"violation": ("test", RED)})
        _judge_violation(rest[0], tolerance)
    differs = (predictions.argmax(axis=3) != test.solutions.argmax(axis=3)).any(axis=(1, 2))
    index = int(differs.argmax())
    cells = _draw_board(rest[-1], test.puzzles[index], test.solutions[index], predictions[index])
    verdict = f"{cells} of 16 cells wrong" if cells else "solved"
    rest[-1].set_title(f"test board {index}: {verdict}", color=INK)
    figure.savefig(path)


def draw_comparison(
    path: Path, histories: dict[str, History], tests: int, tolerance: float
) -> None:
    """Draw the wrong boards, the violation of the constraints and the loss of several trainings.

    tests: the number of test boards; tolerance: the solver's.
    """
    figure = Figure(figsize=(14, 5), dpi=150, layout="constrained")
    figure.suptitle("4x4 Sudoku: the rules learned by a layer", color=INK, fontweight="bold")
    wrong, violation, loss = figure.subplots(1, 3)
    panels = {"test_wrong": wrong, "violation": violation, "test_loss": loss}
    colours = (BLUE, RED, ORANGE, GREY)
    for key, axes in panels.items():
        for (label, history), colour, mark in zip(histories.items(), colours, "os^D", strict=True):
            epochs = range(1, len(history[key]) + 1)
            axes.plot(epochs, history[key], f"{mark}-", color=colour, label=label, markersize=4)
        finish_epochs(axes)
    _count_boards(wrong, tests)
    wrong.set_title(f"boards of {tests:,} in the test that break a rule", color=INK)
    _judge_violation(violation, tolerance)
    loss.set_title("mean squared error of the test", color=INK)
    loss.set_yscale("log")
    labels = wrong.get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=len(histories), frameon=False)
    figure.savefig(path)


def _count_boards(axes: Axes, tests: int) -> None:
    # Linear up to one board: none is the aim, and has its place on the axis.
    axes.set_yscale("symlog", linthresh=1, subs=range(2, 10))
    axes.set_ylim(-0.15, 1.6 * tests)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _judge_violation(axes: Axes, tolerance: float) -> None:
    axes.set_yscale("log")
    axes.axhline(tolerance, color=INK, linestyle=":", linewidth=1)
    axes.annotate(
        "the solver's tolerance",
        (0.98, tolerance),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        color=INK,
        fontsize="small",
        ha="right",
    )
    axes.set_title("largest |Ax - b|, mean over the test boards", color=INK)


def _plot(axes: Axes, history: History, lines: dict[str, tuple[str, str]]) -> None:
    for key, (label, colour) in lines.items():
        epochs = range(1, len(history[key]) + 1)
        axes.plot(epochs, history[key], "o-", color=colour, label=label, markersize=4)
    finish_epochs(axes)
    axes.legend(frameon=False)


def _draw_board(axes: Axes, puzzle: Any, solution: Any, prediction: Any) -> int:
    """Draw givens dark, answers blue, wrong cells red with the right digit beside; count these."""
    answer, right = prediction.argmax(axis=2), solution.argmax(axis=2)
    given = puzzle.any(axis=2)
    wrong = answer != right
    for row, column in np.ndindex(4, 4):
        colour = RED if wrong[row, column] else INK if given[row, column] else BLUE
        fill = "#fbe3e0" if wrong[row, column] else "#eceff2" if given[row, column] else "white"
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=fill, edgecolor=GREY, lw=0.8))
        axes.text(
            column + 0.5,
            row + 0.5,
            str(answer[row, column] + 1),
            color=colour,
            fontsize=22,
            fontweight="bold" if given[row, column] else "normal",
            ha="center",
            va="center",
        )
        if wrong[row, column]:
            corner = str(right[row, column] + 1)
            axes.text(column + 0.86, row + 0.2, corner, color=INK, ha="center", va="center")
    for block in np.ndindex(2, 2):
        axes.add_patch(
            Rectangle((2 * block[1], 2 * block[0]), 2, 2, fill=False, edgecolor=INK, lw=2.2)
        )
    axes.set(xlim=(-0.05, 4.05), ylim=(4.05, -0.05), aspect="equal")
    axes.text(2, 4.3, "grey: given, blue: answer, red: wrong", color=GREY, ha="center")
    axes.set_axis_off()
    return int(wrong.sum())
