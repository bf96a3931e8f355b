"""The LDL' factorisation of `ldl`, and its solves, for eight matrices of one pattern at once.

Each value is a vector, one of each matrix, where `ldl` has vectors of eight rows: tiles of four rows and
four columns stay in registers, and rows need no copies, since every one is addressed by itself.
"""

from __future__ import annotations

from nbqp.kernels.jit import kernel
from nbqp.kernels.ldl import PIVOT_REPLACEMENT, PIVOT_TINY
from nbqp.kernels.number import any_of, where
from nbqp.kernels.symbolic import PANEL
from nbqp.kernels.vector import load, splat, store


@kernel
def _scale_by_pivots(L, at, ldl, D, p, q, W):
    """W[k * PANEL + j] = L_jk D_k for the block of L (q x p, column-major, from L[at]).

    Returns whether some of them are not 0.
    """
    some = splat(0.0)
    for k in range(p):
        d = load(D, k)
        for j in range(q):
            value = load(L, at + j + k * ldl) * d
            some = where(value == 0.0, some, 1.0)
            store(W, k * PANEL + j, value)
    return any_of(some > 0.0)


@kernel
def _subtract_tile(L, u0, u1, u2, u3, ldu, l, ldl, p, W, w):
    """Four rows of a panel, from L[u0], L[u1], ..., and four columns; see `_subtract_product`."""
    v0 = u0 + ldu
    v1 = u1 + ldu
    v2 = u2 + ldu
    v3 = u3 + ldu
    w0 = v0 + ldu
    w1 = v1 + ldu
    w2 = v2 + ldu
    w3 = v3 + ldu
    c00 = load(L, u0)
    c10 = load(L, u1)
    c20 = load(L, u2)
    c30 = load(L, u3)
    c01 = load(L, v0)
    c11 = load(L, v1)
    c21 = load(L, v2)
    c31 = load(L, v3)
    c02 = load(L, w0)
    c12 = load(L, w1)
    c22 = load(L, w2)
    c32 = load(L, w3)
    c03 = load(L, w0 + ldu)
    c13 = load(L, w1 + ldu)
    c23 = load(L, w2 + ldu)
    c33 = load(L, w3 + ldu)
    for k in range(p):
        at = l + k * ldl
        l0 = load(L, at)
        l1 = load(L, at + 1)
        l2 = load(L, at + 2)
        l3 = load(L, at + 3)
        column = w + k * PANEL
        d = load(W, column)
        c00 -= l0 * d
        c10 -= l1 * d
        c20 -= l2 * d
        c30 -= l3 * d
        d = load(W, column + 1)
        c01 -= l0 * d
        c11 -= l1 * d
        c21 -= l2 * d
        c31 -= l3 * d
        d = load(W, column + 2)
        c02 -= l0 * d
        c12 -= l1 * d
        c22 -= l2 * d
        c32 -= l3 * d
        d = load(W, column + 3)
        c03 -= l0 * d
        c13 -= l1 * d
        c23 -= l2 * d
        c33 -= l3 * d
    store(L, u0, c00)
    store(L, u1, c10)
    store(L, u2, c20)
    store(L, u3, c30)
    store(L, v0, c01)
    store(L, v1, c11)
    store(L, v2, c21)
    store(L, v3, c31)
    store(L, w0, c02)
    store(L, w1, c12)
    store(L, w2, c22)
    store(L, w3, c32)
    store(L, w0 + ldu, c03)
    store(L, w1 + ldu, c13)
    store(L, w2 + ldu, c23)
    store(L, w3 + ldu, c33)


@kernel
def _subtract_row(L, u, ldu, l, ldl, p, W, w):
    """One row of a panel, from L[u], and four columns; see `_subtract_product`."""
    c0 = load(L, u)
    c1 = load(L, u + ldu)
    c2 = load(L, u + 2 * ldu)
    c3 = load(L, u + 3 * ldu)
    for k in range(p):
        value = load(L, l + k * ldl)
        column = w + k * PANEL
        c0 -= value * load(W, column)
        c1 -= value * load(W, column + 1)
        c2 -= value * load(W, column + 2)
        c3 -= value * load(W, column + 3)
    store(L, u, c0)
    store(L, u + ldu, c1)
    store(L, u + 2 * ldu, c2)
    store(L, u + 3 * ldu, c3)


