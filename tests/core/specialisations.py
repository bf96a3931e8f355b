"""How often each compiled entry was compiled in this process."""

from __future__ import annotations

import importlib
import pkgutil

import nbqp.kernels


def compiled_entries() -> dict[str, int]:
    """Number of compiled signatures of every kernel that Python calls, by its name."""
    counts = {}
    for module_info in pkgutil.iter_modules(nbqp.kernels.__path__):
        module = importlib.import_module(f"nbqp.kernels.{module_info.name}")
        for name, value in vars(module).items():
            # Inner kernels are compiled for each of their callers' types, and have no stamp.
            own = getattr(value, "__module__", "") == module.__name__
            if own and hasattr(getattr(value, "_cache", None), "_cache_file"):
                counts[f"{module.__name__}.{name}"] = len(value.signatures)
    return counts
