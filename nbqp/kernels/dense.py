"""Loops over dense vectors.

Written out, since slice assignments between arrays drag in Numba's shape errors, which take
seconds to compile.
"""

from __future__ import annotations

from nbqp.kernels.jit import kernel, reduction
from nbqp.kernels.number import larger


@kernel
def copy(source, target):
    """target[: len(source)] = source."""
    for i in range(len(source)):
        target[i] = source[i]


@kernel
def axpy(y, a, x):
    """y[: len(x)] += a * x."""
    for i in range(len(x)):
        y[i] += a * x[i]


@reduction
def dot(x, y):
    """X'y."""
    total = 0.0
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


@kernel
def largest(x):
    """Max |x_i|, 0 for an empty x; NaN where x has one."""
    value = 0.0
    for i in range(len(x)):
        value = larger(value, abs(x[i]))
    return value


@kernel
def sort_ascending(values):
    """Shell sort in place (Ciura's gaps); compiles ten times faster than ndarray.sort."""
    for gap in (701, 301, 132, 57, 23, 10, 4, 1):
        for i in range(gap, len(values)):
            value = values[i]
            k = i
            while k >= gap and values[k - gap] > value:
                values[k] = values[k - gap]
                k -= gap
            values[k] = value