@kernel
def _subtract_column(L, u, targets, first, m, l, ldl, p, W, w):
    """One column of a panel, its first entry L[u]; see `_subtract_product`."""
    i = first
    while i + 4 <= m:
        u0 = u + targets[i]
        u1 = u + targets[i + 1]
        u2 = u + targets[i + 2]
        u3 = u + targets[i + 3]
        c0 = load(L, u0)
        c1 = load(L, u1)
        c2 = load(L, u2)
        c3 = load(L, u3)
        for k in range(p):
            at = l + i + k * ldl
            d = load(W, w + k * PANEL)
            c0 -= load(L, at) * d
            c1 -= load(L, at + 1) * d
            c2 -= load(L, at + 2) * d
            c3 -= load(L, at + 3) * d
        store(L, u0, c0)
        store(L, u1, c1)
        store(L, u2, c2)
        store(L, u3, c3)
        i += 4
    while i < m:
        c = load(L, u + targets[i])
        for k in range(p):
            c -= load(L, l + i + k * ldl) * load(W, w + k * PANEL)
        store(L, u + targets[i], c)
        i += 1


@kernel
def _subtract_product(L, base, ldu, targets, l, ldl, m, q, p, W):
    """U -= L W on and below the diagonal: U a panel at L[base], L an earlier one (m x p, from L[l]).

    Row or column i of the product belongs to row or column targets[i] of U. W (p x q) is stored as
    W[k * PANEL + j].
    """
    j = 0
    while j < q:
        u = base + targets[j] * ldu
        if j + 4 > q or targets[j + 3] != targets[j] + 3:
            _subtract_column(L, u, targets, j, m, l, ldl, p, W, j)
            j += 1
            continue
        i = j
        while i + 4 <= m:
            u0 = u + targets[i]
            u1 = u + targets[i + 1]
            u2 = u + targets[i + 2]
            u3 = u + targets[i + 3]
            _subtract_tile(L, u0, u1, u2, u3, ldu, l + i, ldl, p, W, j)
            i += 4
        while i < m:
            _subtract_row(L, u + targets[i], ldu, l + i, ldl, p, W, j)
            i += 1
        j += 4


@kernel
def _pivot(d, expected):
    """A pivot or its replacement, and whether it was replaced, 1 or 0."""
    kept = d * expected > PIVOT_TINY
    return where(kept, d, expected * PIVOT_REPLACEMENT), where(kept, 0.0, 1.0)


@kernel
def _factor_columns(L, at, ldl, m, width, D, expected):
    """LDL' of `width` columns of m rows, from L[at], one column at a time."""
    replaced = splat(0.0)
    for k in range(width):
        column = at + k * ldl
        d, tiny = _pivot(load(L, column + k), expected[k])
        replaced += tiny
        store(D, k, d)
        inverse = 1.0 / d
        for j in range(k + 1, width):
            target = at + j * ldl
            scale = load(L, column + j) * inverse
            for i in range(j, m):
                store(L, target + i, load(L, target + i) - scale * load(L, column + i))
        for i in range(k + 1, m):
            store(L, column + i, load(L, column + i) * inverse)
    return replaced


