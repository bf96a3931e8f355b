"""The package's own threads: serial kernels without the GIL, side by side on parts of a batch.

Numba's parallel loops are not used: their threading layers abort on concurrent calls or in forked
children. The pool is made when first needed and anew after a fork. A fork waits for whoever holds one of the
locks, Numba's among them, while kernels compile: the child has the lock, but not the thread that would
release it.
"""

from __future__ import annotations

import itertools
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from numbers import Integral
from typing import Any, TypeVar

from numba.core.compiler_lock import global_compiler_lock

from nbqp.errors import SettingsError
from nbqp.kernels.structure import Ints

SAMPLES_PER_THREAD = 8
"""Below this many samples a thread costs more than it gains."""
WATCH_INTERVAL = 0.1
"""Seconds between two looks at whether a long call is to stop."""

T = TypeVar("T")


def hold_while_forking(lock: Any) -> None:
    """Have a fork wait for a lock, so that the child finds it released, and what it guards whole.

    lock: reentrant, as a signal handler may fork while its thread has it.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )


class _Pool:
    """Threads that take tasks from one queue, each started when no other is idle.

    They are daemons, for which a process that ends does not wait: it may end while a daemon thread of the user
    is in a long solve. (Those of `concurrent.futures` are waited for.)
    """

    def __init__(self, size: int) -> None:
        self._missing = size
        self._idle = 0
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def submit(self, task: Callable[[], None]) -> None:
        """Have a thread run the task; RuntimeError where the process may have no more of them."""
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            elif self._missing > 0:
                threading.Thread(target=self._work, name="nbqp", daemon=True).start()
                self._missing -= 1
        self._tasks.put(task)

    def _work(self) -> None:
        while True:
            self._tasks.get()()
            with self._lock:
                self._idle += 1


_lock = threading.RLock()
_pool: _Pool | None = None


def _forget_pool() -> None:
    """A forked child has the pool object but none of its threads."""
    global _pool
    _pool = None


hold_while_forking(_lock)
hold_while_forking(global_compiler_lock)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _shared_pool() -> _Pool:
    global _pool
    with _lock:
        if _pool is None:
            _pool = _Pool(1 + (os.cpu_count() or 1))
        return _pool


def _start(task: Callable[..., T], *arguments: Any) -> Future[T]:
    """task(*arguments) in a thread of the pool, or in this one where no other can take it."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(task(*arguments))
        except BaseException as error:
            future.set_exception(error)

    try:
        if sys.is_finalizing():  # daemons do not run any more
            run()
        else:
            _shared_pool().submit(run)
    except RuntimeError:  # no thread can be started
        run()
    return future


def thread_count(batch: int, most: int | None) -> int:
    """How many threads a batch deserves: at most `most`, None for the number of processors."""
    if most is None:
        most = _processors()
    elif not isinstance(most, Integral) or isinstance(most, bool) or most < 1:
        raise SettingsError(f"threads: expected None or an integer of at least 1, got {most!r}.")
    return min(int(most), max(1, batch // SAMPLES_PER_THREAD))


def run_apart(task: Callable[[], T]) -> T:
    """task(), in another thread if this is the main one, where signals are handled.

    A kernel that returns arrays ends by running Python code on them; an exception of Ctrl-C that is
    raised there crashes the process. Here it is raised at once, and the task's result is dropped.
    """
    if threading.current_thread() is not threading.main_thread():
        return task()
    return _start(task).result()


def split_range(task: Callable[[int, int], None], size: int, threads: int) -> None:
    """Call task(begin, end) on consecutive parts of range(size), one of them in this thread.

    An exception in any part is raised here, after all parts have ended.
    """
    edges = _edges(size, threads)
    parts = [_start(task, *edge) for edge in itertools.pairwise(edges[1:])]
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
    parts = [_start(task, *edge) for edge in itertools.pairwise(edges)]
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
