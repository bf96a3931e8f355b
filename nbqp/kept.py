"""The latest results of a function, by what they were made of."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from nbqp.threads import hold_while_forking

Result = TypeVar("Result")


class Kept(Generic[Result]):
    """The results that were asked for last, for all threads.

    Parameters
    ----------
    count
        So many results are kept.
    size
        So large they are together, at most; one that is larger is not kept.

    Attributes
    ----------
    lock : threading.RLock
        Held while they are looked up or changed; a fork waits for it.
    """

    def __init__(self, count: int, size: int) -> None:
        self._count = count
        self._size = size
        self._results: OrderedDict[Hashable, tuple[Result, int]] = OrderedDict()
        self.lock = threading.RLock()
        hold_while_forking(self.lock)

    def find(self, size: int, key: Callable[[], Hashable], make: Callable[[], Result]) -> Result:
        """The result with that key and size, from `make` unless it is kept; threads may each call it at once."""
        if size > self._size:
            return make()
        wanted = key()
        found = self.get(wanted)
        if found is None:
            found = make()
            self.keep(size, wanted, found)
        return found

    def get(self, key: Hashable) -> Result | None:
        """The result with that key, None where it is not kept."""
        with self.lock:
            if key not in self._results:
                return None
            self._results.move_to_end(key)
            return self._results[key][0]

    def keep(self, size: int, key: Hashable, result: Result) -> None:
        """Keep a result of that size with that key, unless it is too large."""
        if size > self._size:
            return
        with self.lock:
            self._results[key] = result, size
            while len(self._results) > self._count or self._total() > self._size:
                self._results.popitem(last=False)

    def clear(self) -> None:
        """Keep none of them any longer."""
        with self.lock:
            self._results.clear()

    def _total(self) -> int:
        return sum(size for _, size in self._results.values())
