"""Numbers of kernels that solve one QP or eight at once: doubles, or vectors with one of each QP.

The same source is compiled for either. Vectors have arithmetic, comparisons, which give masks, and
arrays; numbers mix with them. Where a double would branch, `where` selects, so that no QP feels what
its neighbours do. Names in the source stand for either kind:

================= ==============================================================
where(c, a, b)    a where the condition c holds, else b; both are evaluated
maximum(a, b)     b where b > a, else a: a where either is NaN
minimum(a, b)     b where b < a, else a
larger(a, b)      the larger one; NaN where either is
any_of(c)         whether a condition holds for some QP, a bool
opposite(c)       the condition that c does not hold
empty(like, n)    an array of n numbers of the same kind as `like`, uninitialised
zeros(like, n)    an array of n numbers of the same kind as `like`, 0
lanes_of(a)       an array of vectors as an array of doubles, eight for each of them
by_kind(f, g)     g where some argument is an array of vectors, else f
================= ==============================================================

Under NUMBA_DISABLE_JIT a vector is an array of eight, and an array of vectors has eight columns.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import lower_builtin, lower_cast, lower_constant
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, overload, register_model, typeof_impl

from nbqp.kernels.vector import WIDTH

CACHE_LINE = 64

if numba.config.DISABLE_JIT:

    class _Vectors(np.ndarray):  # type: ignore[type-arg]
        """An array (n, 8) whose entries, rows, are values, not views."""

        def __getitem__(self, key: Any) -> Any:
            value = super().__getitem__(key)
            return np.array(value) if isinstance(key, (int, np.integer)) else value

        def __setitem__(self, key: Any, value: Any) -> None:
            # NumPy would assign to what `__getitem__` returns.
            self.view(np.ndarray)[key] = value

    def where(c, a, b):
        return np.where(c, a, b)[()]

    def maximum(a, b):
        return np.where(np.greater(b, a), b, a)[()]

    def minimum(a, b):
        return np.where(np.less(b, a), b, a)[()]

    def larger(a, b):
        return np.maximum(a, b)

    def any_of(c):
        return bool(np.any(c))

    def opposite(c):
        return np.logical_not(c)

    def zeros(like, n):
        if np.ndim(like) == 0:
            return np.zeros(n)
        return np.zeros((n, WIDTH)).view(_Vectors)

    empty = zeros

    def lanes_of(a):
        return a.view(np.ndarray).reshape(-1)

    def by_kind(scalar: Callable[..., Any], vector: Callable[..., Any]) -> Callable[..., Any]:
        def chosen(*args: Any) -> Any:
            wide = any(isinstance(a, _Vectors) for a in args)
            return (vector if wide else scalar)(*args)

        return chosen

else:
    from nbqp.kernels.vector import VECTOR, spread

    _LANES = ir.VectorType(ir.DoubleType(), WIDTH)
    _BITS = ir.VectorType(ir.IntType(1), WIDTH)
    VECTORS = types.Array(VECTOR, 1, "C")

    class _Mask(types.Type):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name=f"bool_x{WIDTH}")

    MASK = _Mask()

    @register_model(_Mask)
    class _MaskModel(models.PrimitiveModel):  # type: ignore[misc]
        def __init__(self, dmm, fe_type):
            super().__init__(dmm, fe_type, _BITS)

    def _is_number(kind):
        return kind == VECTOR or isinstance(kind, (types.Float, types.Integer))

    def _widened(context, builder, kind, value):
        """A double or an integer as a vector, a bool as a mask; vectors and masks as they are."""
        if kind == VECTOR or kind == MASK:
            return value
        if kind == types.boolean:
            return spread(builder, value, _BITS)
        return spread(builder, context.cast(builder, value, kind, types.float64), _LANES)

    @lower_cast(types.Float, VECTOR)
    @lower_cast(types.Integer, VECTOR)
    @lower_cast(types.Boolean, MASK)
    def _cast(context, builder, source, target, value):
        return _widened(context, builder, source, value)

    def _operator(function, result, emit, arity=2):
        """Define an operator on vectors and numbers, at least one of which is a vector."""

        @infer_global(function)
        class _Template(AbstractTemplate):  # type: ignore[misc]
            def generic(self, args, kws):
                if len(args) == arity and VECTOR in args and all(map(_is_number, args)):
                    return signature(result, *args)
                return None

        def lower(context, builder, sig, args):
            wide = [_widened(context, builder, *pair) for pair in zip(sig.args, args, strict=True)]
            return emit(context, builder, *wide)

        for kinds in {1: [(VECTOR,)], 2: _PAIRS}[arity]:
            lower_builtin(function, *kinds)(lower)

    _OTHERS = (types.Float, types.Integer)
    _PAIRS = [(VECTOR, VECTOR)]
    _PAIRS += [(VECTOR, other) for other in _OTHERS] + [(other, VECTOR) for other in _OTHERS]

    for _function, _in_place, _name in (
        (operator.add, operator.iadd, "fadd"),
        (operator.sub, operator.isub, "fsub"),
        (operator.mul, operator.imul, "fmul"),
        (operator.truediv, operator.itruediv, "fdiv"),
    ):

        def _emit(context, builder, a, b, _name=_name):
            return getattr(builder, _name)(a, b)

        _operator(_function, VECTOR, _emit)
        _operator(_in_place, VECTOR, _emit)

    for _function, _name in (
        (operator.lt, "<"),
        (operator.le, "<="),
        (operator.gt, ">"),
        (operator.ge, ">="),
        (operator.eq, "=="),
    ):

        def _emit(context, builder, a, b, _name=_name):
            return builder.fcmp_ordered(_name, a, b)

        _operator(_function, MASK, _emit)

    _operator(operator.ne, MASK, lambda context, builder, a, b: builder.fcmp_unordered("!=", a, b))
    _operator(operator.neg, VECTOR, lambda context, builder, a: builder.fneg(a), arity=1)

    def _emit_abs(context, builder, a):
        name = f"llvm.fabs.v{WIDTH}f64"
        kind = ir.FunctionType(_LANES, [_LANES])
        return builder.call(builder.module.declare_intrinsic(name, fnty=kind), [a])

    _operator(abs, VECTOR, _emit_abs, arity=1)

    def _logical(function, emit):
        @infer_global(function)
        class _Template(AbstractTemplate):  # type: ignore[misc]
            def generic(self, args, kws):
                kinds = (MASK, types.boolean)
                if MASK in args and len(args) == 2 and all(kind in kinds for kind in args):
                    return signature(MASK, *args)
                return None

        def lower(context, builder, sig, args):
            wide = [_widened(context, builder, *pair) for pair in zip(sig.args, args, strict=True)]
            return emit(builder, *wide)

        for kinds in ((MASK, MASK), (MASK, types.boolean), (types.boolean, MASK)):
            lower_builtin(function, *kinds)(lower)

    _logical(operator.and_, lambda builder, a, b: builder.and_(a, b))
    _logical(operator.or_, lambda builder, a, b: builder.or_(a, b))

    def _common(a, b):
        """The kind of a number that is one of two; None where they are none."""
        if not (_is_number(a) and _is_number(b)):
            return None
        return VECTOR if VECTOR in (a, b) else types.float64

    @intrinsic
    def where(typingctx, c, a, b):
        kind = _common(a, b)
        if kind is None:
            return None
        if c == MASK:
            kind = VECTOR

        def codegen(context, builder, sig, args):
            a, b = (
                context.cast(builder, value, source, kind)
                for value, source in zip(args[1:], sig.args[1:], strict=True)
            )
            return builder.select(args[0], a, b)

        return signature(kind, c, a, b), codegen

    def _selection(combine):
        """The type and code of a number that `combine` makes of two of its kind."""

        def typer(a, b):
            kind = _common(a, b)
            if kind is None:
                return None

            def codegen(context, builder, sig, args):
                a, b = (
                    context.cast(builder, value, source, kind)
                    for value, source in zip(args, sig.args, strict=True)
                )
                return combine(builder, a, b)

            return signature(kind, a, b), codegen

        return typer

    def _select(order):
        """B where it compares so with a, else a."""
        return lambda builder, a, b: builder.select(builder.fcmp_ordered(order, b, a), b, a)

    def _emit_larger(builder, a, b):
        # LLVM knows this one as a reduction, of which it keeps several, in vectors.
        name = f"llvm.maximum.{f'v{WIDTH}f64' if a.type == _LANES else 'f64'}"
        kind = ir.FunctionType(a.type, [a.type] * 2)
        return builder.call(builder.module.declare_intrinsic(name, fnty=kind), [a, b])

    @intrinsic
    def maximum(typingctx, a, b):
        return _selection(_select(">"))(a, b)

    @intrinsic
    def minimum(typingctx, a, b):
        return _selection(_select("<"))(a, b)

    @intrinsic
    def larger(typingctx, a, b):
        return _selection(_emit_larger)(a, b)

    @intrinsic
    def any_of(typingctx, c):
        def codegen(context, builder, sig, args):
            if sig.args[0] == MASK:
                bits = builder.bitcast(args[0], ir.IntType(WIDTH))
                return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(WIDTH), 0))
            return args[0]

        return signature(types.boolean, c), codegen

    DOUBLES = types.Array(types.float64, 1, "C")

    def _viewed(context, builder, source_type, source, target_type, itemsize, count):
        """The same memory as an array of another kind."""
        source = context.make_array(source_type)(context, builder, source)
        target = context.make_array(target_type)(context, builder)
        size = context.get_constant(types.intp, itemsize)
        context.populate_array(
            target,
            data=builder.bitcast(source.data, target.data.type),
            shape=cgutils.pack_array(builder, [count]),
            strides=cgutils.pack_array(builder, [size]),
            itemsize=size,
            meminfo=source.meminfo,
            parent=source.parent,
        )
        return target._getvalue()

    @intrinsic
    def _as_vectors(typingctx, a):
        def codegen(context, builder, sig, args):
            array = context.make_array(DOUBLES)(context, builder, args[0])
            width = context.get_constant(types.intp, WIDTH)
            count = builder.sdiv(builder.extract_value(array.shape, 0), width)
            view = _viewed(context, builder, DOUBLES, args[0], VECTORS, 8 * WIDTH, count)
            context.nrt.incref(builder, VECTORS, view)
            return view

        return signature(VECTORS, DOUBLES), codegen

    @intrinsic
    def lanes_of(typingctx, a):
        def codegen(context, builder, sig, args):
            array = context.make_array(VECTORS)(context, builder, args[0])
            width = context.get_constant(types.intp, WIDTH)
            count = builder.mul(builder.extract_value(array.shape, 0), width)
            view = _viewed(context, builder, VECTORS, args[0], DOUBLES, 8, count)
            context.nrt.incref(builder, DOUBLES, view)
            return view

        return signature(DOUBLES, VECTORS), codegen

    @intrinsic
    def opposite(typingctx, c):
        def codegen(context, builder, sig, args):
            return builder.not_(args[0])

        return signature(c, c), codegen

    def empty(like, n):
        raise NotImplementedError

    @overload(empty)
    def _empty(like, n):
        if like == VECTOR:

            def of_vectors(like, n):
                # Numba's own indexing takes the entries of an array for aligned.
                memory = np.empty(WIDTH * n + CACHE_LINE // 8)
                first = (-memory.ctypes.data % CACHE_LINE) // 8
                return _as_vectors(memory[first : first + WIDTH * n])

            return of_vectors
        return lambda like, n: np.empty(n)

    def zeros(like, n):
        raise NotImplementedError

    @overload(zeros)
    def _zeros(like, n):
        def filled(like, n):
            array = empty(like, n)
            array[:] = 0.0
            return array

        return filled

    class _Choice:
        """A pair of kernels, called by one name."""

        def __init__(self, scalar, vector):
            self.scalar = scalar
            self.vector = vector

    class _ChoiceType(types.Callable):  # type: ignore[misc]
        def __init__(self, choice):
            self.scalar = types.Dispatcher(choice.scalar)
            self.vector = types.Dispatcher(choice.vector)
            super().__init__(name=f"choice({self.scalar.name}, {self.vector.name})")

        def _chosen(self, args):
            return self.vector if VECTORS in args else self.scalar

        def get_call_type(self, context, args, kws):
            return self._chosen(args).get_call_type(context, args, kws)

        def get_call_signatures(self):
            return self.scalar.get_call_signatures()

        def get_impl_key(self, sig):
            return self._chosen(sig.args).get_impl_key(sig)

        @property
        def key(self):
            return self.scalar, self.vector

    register_model(_ChoiceType)(models.OpaqueModel)

    @typeof_impl.register(_Choice)
    def _typeof_choice(value, context):
        return _ChoiceType(value)

    @lower_constant(_ChoiceType)
    def _constant_choice(context, builder, kind, value):
        return context.get_dummy_value()

    by_kind = _Choice
