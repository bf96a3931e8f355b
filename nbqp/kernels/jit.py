"""The decorators of all compiled code.

Numba optimises and assembles a function together with all it calls, at every level of the call
tree again. Inner kernels therefore stay intermediate code without wrappers for Python, and LLVM
links and sees each of them once, in the entry that they end up in: the machine code is the same.

Indices of arrays are never negative: none counts from the end. To allow for that took three instructions an
access, an eighth of the time of a sparse QP.

References to arrays and records are counted without atomic operations, inlined: counting took more than half
of the time of the smallest QPs.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from llvmlite import binding, ir
from numba.core import ir as numba_ir
from numba.core import types
from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags
from numba.core.compiler_machinery import LoweringPass, register_pass
from numba.core.typed_passes import AnnotateTypes, NativeLowering

from nbqp.kernels.cache import CheckedCache

F = TypeVar("F", bound=Callable[..., Any])

# 'contract' allows fused multiply-add and nothing else: isnan and isinf keep their meaning, and
# the order of every sum is the written one, but in a `reduction`.
FASTMATH = {"contract"}


@register_pass(mutates_CFG=False, analysis_only=True)
class _PrepareIntermediate(LoweringPass):  # type: ignore[misc]
    """Give the function a library that stays intermediate code: neither linked nor assembled."""

    _name = "nbqp_prepare_intermediate"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        library = state.targetctx.codegen().create_library(state.func_id.func_qualname)
        library.enable_object_caching()

        def finalise() -> None:
            library._finalize_dynamic_globals()
            library._finalized = True

        library._optimize_functions = lambda module: None
        library.finalize = finalise
        state.library = library
        state.flags.no_compile = True
        return False


def _unsigned(index: Any) -> Any:
    """The type of an index, its integers without a sign."""
    if isinstance(index, types.BaseTuple):
        return types.Tuple([_unsigned(one) for one in index])
    return types.uintp if isinstance(index, types.Integer) else index


def _with_unsigned_index(operation: Any, signature: Any) -> Any:
    """The signature of an operation; where it reads or writes an array, that of an unsigned index."""
    reads = isinstance(operation, numba_ir.Expr) and operation.op == "getitem"
    if not reads and not isinstance(operation, numba_ir.SetItem):
        return signature
    array, index, *value = signature.args
    if not isinstance(array, types.Array):
        return signature
    return signature.replace(args=(array, _unsigned(index), *value))


@register_pass(mutates_CFG=False, analysis_only=False)
class _UnsignedIndices(LoweringPass):  # type: ignore[misc]
    """Take indices of arrays as integers without a sign, which Numba uses as they are."""

    _name = "nbqp_unsigned_indices"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        state.calltypes = {
            operation: _with_unsigned_index(operation, signature)
            for operation, signature in state.calltypes.items()
        }
        return True


_COUNTING = {"NRT_incref": 1, "NRT_decref": -1}
"""Functions of Numba's runtime, and what they add to a count of references."""


@functools.cache
def _plain_counts() -> str:
    """Numba's functions for counting references to an array, without atomic operations, to be inlined.

    Whatever a kernel counts belongs to the thread that runs it: records and arrays of its own, and the
    arrays of its arguments, which Numba wraps anew for every call.
    """
    word, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    module = ir.Module("plain_counts")
    release = ir.Function(
        module, ir.FunctionType(ir.VoidType(), [pointer]), "NRT_MemInfo_call_dtor"
    )

    def define(name: str, change: int) -> None:
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer]), name)
        function.attributes.add("alwaysinline")
        counted = function.args[0]
        builder = ir.IRBuilder(function.append_basic_block())
        with builder.if_then(builder.icmp_unsigned("!=", counted, ir.Constant(pointer, None))):
            place = builder.bitcast(counted, word.as_pointer())
            count = builder.add(builder.load(place), ir.Constant(word, change))
            builder.store(count, place)
            if change < 0:
                last = builder.icmp_unsigned("==", count, ir.Constant(word, 0))
                with builder.if_then(last, likely=False):
                    builder.call(release, [counted])
        builder.ret_void()

    for name, change in _COUNTING.items():
        define(name, change)
    return str(module)


