"""The cache of compiled code on disk, of which nothing runs but what this version has saved.

Numba stamps a cached function with its *own* source file only: a callee that changed in another file would
leave the old machine code running, also across upgrades. The stamp here is that of the whole kernels package.

Numba writes the index of a function before its code, and believes both: a process that is killed in between,
or two that write at once, leave an index that names the code of another version or another processor. Stamp
and key are therefore saved with the code as well, and a digest behind them, since code that a disk has
damaged would crash the process or compute something else.
"""

from __future__ import annotations

import hashlib
import pathlib
import pickle
import warnings
from typing import Any

import llvmlite
import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

DIGEST_SIZE = 16


def _package_stamp() -> str:
    """A hash of all kernels, and of what else decides on their code, but for the processor."""
    digest = hashlib.sha256(repr((llvmlite.__version__, numba.config.BOUNDSCHECK)).encode())
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


PACKAGE_STAMP = _package_stamp()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_SIZE).digest()


class _CheckedFile(IndexDataCacheFile):  # type: ignore[misc]
    """The files of one function: what cannot be read, or is not what was asked for, is not there."""

    def save(self, key: Any, data: Any) -> None:
        super().save(key, (self._source_stamp, key, data))

    def load(self, key: Any) -> Any:
        found = super().load(key)
        if found is None or found[:2] != (self._source_stamp, key):
            return None
        return found[2]

    # A pickle that is damaged, or names classes that an upgrade has renamed, may raise anything.

    def _load_index(self) -> dict[Any, Any]:
        try:
            return dict(super()._load_index())
        except Exception:
            return {}

    def _load_data(self, name: str) -> Any:
        saved = pathlib.Path(self._data_path(name)).read_bytes()
        content, digest = saved[:-DIGEST_SIZE], saved[-DIGEST_SIZE:]
        if digest != _digest(content):
            return None
        try:
            return pickle.loads(content)
        except Exception:
            return None

    def _dump(self, obj: Any) -> bytes:
        content: bytes = super()._dump(obj)
        # Behind the content, where readers of a pickle do not look.
        return content + _digest(content)


class CheckedCache(FunctionCache):  # type: ignore[misc]
    """The cache of one function. Where it cannot be written, that is a warning, and the code runs.

    Raises
    ------
    RuntimeError
        No cache folder is writable.
    """

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        stamp = (PACKAGE_STAMP, self._impl.locator.get_source_stamp())
        self._cache_file = _CheckedFile(self.cache_path, self._impl.filename_base, stamp)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save the code of a signature; where that fails, warn."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            warnings.warn(
                f"nbqp: compiled code could not be saved in {self.cache_path}, so that every process compiles "
                f"for itself: {error}.",
                RuntimeWarning,
                stacklevel=2,
            )
