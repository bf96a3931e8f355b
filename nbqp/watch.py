"""The clock of a call, by which a time limit and Ctrl-C reach its kernels."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import numpy as np

from nbqp.kernels.structure import Ints

LONG = 0.5
"""Seconds: a call that may take longer minds Ctrl-C."""


class OutOfTime(Exception):
    """The time limit has struck before there was anything to return."""


class Watch:
    """The clock of a call, and the flag by which it tells its kernels to stop.

    Parameters
    ----------
    time_limit
        Seconds from now on.

    Attributes
    ----------
    abort : (1,) int64
        Not 0 once kernels are to stop, which poll it.
    timed : bool
        Whether there is a time limit.
    """

    def __init__(self, time_limit: float = math.inf) -> None:
        self.abort: Ints = np.zeros(1, dtype=np.int64)
        self.timed = time_limit < math.inf
        self._start = time.perf_counter()
        self._end = self._start + time_limit

    def elapsed(self) -> float:
        """Seconds since the clock was started."""
        return time.perf_counter() - self._start

    def left(self) -> float:
        """Seconds until the limit, 0 when it has struck."""
        return max(0.0, self._end - time.perf_counter())

    def stop(self) -> None:
        """Tell the kernels to stop."""
        self.abort[0] = 1

    def stopped(self) -> bool:
        """Whether they have been told."""
        return bool(self.abort[0] != 0)

    def needed(self, seconds: float) -> bool:
        """Whether work of so many seconds, estimated, is to run where this thread can watch it."""
        return self.timed or (seconds > LONG and in_main_thread())


def start_watch(time_limit: float, load: Callable[[], None]) -> Watch:
    """The watch of a call that begins now; `load`, which compiles or loads its kernels, counts for no limit."""
    if time_limit < math.inf:
        load()
    return Watch(time_limit)


def in_main_thread() -> bool:
    """Whether signals are handled in this thread."""
    return threading.current_thread() is threading.main_thread()
