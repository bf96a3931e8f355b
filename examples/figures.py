"""The colours and the axes that the figures of all examples share."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

INK, GREY, BLUE, RED, ORANGE = "#22313f", "#8a97a3", "#2a6fbb", "#c8443a", "#e0922f"


def finish(axes: Axes) -> None:
    """A light grid, and no frame above and on the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def finish_epochs(axes: Axes) -> None:
    """Finish a panel whose horizontal axis is the epochs."""
    axes.set_xlabel("epoch", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(axes)
