"""The package's own threads: serial kernels without the GIL, side by side on parts of a batch.

Numba's parallel loops are not used: their threading layers abort on concurrent calls or in forked
children. The pool is made when first needed and anew after a fork. A fork waits for whoever holds one of the
locks, Numba's among them, while kernels compile: the child would have the lock, but not the thread that
releases it.
"""

from __future__ import annotations

import itertools
import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from numbers import Integral
from typing import Any, TypeVar

from numba.core.compiler_lock import global_compiler_lock

from nbqp.errors import SettingsError
from nbqp.watch import OutOfTime, Watch, in_main_thread

WORTH = 1e-3
"""Seconds of work, about, that a thread has to get: with less, to wake it costs more than it gains."""
WATCH_INTERVAL = 0.1
"""Seconds between two looks at the clock: Ctrl-C waits for the next one on Windows."""
MANY_BYTES = 2**26
"""Which NumPy takes a noticeable time for."""

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
_loaded: set[object] = set()


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


def thread_count(batch: int, most: int | None, work: float, at_once: int = 1) -> int:
    """How many threads a batch deserves that takes about `work` seconds.

    most: at most so many, None for the number of processors. at_once: samples that a thread works on at a time.
    """
    if most is not None and (not isinstance(most, Integral) or isinstance(most, bool) or most < 1):
        raise SettingsError(f"threads: expected None or an integer of at least 1, got {most!r}.")
    worthwhile = min(batch // at_once, int(work / WORTH) if WORTH else batch)
    if worthwhile <= 1:
        return 1
    return min(_processors() if most is None else int(most), worthwhile)


def run_apart(task: Callable[[], T], watch: Watch) -> T:
    """task(), in another thread if this is the main one or there is a time limit.

    A kernel that returns arrays ends by running Python code on them; an exception of Ctrl-C that is
    raised there crashes the process. Here it is raised at once, and the task's result is dropped.

    Raises
    ------
    OutOfTime
        As quickly where the time limit strikes.
    """
    if not watch.timed and not in_main_thread():
        return task()
    part = _start(task)
    try:
        if not _wait([part], watch):
            raise OutOfTime
    except BaseException:
        watch.stop()
        raise
    return part.result()


def run_apart_if_large(task: Callable[[], T], size: int, watch: Watch) -> T:
    """task(), apart where it works on so many bytes that Ctrl-C would wait: no operation of NumPy ends for it."""
    return task() if size < MANY_BYTES else run_apart(task, watch)


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


def load_kernel(kernel: object, task: Callable[[int, int], None]) -> None:
    """Compile the kernel that the task calls, or load it, where this has not been done."""
    if kernel not in _loaded:
        task(0, 0)
        _loaded.add(kernel)


def split_range_watched(
    task: Callable[[int, int], None],
    size: int,
    threads: int,
    watch: Watch,
    seconds: float,
    kernel: object,
) -> None:
    """`split_range`, in other threads if the watch is needed, while this one minds the clock and Ctrl-C.

    The watch is told to stop when its time is over, or on an exception such as `KeyboardInterrupt`, which
    is raised again once the tasks, which poll its flag, have ended.

    Parameters
    ----------
    seconds
        An estimate of all the work.
    kernel
        What the task calls: compiled, or loaded, in this thread, where Ctrl-C ends that too.
    """
    if not watch.needed(seconds):
        split_range(task, size, threads)
        return
    load_kernel(kernel, task)
    edges = _edges(size, threads)
    parts = [_start(task, *edge) for edge in itertools.pairwise(edges)]
    try:
        if not _wait(parts, watch):
            watch.stop()
            wait(parts)
    except BaseException:
        watch.stop()
        wait(parts)
        raise
    for part in parts:
        part.result()


def _wait(parts: Sequence[Future[T]], watch: Watch) -> bool:
    """Wait until the parts have ended or the time is over; returns whether they have ended."""
    while wait(parts, min(WATCH_INTERVAL, watch.left())).not_done:
        if watch.left() == 0.0:
            return False
    return True


def _edges(size: int, threads: int) -> list[int]:
    threads = max(1, min(threads, size))
    return [size * part // threads for part in range(threads + 1)]
