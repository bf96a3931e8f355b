"""Products with sparse matrices stored by columns, with plain and with compensated sums.

Matrices are (Mp, Mi, Mx): Mp (columns + 1), Mi and Mx (nnz). Matrices and what they are multiplied by are
not modified.
"""

from __future__ import annotations

from nbqp.kernels.dense import axpy, dot
from nbqp.kernels.jit import exact, kernel, reduction
from nbqp.kernels.number import any_of, by_kind
from nbqp.kernels.vector import WIDTH, load, load_head, part, product_error, splat, store
from nbqp.kernels.vector import total as vector_total


@kernel
def first_of_dense(Mi, begin, end):
    """The first row of a column without gaps, whose entries need no indices; otherwise, or if it is short, -1."""
    if end - begin >= WIDTH and Mi[end - 1] - Mi[begin] == end - 1 - begin:
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
    """Add M' y to out. Of a symmetric M `add_symmetric_product` reads half."""
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


@kernel
def _dense_tail(Mi, begin, end):
    """The entry from which on a column has no gaps, the first or the second; otherwise, or if few are left, `end`.

    A state of a controller meets its own equation and then all those of the next stage.
    """
    for p in range(begin, min(begin + 2, end - WIDTH + 1)):
        if Mi[end - 1] - Mi[p] == end - 1 - p:
            return p
    return end


@reduction
def _add_products(Mp, Mi, Mx, x, y, rows, columns):
    for j in range(len(Mp) - 1):
        begin = Mp[j]
        end = Mp[j + 1]
        tail = _dense_tail(Mi, begin, end)
        xj = x[j]
        total = 0.0
        for p in range(begin, tail):
            i = Mi[p]
            rows[i] += Mx[p] * xj
            total += Mx[p] * y[i]
        if tail < end:
            shift = Mi[tail] - tail
            for p in range(tail, end):
                rows[p + shift] += Mx[p] * xj
                total += Mx[p] * y[p + shift]
        columns[j] += total


@kernel
def _rows_of_four(Mp, Mi, j):
    """The first of the rows that four columns from j on share and have without gaps; otherwise -1."""
    if j + 4 > len(Mp) - 1:
        return -1
    size = Mp[j + 1] - Mp[j]
    first = first_of_dense(Mi, Mp[j], Mp[j + 1])
    for k in range(j + 1, j + 4):
        if Mp[k + 1] - Mp[k] != size or first_of_dense(Mi, Mp[k], Mp[k + 1]) != first:
            return -1
    return first


@kernel
def _add_four(Mx, at, size, first, count, j, x, y, rows, columns):
    """`add_products` of the first `count` rows of four columns alike, which begin at `at`."""
    x0 = load(x, j)
    x1 = load(x, j + 1)
    x2 = load(x, j + 2)
    x3 = load(x, j + 3)
    c0 = load(columns, j)
    c1 = load(columns, j + 1)
    c2 = load(columns, j + 2)
    c3 = load(columns, j + 3)
    for i in range(count):
        a0 = load(Mx, at + i)
        a1 = load(Mx, at + size + i)
        a2 = load(Mx, at + 2 * size + i)
        a3 = load(Mx, at + 3 * size + i)
        yi = load(y, first + i)
        c0 += a0 * yi
        c1 += a1 * yi
        c2 += a2 * yi
        c3 += a3 * yi
        # In pairs, since each sum waits for its last term.
        low = load(rows, first + i) + a0 * x0
        low += a1 * x1
        high = a2 * x2
        high += a3 * x3
        store(rows, first + i, low + high)
    store(columns, j, c0)
    store(columns, j + 1, c1)
    store(columns, j + 2, c2)
    store(columns, j + 3, c3)


@kernel
def _add_products_lanes(Mp, Mi, Mx, x, y, rows, columns):
    j = 0
    while j < len(Mp) - 1:
        begin = Mp[j]
        end = Mp[j + 1]
        first = _rows_of_four(Mp, Mi, j) if end - begin >= WIDTH else -1
        if first >= 0:
            _add_four(Mx, begin, end - begin, first, end - begin, j, x, y, rows, columns)
            j += 4
            continue
        xj = load(x, j)
        # Two sums at a time, since each waits for its last term.
        even = load(columns, j)
        odd = splat(0.0)
        for p in range(begin, end - 1, 2):
            i = Mi[p]
            value = load(Mx, p)
            even += value * load(y, i)
            store(rows, i, load(rows, i) + value * xj)
            i = Mi[p + 1]
            value = load(Mx, p + 1)
            odd += value * load(y, i)
            store(rows, i, load(rows, i) + value * xj)
        if (end - begin) % 2 == 1:
            p = end - 1
            i = Mi[p]
            value = load(Mx, p)
            even += value * load(y, i)
            store(rows, i, load(rows, i) + value * xj)
        store(columns, j, even + odd)
        j += 1


