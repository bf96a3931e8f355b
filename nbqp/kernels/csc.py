"""Products with sparse matrices stored by columns, with plain and with compensated sums.

Matrices are (Mp, Mi, Mx): Mp (columns + 1), Mi and Mx (nnz). All operands but the last are not
modified.
"""

from __future__ import annotations

from nbqp.kernels.dense import axpy, dot
from nbqp.kernels.jit import exact, kernel, reduction
from nbqp.kernels.number import any_of
from nbqp.kernels.vector import product_error


@kernel
def first_of_dense(Mi, begin, end):
    """The first row of a column without gaps, whose entries need no indices; otherwise -1."""
    if end > begin and Mi[end - 1] - Mi[begin] == end - 1 - begin:
        return Mi[begin]
    return -1


@kernel
def add_product(Mp, Mi, Mx, x, out):
    """Add M x to out."""
    for j in range(len(Mp) - 1):
        xj = x[j]
        if any_of(xj != 0.0):
            begin = Mp[j]
            end = Mp[j + 1]
            i = first_of_dense(Mi, begin, end)
            if i >= 0:
                axpy(out[i:], xj, Mx[begin:end])
            else:
                for p in range(begin, end):
                    out[Mi[p]] += Mx[p] * xj


@reduction
def add_transposed_product(Mp, Mi, Mx, y, out):
    """Add M' y to out. For a symmetric M stored whole, this is the faster M y."""
    for j in range(len(Mp) - 1):
        begin = Mp[j]
        end = Mp[j + 1]
        i = first_of_dense(Mi, begin, end)
        if i >= 0:
            out[j] += dot(Mx[begin:end], y[i:])
        else:
            total = 0.0
            for p in range(begin, end):
                total += Mx[p] * y[Mi[p]]
            out[j] += total


@exact
def two_sum(a, b):
    """(s, e) with s = fl(a + b) and s + e = a + b exactly (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@exact
def add_compensated(value, total, error, i):
    """total[i] + error[i] += value, in twice the working precision."""
    s, e = two_sum(total[i], value)
    total[i] = s
    error[i] += e


@exact
def add_exactly(a, b, total, error, i):
    """total[i] + error[i] += a b, in twice the working precision."""
    value = a * b
    add_compensated(value, total, error, i)
    error[i] += product_error(a, b, value)


@exact
def _axpy_compensated(total, error, a, x):
    """total[: len(x)] + error += a x."""
    for i in range(len(x)):
        value = a * x[i]
        s, e = two_sum(total[i], value)
        total[i] = s
        error[i] += e + product_error(a, x[i], value)


@exact
def add_product_compensated(Mp, Mi, Mx, x, total, error):
    """Total + error += M x, in twice the working precision (Ogita, Rump, Oishi 2005)."""
    for j in range(len(Mp) - 1):
        xj = x[j]
        begin = Mp[j]
        end = Mp[j + 1]
        i = first_of_dense(Mi, begin, end)
        if i >= 0:
            _axpy_compensated(total[i:], error[i:], xj, Mx[begin:end])
        else:
            for p in range(begin, end):
                add_exactly(Mx[p], xj, total, error, Mi[p])


@exact
def add_transposed_product_compensated(Mp, Mi, Mx, y, total, error):
    """Total + error += M' y, in twice the working precision."""
    for j in range(len(Mp) - 1):
        for p in range(Mp[j], Mp[j + 1]):
            add_exactly(Mx[p], y[Mi[p]], total, error, j)
