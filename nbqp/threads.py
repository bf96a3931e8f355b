"""The package's own threads: serial kernels without the GIL, side by side on parts of a batch.

Numba's parallel loops are not used: their threading layers abort on concurrent calls or in forked
children. The pool is made when first needed and anew after a fork.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from numbers import Integral
from typing import TypeVar

from nbqp.errors import SettingsError
from nbqp.kernels.structure import Ints

SAMPLES_PER_THREAD = 8
"""Below this many samples a thread costs more than it gains."""
WATCH_INTERVAL = 0.1
"""Seconds between two looks at whether a long call is to stop."""

T = TypeVar("T")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """A forked child has the pool object but none of its threads."""
    global _pool, _lock
    _pool = None
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(1 + (os.cpu_count() or 1), thread_name_prefix="nbqp")
        return _pool


def thread_count(batch: int, most: int | None) -> int:
    """How many threads a batch deserves: at most `most`, None for the number of processors."""
    if most is not None and (not isinstance(most, Integral) or isinstance(most, bool) or most < 1):
        raise SettingsError(f"threads: expected None or an integer of at least 1, got {most!r}.")
    worthwhile = max(1, batch // SAMPLES_PER_THREAD)
    if worthwhile == 1:
        return 1
    return min(_processors() if most is None else int(most), worthwhile)


def run_apart(task: Callable[[], T]) -> T:
    """task(), in another thread if this is the main one, where signals are handled.

    A kernel that returns arrays ends by running Python code on them; an exception of Ctrl-C that is
    raised there crashes the process. Here it is raised at once, and the task's result is dropped.
    """
    if threading.current_thread() is not threading.main_thread():
        return task()
    try:
        part = _shared_pool().submit(task)
    except RuntimeError:  # the interpreter is shutting down: no new threads
        return task()
    return part.result()


def split_range(task: Callable[[int, int], None], size: int, threads: int) -> None:
    """Call task(begin, end) on consecutive parts of range(size), one of them in this thread.

    An exception in any part is raised here, after all parts have ended.
    """
    edges = _edges(size, threads)
    parts = []
    for begin, end in itertools.pairwise(edges[1:]):
        try:
            parts.append(_shared_pool().submit(task, begin, end))
        except RuntimeError:  # the interpreter is shutting down: no new threads
            task(begin, end)
    try:
        task(edges[0], edges[1])
    finally:
        errors = [error for part in parts if (error := part.exception()) is not None]
    if errors:
        raise errors[0]


def split_range_watched(
    task: Callable[[int, int], None], size: int, threads: int, time_limit: float, abort: Ints
) -> None:
    """`split_range` in other threads, while this one minds the clock and Ctrl-C.

    Sets abort[0] after `time_limit` seconds, or on an exception such as `KeyboardInterrupt`, which
    is raised again once the tasks, which poll it, have ended.
    """
    edges = _edges(size, threads)
    end_time = time.perf_counter() + time_limit
    try:
        parts = [_shared_pool().submit(task, *edge) for edge in itertools.pairwise(edges)]
    except RuntimeError:  # the interpreter is shutting down: no new threads
        task(0, size)
        return
    try:
        while wait(parts, min(WATCH_INTERVAL, max(0.0, end_time - time.perf_counter()))).not_done:
            if time.perf_counter() >= end_time:
                abort[0] = 1
                end_time = math.inf
    except BaseException:
        abort[0] = 1
        wait(parts)
        raise
    for part in parts:
        part.result()


def _edges(size: int, threads: int) -> list[int]:
    threads = max(1, min(threads, size))
    return [size * part // threads for part in range(threads + 1)]
