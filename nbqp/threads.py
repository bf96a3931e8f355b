"""The package's own threads: serial kernels without the GIL, side by side on parts of a batch.

Numba's parallel loops are not used: their threading layers abort on concurrent calls or in forked
children. The pool is made when first needed and anew after a fork; the caller works on a part too.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from nbqp.errors import SettingsError

SAMPLES_PER_THREAD = 8
"""Below this many samples a thread costs more than it gains."""

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """A forked child has the pool object but none of its threads."""
    global _pool, _lock
    _pool = None
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="nbqp")
        return _pool


def thread_count(batch: int, most: int | None) -> int:
    """How many threads a batch deserves: at most `most`, None for the number of processors."""
    if most is not None and most < 1:
        raise SettingsError(f"threads: expected an integer of at least 1, got {most}.")
    processors = most if most is not None else (os.cpu_count() or 1)
    return min(processors, max(1, batch // SAMPLES_PER_THREAD))


def split_range(task: Callable[[int, int], None], size: int, threads: int) -> None:
    """Call task(begin, end) on consecutive parts of range(size), one of them in this thread.

    An exception in any part is raised here, after all parts have ended.
    """
    threads = max(1, min(threads, size))
    edges = [size * k // threads for k in range(threads + 1)]
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
