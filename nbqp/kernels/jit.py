"""The decorators of all compiled code, and the stamp that keeps its cache honest.

Numba optimises a function together with all it calls, at every level of the call tree again. Inner
kernels are therefore left as they are, and LLVM sees each of them once, in the entry that they end
up in: the code is the same, and compiling takes a third of the time.

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
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import LoweringPass, register_pass
from numba.core.typed_passes import AnnotateTypes

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


@register_pass(mutates_CFG=False, analysis_only=True)
class _LeaveUnoptimised(LoweringPass):  # type: ignore[misc]
    """Give the function a library that does not optimise itself."""

    _name = "nbqp_leave_unoptimised"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        library = state.targetctx.codegen().create_library(state.func_id.func_qualname)
        library.enable_object_caching()
        library._optimize_final_module = lambda: None
        state.library = library
        return False


class _InnerCompiler(CompilerBase):  # type: ignore[misc]
    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.add_pass_after(_LeaveUnoptimised, AnnotateTypes)
        pipeline.finalize()
        return [pipeline]


def _inner(function: F, fastmath: set[str]) -> F:
    options = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    return numba.njit(pipeline_class=_InnerCompiler, **options)(function)  # type: ignore[no-any-return]


def kernel(function: F) -> F:
    """Compile a function that other kernels call; it is compiled into its callers' cache."""
    return _inner(function, FASTMATH)


def reduction(function: F) -> F:
    """Compile a kernel whose sums may be reordered, so that they use vector registers.

    The order is fixed once compiled: a result depends on the machine, never on the run.
    """
    return _inner(function, FASTMATH | {"reassoc", "nsz"})


def exact(function: F) -> F:
    """Compile a kernel of error-free transformations: not even fused multiply-add is allowed."""
    return _inner(function, set())


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
