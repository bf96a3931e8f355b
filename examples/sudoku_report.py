"""What a Sudoku training shows as it goes, and what it leaves behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.sudoku_boards import Boards, DataSet

History = dict[str, list[float]]

INK, GREY, BLUE, RED = "#22313f", "#8a97a3", "#2a6fbb", "#c8443a"


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
        mean of |s_e| = |Ax - b| over the test boards (0 where within the tolerance); `unsolved` and `test_unsolved`, numbers of samples.
    progress
        Of `training_progress`.
    tests
        The number of test boards.
    """

    def __init__(self, path: Path, progress: Progress, tests: int) -> None:
        super().__init__()
        self.history: History = {}
        self._path, self._progress, self._tests = path, progress, tests
        self._task = progress.add_task("epoch", loss="-", wrong="-")

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
        for key, value in row.items():
            self.history.setdefault(key, []).append(value)
        self._path.write_text(json.dumps(self.history) + "\n")
        self._progress.update(self._task, wrong=str(row["test_wrong"]))
        self._progress.console.print(
            f"epoch {epoch + 1:2d}  loss {row['train_loss']:.1e} test {row['test_loss']:.1e}"
            f"  wrong {row['test_wrong']:4d} differs {row['test_differs']:4d}"
            f"  violation {row['violation']:.0e} unsolved {row['unsolved']}  {row['seconds']:.1f} s",
            highlight=False,
            soft_wrap=True,
        )


def draw_curves(
    path: Path, title: str, history: History, test: DataSet, predictions: Boards
) -> None:
    """Draw the losses, the wrong boards and one test board, the first that is wrong if any is."""
    figure = Figure(figsize=(13, 4.2), dpi=150, layout="constrained")
    figure.suptitle(title, color=INK, fontweight="bold")
    loss, wrong, board = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 1))
    epochs = range(1, len(history["seconds"]) + 1)
    _plot(loss, epochs, history, {"train_loss": ("training", BLUE), "test_loss": ("test", RED)})
    loss.set(title="mean squared error", yscale="log")
    _plot(
        wrong,
        epochs,
        history,
        {"test_differs": ("not the solution", BLUE), "test_wrong": ("break a rule", RED)},
    )
    # Linear up to one board: none is the aim, and has its place on the axis.
    wrong.set_yscale("symlog", linthresh=1, subs=range(2, 10))
    wrong.set(
        title=f"boards of {len(test.puzzles):,} in the test", ylim=(-0.1, 1.6 * len(test.puzzles))
    )
    wrong.yaxis.set_major_formatter("{x:,.0f}")
    differs = (predictions.argmax(axis=3) != test.solutions.argmax(axis=3)).any(axis=(1, 2))
    index = int(differs.argmax())
    cells = _draw_board(board, test.puzzles[index], test.solutions[index], predictions[index])
    verdict = f"{cells} of 16 cells wrong" if cells else "solved"
    board.set_title(f"test board {index}: {verdict}", color=INK)
    figure.savefig(path)


def draw_comparison(path: Path, histories: dict[str, History]) -> None:
    """Draw the wrong boards, the violation of the constraints and the loss of several trainings."""
    figure = Figure(figsize=(13, 4.2), dpi=150, layout="constrained")
    panels = {
        "test_wrong": ("test boards that break a rule", 1.0),
        "violation": ("mean |Ax - b| over the test boards", 1e-8),
        "test_loss": ("mean squared error of the test", 1e-6),
    }
    for axes, (key, (title, linear)) in zip(
        figure.subplots(1, len(panels)), panels.items(), strict=True
    ):
        for (label, history), colour in zip(
            histories.items(), (BLUE, RED, INK, GREY), strict=False
        ):
            epochs = range(1, len(history[key]) + 1)
            axes.plot(epochs, history[key], "o-", color=colour, label=label, markersize=3)
        # Linear near zero, which is the aim, and has its place on the axis.
        axes.set_yscale("symlog", linthresh=linear)
        axes.set(title=title, xlabel="epoch", ylim=(-0.1 * linear, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.savefig(path)


def _plot(axes: Axes, epochs: range, history: History, lines: dict[str, tuple[str, str]]) -> None:
    for key, (label, colour) in lines.items():
        axes.plot(epochs, history[key], "o-", color=colour, label=label, markersize=4)
    axes.set_xlabel("epoch", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
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
    axes.set_axis_off()
    return int(wrong.sum())