def _optimise_with_plain_counts(library: Any) -> None:
    """As Numba's own, which prunes counting between a cheap and a full optimisation."""
    codegen = library._codegen
    cheap, cheap_builder = codegen._module_pass_manager(
        loop_vectorize=codegen._loopvect, slp_vectorize=False, opt=codegen._opt_level, cost="cheap"
    )
    cheap.run(library._final_module, cheap_builder)
    # Strong definitions, which replace those that came with Numba's libraries.
    library._final_module.link_in(binding.parse_assembly(_plain_counts()))
    for name in _COUNTING:
        library._final_module.get_function(name).linkage = "internal"
    full, full_builder = codegen._module_pass_manager()
    full.run(library._final_module, full_builder)


def _callers_first(library: Any) -> list[Any]:
    """All libraries below one, each after all that call it: LLVM links only what it misses so far."""
    seen, callees_first = {library}, []

    def visit(caller: Any) -> None:
        for callee in caller._linking_libraries:
            if callee not in seen:
                seen.add(callee)
                visit(callee)
        callees_first.append(caller)

    visit(library)
    return callees_first[::-1]


@register_pass(mutates_CFG=False, analysis_only=True)
class _PrepareEntry(LoweringPass):  # type: ignore[misc]
    """Give the function a library that links all which is called below it, each kernel once."""

    _name = "nbqp_prepare_entry"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        library = state.targetctx.codegen().create_library(state.func_id.func_qualname)
        library.enable_object_caching()
        finalise = library.finalize

        def finalise_with_all() -> None:
            library._linking_libraries = _callers_first(library)[1:]
            library._optimize_final_module = lambda: _optimise_with_plain_counts(library)
            finalise()

        library.finalize = finalise_with_all
        state.library = library
        return False


@register_pass(mutates_CFG=False, analysis_only=True)
class _DeclareIntermediate(LoweringPass):  # type: ignore[misc]
    """Let other kernels call the function, which has no machine code of its own."""

    _name = "nbqp_declare_intermediate"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        # Numba knows a function by a built-in object; this one raises a TypeError when called.
        name = f"{state.func_id.func_qualname} is compiled into other kernels only"
        unique = "".join((name, f" {id(state.library)}")).__format__
        state.targetctx.insert_user_function(unique, state.cr.fndesc, [state.library])
        state.cr = state.cr._replace(cfunc=unique)
        return False


class _ReadFlags(Flags):  # type: ignore[misc]
    """Flags that do not change any more, collected once: Numba hashes them at every call it types."""

    @functools.cached_property
    def _collected(self) -> dict[str, Any]:
        return dict(super().values())

    @functools.cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def values(self) -> dict[str, Any]:
        return self._collected

    def __hash__(self) -> int:
        return self._hash

    __eq__ = Flags.__eq__


class _Flags(Flags):  # type: ignore[misc]
    """Flags of a function; the copy that is read while it compiles is a `_ReadFlags`."""

    def copy(self) -> _ReadFlags:
        return _ReadFlags(self)


class _EntryCompiler(CompilerBase):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state.flags = _Flags(self.state.flags)

    def compile_extra(self, func: Any) -> Any:
        """Compile with rare garbage collections: Python's usual ones take an eighth of the time."""
        usual = gc.get_threshold()
        gc.set_threshold(20_000, 20, 20)
        try:
            return super().compile_extra(func)
        finally:
            gc.set_threshold(*usual)

    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.add_pass_after(_PrepareEntry, AnnotateTypes)
        pipeline.add_pass_after(_UnsignedIndices, AnnotateTypes)
        pipeline.finalize()
        return [pipeline]


class _InnerCompiler(_EntryCompiler):
    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.add_pass_after(_PrepareIntermediate, AnnotateTypes)
        pipeline.add_pass_after(_UnsignedIndices, AnnotateTypes)
        pipeline.add_pass_after(_DeclareIntermediate, NativeLowering)
        pipeline.finalize()
        return [pipeline]


def _inner(function: F, fastmath: set[str]) -> F:
    options = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": fastmath,
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
    }
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
    compiled = numba.njit(
        nogil=True, error_model="numpy", fastmath=FASTMATH, pipeline_class=_EntryCompiler
    )(function)
    # No writable cache folder: every process compiles for itself.
    with contextlib.suppress(RuntimeError):
        compiled._cache = CheckedCache(function)
    return compiled  # type: ignore[no-any-return]
