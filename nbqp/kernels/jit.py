"""The decorators of all compiled code, and the stamp that keeps its cache honest.

Numba stamps a cached function with its *own* source file only: a callee that changed in
another file would leave the old machine code running, also across upgrades. `entry` therefore
stamps every cached function with one hash over the whole kernels package.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])

# 'contract' allows fused multiply-add and nothing else: isnan and isinf keep their meaning, and
# the order of every sum is the written one.
FASTMATH = {"contract"}


def _package_stamp() -> str:
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


PACKAGE_STAMP = _package_stamp()


def kernel(function: F) -> F:
    """Compile a function that other kernels call; it is compiled into its callers' cache."""
    return numba.njit(nogil=True, error_model="numpy", fastmath=FASTMATH)(function)  # type: ignore[no-any-return]


def reduction(function: F) -> F:
    """Compile a kernel whose sums may be reordered, so that they use vector registers.

    The order is fixed once compiled: a result depends on the machine, never on the run.
    """
    fastmath = FASTMATH | {"reassoc", "nsz"}
    return numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)  # type: ignore[no-any-return]


def exact(function: F) -> F:
    """Compile a kernel of error-free transformations: not even fused multiply-add is allowed."""
    return numba.njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]


def entry(function: F) -> F:
    """Compile a kernel that Python calls, and cache it on disk where some folder is writable."""
    if numba.config.DISABLE_JIT:
        return function
    compiled = numba.njit(nogil=True, error_model="numpy", fastmath=FASTMATH)(function)
    try:
        compiled.enable_caching()
    except RuntimeError:  # no writable cache folder: every process compiles for itself
        return compiled  # type: ignore[no-any-return]
    compiled._cache._cache_file._source_stamp = PACKAGE_STAMP
    return compiled  # type: ignore[no-any-return]