@kernel
def _factor_four(L, at, ldl, m, D, expected):
    """LDL' of four columns of m rows, from L[at]: the 4 x 4 block, then row by row."""
    a0 = at
    a1 = at + ldl
    a2 = a1 + ldl
    a3 = a2 + ldl
    d0, tiny0 = _pivot(load(L, a0), expected[0])
    u10 = load(L, a0 + 1)
    u20 = load(L, a0 + 2)
    u30 = load(L, a0 + 3)
    inverse0 = 1.0 / d0
    l10 = u10 * inverse0
    l20 = u20 * inverse0
    l30 = u30 * inverse0
    d1, tiny1 = _pivot(load(L, a1 + 1) - l10 * u10, expected[1])
    u21 = load(L, a1 + 2) - l10 * u20
    u31 = load(L, a1 + 3) - l10 * u30
    inverse1 = 1.0 / d1
    l21 = u21 * inverse1
    l31 = u31 * inverse1
    d2, tiny2 = _pivot(load(L, a2 + 2) - l20 * u20 - l21 * u21, expected[2])
    u32 = load(L, a2 + 3) - l20 * u30 - l21 * u31
    inverse2 = 1.0 / d2
    l32 = u32 * inverse2
    pivot = load(L, a3 + 3) - l30 * u30 - l31 * u31 - l32 * u32
    d3, tiny3 = _pivot(pivot, expected[3])
    inverse3 = 1.0 / d3
    store(D, 0, d0)
    store(D, 1, d1)
    store(D, 2, d2)
    store(D, 3, d3)
    store(L, a0 + 1, l10)
    store(L, a0 + 2, l20)
    store(L, a0 + 3, l30)
    store(L, a1 + 2, l21)
    store(L, a1 + 3, l31)
    store(L, a2 + 3, l32)
    for i in range(4, m):
        c0 = load(L, a0 + i)
        c1 = load(L, a1 + i) - c0 * l10
        c2 = load(L, a2 + i) - c0 * l20 - c1 * l21
        c3 = load(L, a3 + i) - c0 * l30 - c1 * l31 - c2 * l32
        store(L, a0 + i, c0 * inverse0)
        store(L, a1 + i, c1 * inverse1)
        store(L, a2 + i, c2 * inverse2)
        store(L, a3 + i, c3 * inverse3)
    return tiny0 + tiny1 + tiny2 + tiny3


@kernel
def _factor_panel(L, at, m, width, D, expected, ascending, W):
    """Dense LDL' of a panel of m rows, from L[at]; see `ldl.factor_panel`. ascending: 0, 1, ..."""
    replaced = splat(0.0)
    for k in range(0, width, 4):
        columns = min(width - k, 4)
        here = at + k + k * m
        if k > 0 and _scale_by_pivots(L, at + k, m, D, k, columns, W):
            _subtract_product(L, here, m, ascending, at + k, m, m - k, columns, k, W)
        if columns == 4:
            replaced += _factor_four(L, here, m, m - k, D[k:], expected[k:])
        else:
            replaced += _factor_columns(L, here, m, m - k, columns, D[k:], expected[k:])
    return replaced


@kernel
def factorise_lanes(factor, expected, L, D, local, W):
    """Overwrite the values of K by those of its LDL' factor, as `ldl.factorise` does for all panels.

    L (nnz + WIDTH), D (N), W (at least PANEL * PANEL): arrays of vectors, the last a workspace;
    expected (N), doubles, as there; local (3 N), int64: workspace. Returns the numbers of replaced
    pivots.
    """
    first = factor.first
    row_ptr = factor.row_ptr
    all_rows = factor.rows
    val_ptr = factor.val_ptr
    update_ptr = factor.update_ptr
    update_panel = factor.update_panel
    update_first = factor.update_first
    update_last = factor.update_last
    N = len(D)
    targets = local[N : 2 * N]
    ascending = local[2 * N :]
    for i in range(N):
        ascending[i] = i
    replaced = splat(0.0)
    for J in range(len(first) - 1):
        j0 = first[J]
        width = first[J + 1] - j0
        r0 = row_ptr[J]
        size = row_ptr[J + 1] - r0
        base = val_ptr[J]
        for i in range(size):
            local[all_rows[r0 + i]] = i
        for e in range(update_ptr[J], update_ptr[J + 1]):
            K = update_panel[e]
            p1 = update_first[e]
            q = update_last[e] - p1
            s0 = row_ptr[K]
            ldl = row_ptr[K + 1] - s0
            k0 = first[K]
            p = first[K + 1] - k0
            m = ldl - p1
            at = val_ptr[K] + p1
            if _scale_by_pivots(L, at, ldl, D[k0:], p, q, W):
                for i in range(m):
                    targets[i] = local[all_rows[s0 + p1 + i]]
                _subtract_product(L, base, size, targets, at, ldl, m, q, p, W)
        replaced += _factor_panel(L, base, size, width, D[j0:], expected[j0:], ascending, W)
    return replaced


