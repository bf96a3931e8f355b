"""How often each compiled entry was compiled in this process."""

from __future__ import annotations

import importlib
import pkgutil

from numba.core.dispatcher import Dispatcher

import nbqp.kernels


def compiled_entries() -> dict[str, int]:
    """Number of compiled signatures of every kernel that Python calls, by its name."""
    counts = {}
    for module_info in pkgutil.iter_modules(nbqp.kernels.__path__):
        module = importlib.import_module(f"nbqp.kernels.{module_info.name}")
        for name, value in vars(module).items():
            # Inner kernels have no wrapper, and are compiled for each of their callers' types.
            if (
                isinstance(value, Dispatcher)
                and value.__module__ == module.__name__
                and not value.targetoptions.get("no_cpython_wrapper")
            ):
                counts[f"{module.__name__}.{name}"] = len(value.signatures)
    return counts
