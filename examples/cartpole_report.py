"""What a training of the cart-pole shows as it goes, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.cartpole_simulation import CartPole
from examples.cartpole_task import BOUNDS, GOAL
from examples.figures import BLUE, GREY, INK, RED, finish
from examples.history import History, append

LINES = 20
"""Printed in a training."""
FRAMES_PER_SECOND = 25


def training_progress() -> Progress:
    """A bar over the epochs, with the loss and the time."""
    return Progress(
        TextColumn("[bold]epoch"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
    )


class Recorder:
    """Shows a training and writes its history after every epoch.

    Parameters
    ----------
    path
        The history as JSON, a list over the epochs for each key: `loss`, of the unperturbed trajectory
        from START, before the epoch's step; `smoothed`, the mean of the perturbed ones; `sigma`;
        `seconds`.
    progress
        Of `training_progress`.
    """

    def __init__(self, path: Path, progress: Progress, epochs: int) -> None:
        self.history: History = {}
        self._path, self._progress, self._epochs = path, progress, epochs
        self._task = progress.add_task("epoch", total=epochs, loss="-")

    def add(self, **row: float) -> None:
        """Write an epoch, and print every twentieth part of a training."""
        append(self.history, row, self._path)
        self._progress.update(self._task, advance=1, loss=f"{row['loss']:.4f}")
        epoch = len(self.history["loss"])
        if epoch % max(1, self._epochs // LINES) == 0:
            self._progress.console.print(
                f"epoch {epoch:4d}  loss {row['loss']:8.4f}  smoothed {row['smoothed']:8.4f}"
                f"  sigma {row['sigma']:.1e}  {row['seconds']:.2f} s",
                highlight=False,
                soft_wrap=True,
            )


def draw_curves(
    path: Path,
    title: str,
    history: History,
    slopes: dict[float, float],
    states: Any,
    forces: Any,
) -> None:
    """Draw the losses, the norm of the first gradient against sigma, and what was learned.

    states: (horizon + 1, 4), forces: (horizon,); slopes: from sigma, 0 too, to a norm.
    """
    figure = Figure(figsize=(15, 4.4), dpi=150, layout="constrained")
    figure.suptitle(title, color=INK, fontweight="bold")
    loss, slope, motion, force = figure.subplots(1, 4)
    loss.plot(history["smoothed"], color=GREY, label="smoothed", linewidth=0.8)
    loss.plot(history["loss"], color=BLUE, label="unperturbed")
    loss.axhline(history["loss"][0], color=RED, linestyle=":", label="at rest")
    loss.set_yscale("log")
    _finish(loss, "loss", "epoch")
    loss.legend(frameon=False, loc="lower left")
    sigmas, norms = np.array(sorted(slopes.items())).T
    # Linear up to the smallest positive sigma: 0 has its place on both axes.
    slope.set_xscale("symlog", linthresh=sigmas[1])
    slope.set_yscale("symlog", linthresh=norms[1])
    slope.plot(sigmas, norms, "o-", color=BLUE)
    slope.plot(sigmas[:1], norms[:1], "o", color=RED, label="without smoothing")
    _finish(slope, "norm of the gradient at rest", "sigma, N")
    seconds = CartPole.dt * np.arange(len(states))
    motion.plot(seconds, states[:, 0], color=BLUE, label="cart, m")
    motion.plot(seconds, states[:, 2], color=RED, label="pole, rad")
    for goal, bound, colour in ((GOAL[0], BOUNDS[0], BLUE), (GOAL[2], BOUNDS[2], RED)):
        motion.axhspan(goal - bound, goal + bound, color=colour, alpha=0.2, linewidth=0)
    _finish(motion, "learned motion, bounds of success", "s")
    force.step(seconds[:-1], forces, where="post", color=INK, linewidth=0.8, label="force, N")
    _finish(force, "learned force on the cart", "s")
    figure.savefig(path)


def _finish(axes: Axes, title: str, along: str) -> None:
    axes.set_title(title, color=INK)
    axes.set_xlabel(along, color=INK)
    finish(axes)
    axes.legend(frameon=False)


def animate(path: Path, plant: CartPole, states: Any) -> None:
    """Draw a motion, states (horizon + 1, 4), in its own time; it rests for a second at the end."""
    every = round(1.0 / (FRAMES_PER_SECOND * plant.dt))
    shown = [*states[::every], *[states[-1]] * FRAMES_PER_SECOND]
    figure = Figure(figsize=(6, 3), dpi=80, layout="constrained")
    axes = figure.subplots()
    width, height, length = 0.3, 0.14, plant.length
    edges = states[:, 0].min() - 1.6 * length, states[:, 0].max() + 1.6 * length
    axes.set(xlim=edges, ylim=(-1.3 * length, 1.3 * length), aspect="equal")
    axes.set_axis_off()
    axes.axhline(-height / 2, color=GREY, linewidth=1)
    axes.plot([GOAL[0]] * 2, [0.0, length], color=GREY, linestyle=":")
    cart = Rectangle((0, -height / 2), width, height, facecolor=INK)
    axes.add_patch(cart)
    (pole,) = axes.plot([], [], "o-", color=RED, linewidth=3, markevery=[1], markersize=9)
    clock = axes.text(0.01, 0.95, "", transform=axes.transAxes, color=INK)

    def draw(frame: int) -> list[Any]:
        p, _, theta, _ = shown[frame]
        cart.set_x(p - width / 2)
        pole.set_data([p, p + length * np.sin(theta)], [0.0, -length * np.cos(theta)])
        clock.set_text(f"{min(frame * every, len(states) - 1) * plant.dt:.2f} s")
        return [cart, pole, clock]

    FuncAnimation(figure, draw, frames=len(shown)).save(path, PillowWriter(FRAMES_PER_SECOND))
