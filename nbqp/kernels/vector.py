"""Instructions that Numba does not offer: eight doubles as one value, and the error of a product.

Numba's SLP vectoriser is off and LLVM's loop vectoriser gives up on a register tile with several
columns (it cannot prove that they do not overlap). These intrinsics write the vector code
directly: `<8 x double>` is one AVX-512 register, two AVX2 registers, or four NEON registers.
Under NUMBA_DISABLE_JIT, where intrinsics cannot run, the plain-Python twins below take over.

==================== =============================================================
load(a, i)           a[i : i+8], or the entry i of an array of vectors
load_head(a, i, m)   a[i : i+m] followed by 8-m zeros; a[i+m:] is not touched
store(a, i, v)       a[i : i+8] = v, or the entry i of an array of vectors
store_head(a,i,v,m)  a[i : i+m] = v[:m]; a[i+m:] is not touched
splat(s)             the scalar s in all eight places
part(a, i)           the entry i of a vector
fma(a, b, c)         a * b + c for vectors
total(a)             the sum of a vector, halves first
peak(a)              the largest entry of a vector
scaled(a, s)         a * s for a vector a and a scalar s
negative_fma(a,s,c)  c - a * s for a vector a, a scalar s and a vector c
product_error(a,b,p) a b - p exactly for scalars, or vectors, with p = fl(a b)
==================== =============================================================
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.typeconv import Conversion
from numba.extending import intrinsic, models, register_model

WIDTH = 8

if numba.config.DISABLE_JIT:

    def load(a, i):
        return np.array(a[i] if a.ndim == 2 else a[i : i + WIDTH])

    def load_head(a, i, m):
        v = np.zeros(WIDTH)
        v[:m] = a[i : i + m]
        return v

    def store(a, i, v):
        if a.ndim == 2:
            a[i] = v
        else:
            a[i : i + WIDTH] = v

    def store_head(a, i, v, m):
        a[i : i + m] = v[:m]

    def splat(s):
        return np.full(WIDTH, s)

    def part(a, i):
        return a[i]

    def fma(a, b, c):
        return a * b + c

    def total(a):
        a = a[:4] + a[4:]
        a = a[:2] + a[2:]
        return a[0] + a[1]

    def peak(a):
        return a.max()

    def scaled(a, s):
        return a * s

    def negative_fma(a, s, c):
        return c - a * s

    def product_error(a, b, p):
        """Dekker's, by halves of the digits; no overflow below 1e292."""
        t = 134217729.0 * a
        a_high = t - (t - a)
        a_low = a - a_high
        t = 134217729.0 * b
        b_high = t - (t - b)
        b_low = b - b_high
        return ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low

