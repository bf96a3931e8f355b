"""Products with sparse matrices stored by columns, with plain and with compensated sums.

Matrices are (Mp, Mi, Mx): Mp (columns + 1), Mi and Mx (nnz). All operands but the last are not
modified.
"""

from __future__ import annotations

from nbqp.kernels.jit import exact, kernel, reduction


@kernel
def add_product(Mp, Mi, Mx, x, out):
    """Add M x to out."""
    for j in range(len(Mp) - 1):
        xj = x[j]
        if xj != 0.0:
            for p in range(Mp[j], Mp[j + 1]):
                out[Mi[p]] += Mx[p] * xj


@reduction
def add_transposed_product(Mp, Mi, Mx, y, out):
    """Add M' y to out. For a symmetric M stored whole, this is the faster M y."""
    for j in range(len(Mp) - 1):
        total = 0.0
        for p in range(Mp[j], Mp[j + 1]):
            total += Mx[p] * y[Mi[p]]
        out[j] += total


@exact
def two_sum(a, b):
    """(s, e) with s = fl(a + b) and s + e = a + b exactly (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@exact
def two_product(a, b):
    """(p, e) with p = fl(a b) and p + e = a b exactly (Dekker; no overflow below 1e292)."""
    p = a * b
    t = 134217729.0 * a
    a_high = t - (t - a)
    a_low = a - a_high
    t = 134217729.0 * b
    b_high = t - (t - b)
    b_low = b - b_high
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


@exact
def add_compensated(value, total, error, i):
    """total[i] + error[i] += value, in twice the working precision."""
    s, e = two_sum(total[i], value)
    total[i] = s
    error[i] += e


@exact
def add_product_compensated(Mp, Mi, Mx, x, total, error):
    """Total + error += M x, in twice the working precision (Ogita, Rump, Oishi 2005)."""
    for j in range(len(Mp) - 1):
        for p in range(Mp[j], Mp[j + 1]):
            value, low = two_product(Mx[p], x[j])
            i = Mi[p]
            add_compensated(value, total, error, i)
            error[i] += low


@exact
def add_transposed_product_compensated(Mp, Mi, Mx, y, total, error):
    """Total + error += M' y, in twice the working precision."""
    for j in range(len(Mp) - 1):
        for p in range(Mp[j], Mp[j + 1]):
            value, low = two_product(Mx[p], y[Mi[p]])
            add_compensated(value, total, error, j)
            error[j] += low