@kernel
def _eliminate(L, at, size, width, rows, x):
    """Solve with the unit lower block of a panel, and update its rows below."""
    k = 0
    while k + 4 <= width:
        a0 = at + k * size
        a1 = a0 + size
        a2 = a1 + size
        a3 = a2 + size
        t0 = load(x, rows[k])
        t1 = load(x, rows[k + 1]) - load(L, a0 + k + 1) * t0
        t2 = load(x, rows[k + 2]) - load(L, a0 + k + 2) * t0 - load(L, a1 + k + 2) * t1
        t3 = load(x, rows[k + 3]) - load(L, a0 + k + 3) * t0 - load(L, a1 + k + 3) * t1
        t3 -= load(L, a2 + k + 3) * t2
        store(x, rows[k + 1], t1)
        store(x, rows[k + 2], t2)
        store(x, rows[k + 3], t3)
        for i in range(k + 4, size):
            c = load(x, rows[i]) - load(L, a0 + i) * t0
            c -= load(L, a1 + i) * t1
            c -= load(L, a2 + i) * t2
            c -= load(L, a3 + i) * t3
            store(x, rows[i], c)
        k += 4
    while k < width:
        column = at + k * size
        t0 = load(x, rows[k])
        for i in range(k + 1, size):
            store(x, rows[i], load(x, rows[i]) - load(L, column + i) * t0)
        k += 1


@kernel
def _substitute(L, at, size, width, rows, x):
    """Solve with the unit upper block of a panel, given its rows below."""
    k = width
    while k % 4 != 0:
        k -= 1
        column = at + k * size
        c = load(x, rows[k])
        for i in range(k + 1, size):
            c -= load(L, column + i) * load(x, rows[i])
        store(x, rows[k], c)
    while k > 0:
        k -= 4
        a0 = at + k * size
        a1 = a0 + size
        a2 = a1 + size
        a3 = a2 + size
        t0 = load(x, rows[k])
        t1 = load(x, rows[k + 1])
        t2 = load(x, rows[k + 2])
        t3 = load(x, rows[k + 3])
        for i in range(k + 4, size):
            c = load(x, rows[i])
            t0 -= load(L, a0 + i) * c
            t1 -= load(L, a1 + i) * c
            t2 -= load(L, a2 + i) * c
            t3 -= load(L, a3 + i) * c
        t2 -= load(L, a2 + k + 3) * t3
        t1 = t1 - load(L, a1 + k + 3) * t3 - load(L, a1 + k + 2) * t2
        t0 = t0 - load(L, a0 + k + 3) * t3 - load(L, a0 + k + 2) * t2 - load(L, a0 + k + 1) * t1
        store(x, rows[k], t0)
        store(x, rows[k + 1], t1)
        store(x, rows[k + 2], t2)
        store(x, rows[k + 3], t3)


@kernel
def solve_lanes(factor, L, D, x, t):
    """Solve L D L' x = x in pivot order, as `triangular.solve_permuted`; t is not used."""
    first = factor.first
    row_ptr = factor.row_ptr
    rows = factor.rows
    val_ptr = factor.val_ptr
    panels = len(first) - 1
    for J in range(panels):
        r0 = row_ptr[J]
        size = row_ptr[J + 1] - r0
        _eliminate(L, val_ptr[J], size, first[J + 1] - first[J], rows[r0:], x)
    for j in range(len(x)):
        x[j] /= D[j]
    for J in range(panels - 1, -1, -1):
        r0 = row_ptr[J]
        size = row_ptr[J + 1] - r0
        _substitute(L, val_ptr[J], size, first[J + 1] - first[J], rows[r0:], x)