add_products = by_kind(_add_products, _add_products_lanes)
"""Add M x to rows and M' y to columns, reading M once."""


@reduction
def _add_symmetric_product(Hp, Hi, Hx, x, out):
    for j in range(len(Hp) - 1):
        begin = Hp[j]
        end = Hp[j + 1]
        xj = x[j]
        total = 0.0
        first = first_of_dense(Hi, begin, end)
        if first >= 0:
            column = Hx[begin : begin + max(min(end - begin, j - first), 0)]
            target = out[first:]
            values = x[first:]
            for i in range(len(column)):
                target[i] += column[i] * xj
                total += column[i] * values[i]
            p = begin + len(column)
        else:
            p = begin
            while p < end and Hi[p] < j:
                i = Hi[p]
                out[i] += Hx[p] * xj
                total += Hx[p] * x[i]
                p += 1
        if p < end and Hi[p] == j:
            total += Hx[p] * xj
        out[j] += total


@kernel
def _add_symmetric_column(Hp, Hi, Hx, x, out, j, p):
    """`add_symmetric_product` of column j, from its entry p on."""
    xj = load(x, j)
    total = load(out, j)
    while p < Hp[j + 1] and Hi[p] < j:
        i = Hi[p]
        value = load(Hx, p)
        total += value * load(x, i)
        store(out, i, load(out, i) + value * xj)
        p += 1
    if p < Hp[j + 1] and Hi[p] == j:
        total += load(Hx, p) * xj
    store(out, j, total)


@kernel
def _add_symmetric_product_lanes(Hp, Hi, Hx, x, out):
    j = 0
    while j < len(Hp) - 1:
        begin = Hp[j]
        size = Hp[j + 1] - begin
        first = _rows_of_four(Hp, Hi, j) if size >= WIDTH else -1
        # Of their rows the four columns have these above all of their diagonal entries.
        above = min(j - first, size)
        if first >= 0 and above > 0:
            _add_four(Hx, begin, size, first, above, j, x, x, out, out)
            for k in range(j, j + 4):
                _add_symmetric_column(Hp, Hi, Hx, x, out, k, Hp[k] + above)
            j += 4
        else:
            _add_symmetric_column(Hp, Hi, Hx, x, out, j, begin)
            j += 1


add_symmetric_product = by_kind(_add_symmetric_product, _add_symmetric_product_lanes)
"""Add H x to out for a symmetric H, reading its upper triangle only."""


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
def _plus_product(s, e, a, b):
    """(s, e) + a b, in twice the working precision; doubles or vectors."""
    value = a * b
    total, rest = two_sum(s, value)
    return total, e + (rest + product_error(a, b, value))


@exact
def add_exactly(a, b, total, error, i):
    """total[i] + error[i] += a b, in twice the working precision."""
    total[i], error[i] = _plus_product(total[i], error[i], a, b)


@exact
def _axpy_compensated(total, error, a, x):
    """total[: len(x)] + error += a x."""
    for i in range(len(x)):
        total[i], error[i] = _plus_product(total[i], error[i], a, x[i])


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
                i = Mi[p]
                total[i], error[i] = _plus_product(total[i], error[i], Mx[p], xj)


@exact
def add_transposed_product_compensated(Mp, Mi, Mx, y, total, error):
    """Total + error += M' y, in twice the working precision.

    Columns without gaps have eight sums, which are added in the end.
    """
    for j in range(len(Mp) - 1):
        begin = Mp[j]
        end = Mp[j + 1]
        first = first_of_dense(Mi, begin, end)
        if first < 0:
            s = total[j]
            e = error[j]
            for p in range(begin, end):
                s, e = _plus_product(s, e, Mx[p], y[Mi[p]])
            total[j] = s
            error[j] = e
            continue
        sums = splat(0.0)
        errors = splat(0.0)
        for p in range(begin, end, WIDTH):
            head = min(end - p, WIDTH)
            a = load_head(Mx, p, head)
            b = load_head(y, p - begin + first, head)
            sums, errors = _plus_product(sums, errors, a, b)
        s = total[j]
        e = error[j] + vector_total(errors)
        for i in range(WIDTH):
            s, rest_of_one = two_sum(s, part(sums, i))
            e += rest_of_one
        total[j] = s
        error[j] = e
