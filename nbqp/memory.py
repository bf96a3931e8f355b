"""What a call needs of the machine's memory, refused before it is taken where there is not as much.

A system that promises more memory than it has kills a process that takes what it was promised.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Iterator

from nbqp.errors import TooLargeError

try:
    import resource
except ImportError:  # Windows
    RESOURCE = None
else:
    RESOURCE = resource

UNQUESTIONED = 2**28
"""Bytes that are there: nobody is asked."""
NUMBER = 8
"""Bytes of a float64, and of an index."""
VECTORS = 70
"""Of the size of the KKT matrix that a solve works on, at the least."""
GIB = 2.0**30


def require_memory(what: str, size: float) -> None:
    """Raise `TooLargeError` where `size` bytes for `what` are more than the machine has left."""
    if size <= UNQUESTIONED:
        return
    left = available_memory()
    if size > left:
        raise too_large(what, size, left)


def too_large(what: str, size: float, left: float) -> TooLargeError:
    """The error for `what` takes `size` bytes where so many are left."""
    return TooLargeError(
        f"{what}: expected at most {left / GIB:.3g} GiB, which this process can still have, got an "
        f"estimate of {size / GIB:.3g} GiB."
    )


def available_memory() -> float:
    """Bytes that this process can still take.

    The least of what Linux has available, of what its control groups allow and of what RLIMIT_AS leaves;
    elsewhere all memory there is, or infinity where the system does not say.
    """
    return min((*_of_machine(), *_of_control_groups(), *_of_address_space()), default=math.inf)


def _read(path: pathlib.Path) -> str:
    """The text of a file of the system, empty where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _of_machine() -> Iterator[float]:
    for line in _read(pathlib.Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            yield 1024.0 * int(line.split()[1])
            return
    try:
        yield float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return


def _of_control_groups() -> Iterator[float]:
    """Of this process's group and of those above it, in either version of Linux's control groups."""
    root = pathlib.Path("/sys/fs/cgroup")
    for line in _read(pathlib.Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        group = pathlib.PurePosixPath(path.strip("/"))
        if controllers == "":
            yield from _left_of(root, group, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _left_of(root / "memory", group, *names)


def _left_of(
    root: pathlib.Path, group: pathlib.PurePosixPath, limit: str, usage: str, reclaimable: str
) -> Iterator[float]:
    """What the limits leave of a group and those above it; cached files count as free."""
    for part in (group, *group.parents):
        most, used = _read(root / part / limit).strip(), _read(root / part / usage).strip()
        if not most.isdigit() or not used.isdigit():  # no limit, or no such group
            continue
        cached = 0
        for line in _read(root / part / "memory.stat").splitlines():
            name, _, value = line.partition(" ")
            cached = int(value) if name == reclaimable else cached
        yield float(int(most) - int(used) + cached)


def _of_address_space() -> Iterator[float]:
    if RESOURCE is None:
        return
    limit, _ = RESOURCE.getrlimit(RESOURCE.RLIMIT_AS)
    pages = _read(pathlib.Path("/proc/self/statm")).split()
    if limit != RESOURCE.RLIM_INFINITY and pages:
        yield float(limit - int(pages[0]) * RESOURCE.getpagesize())