else:

    class _Vector(types.Type):
        """Eight doubles; a double or an integer becomes one with eight times the same."""

        def __init__(self):
            super().__init__(name=f"float64x{WIDTH}")

        def can_convert_from(self, typingctx, other):
            return Conversion.safe if isinstance(other, (types.Float, types.Integer)) else None

        def unify(self, typingctx, other):
            return self if isinstance(other, (types.Float, types.Integer)) else None

    VECTOR = _Vector()
    _DOUBLE = ir.DoubleType()
    _IR_VECTOR = ir.VectorType(_DOUBLE, WIDTH)
    _IR_MASK = ir.VectorType(ir.IntType(1), WIDTH)
    _IR_INDEX = ir.VectorType(ir.IntType(64), WIDTH)

    @register_model(_Vector)
    class _VectorModel(models.PrimitiveModel):
        def __init__(self, dmm, fe_type):
            super().__init__(dmm, fe_type, _IR_VECTOR)

    def _pointer(context, builder, array_type, array, index):
        data = context.make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(data, [index]), _IR_VECTOR.as_pointer())

    def spread(builder, value, vector_type):
        """A value of LLVM in all places of a vector of its kind."""
        first = builder.insert_element(
            ir.Constant(vector_type, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
        )
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
        return builder.shuffle_vector(first, ir.Constant(vector_type, ir.Undefined), lanes)

    def _head_mask(builder, m):
        lanes = ir.Constant(_IR_INDEX, list(range(WIDTH)))
        return builder.icmp_signed("<", lanes, spread(builder, m, _IR_INDEX))

    def _masked(builder, name, return_type, argument_types):
        return builder.module.declare_intrinsic(
            name, fnty=ir.FunctionType(return_type, argument_types)
        )

    def _fmuladd(builder):
        return builder.module.declare_intrinsic(
            f"llvm.fmuladd.v{WIDTH}f64", fnty=ir.FunctionType(_IR_VECTOR, [_IR_VECTOR] * 3)
        )

    @intrinsic
    def load(typingctx, a, i):
        def codegen(context, builder, signature, args):
            pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
            return builder.load(pointer, align=8)

        return VECTOR(a, types.int64), codegen

    @intrinsic
    def store(typingctx, a, i, v):
        def codegen(context, builder, signature, args):
            pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
            builder.store(args[2], pointer, align=8)

        return types.void(a, types.int64, VECTOR), codegen

    @intrinsic
    def load_head(typingctx, a, i, m):
        def codegen(context, builder, signature, args):
            pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
            function = _masked(
                builder,
                f"llvm.masked.load.v{WIDTH}f64.p0",
                _IR_VECTOR,
                [pointer.type, ir.IntType(32), _IR_MASK, _IR_VECTOR],
            )
            zero = ir.Constant(_IR_VECTOR, [0.0] * WIDTH)
            mask = _head_mask(builder, args[2])
            return builder.call(function, [pointer, ir.Constant(ir.IntType(32), 8), mask, zero])

        return VECTOR(a, types.int64, types.int64), codegen

    @intrinsic
    def store_head(typingctx, a, i, v, m):
        def codegen(context, builder, signature, args):
            pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
            function = _masked(
                builder,
                f"llvm.masked.store.v{WIDTH}f64.p0",
                ir.VoidType(),
                [_IR_VECTOR, pointer.type, ir.IntType(32), _IR_MASK],
            )
            mask = _head_mask(builder, args[3])
            builder.call(function, [args[2], pointer, ir.Constant(ir.IntType(32), 8), mask])

        return types.void(a, types.int64, VECTOR, types.int64), codegen

    @intrinsic
    def splat(typingctx, s):
        def codegen(context, builder, signature, args):
            return spread(builder, args[0], _IR_VECTOR)

        return VECTOR(types.float64), codegen

    @intrinsic
    def part(typingctx, a, i):
        def codegen(context, builder, signature, args):
            return builder.extract_element(args[0], args[1])

        return types.float64(VECTOR, types.int64), codegen

    @intrinsic
    def fma(typingctx, a, b, c):
        def codegen(context, builder, signature, args):
            return builder.call(_fmuladd(builder), args)

        return VECTOR(VECTOR, VECTOR, VECTOR), codegen

    def _folded(builder, vector, combine):
        """The entries of a vector as one number, halves first."""
        for half in (4, 2, 1):
            lanes = ir.VectorType(ir.IntType(32), half)
            low = builder.shuffle_vector(vector, vector, ir.Constant(lanes, list(range(half))))
            high = ir.Constant(lanes, list(range(half, 2 * half)))
            vector = combine(low, builder.shuffle_vector(vector, vector, high))
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    @intrinsic
    def total(typingctx, a):
        def codegen(context, builder, signature, args):
            return _folded(builder, args[0], builder.fadd)

        return types.float64(VECTOR), codegen

    @intrinsic
    def peak(typingctx, a):
        def codegen(context, builder, signature, args):
            def larger(a, b):
                return builder.select(builder.fcmp_ordered(">", a, b), a, b)

            return _folded(builder, args[0], larger)

        return types.float64(VECTOR), codegen

    @intrinsic
    def scaled(typingctx, a, s):
        def codegen(context, builder, signature, args):
            return builder.fmul(args[0], spread(builder, args[1], _IR_VECTOR))

        return VECTOR(VECTOR, types.float64), codegen

    @intrinsic
    def negative_fma(typingctx, a, s, c):
        def codegen(context, builder, signature, args):
            scale = spread(builder, builder.fneg(args[1]), _IR_VECTOR)
            return builder.call(_fmuladd(builder), [args[0], scale, args[2]])

        return VECTOR(VECTOR, types.float64, VECTOR), codegen

    @intrinsic
    def product_error(typingctx, a, b, p):
        kind = VECTOR if VECTOR in (a, b, p) else types.float64

        def codegen(context, builder, signature, args):
            value, name = (_IR_VECTOR, f"v{WIDTH}f64") if kind == VECTOR else (_DOUBLE, "f64")
            function = builder.module.declare_intrinsic(
                f"llvm.fma.{name}", fnty=ir.FunctionType(value, [value] * 3)
            )
            a, b, p = args
            return builder.call(function, [a, b, builder.fneg(p)])

        return kind(kind, kind, kind), codegen
