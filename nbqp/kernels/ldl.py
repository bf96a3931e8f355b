"""Numeric LDL' factorisation on the panels of `symbolic`.

Left-looking: panel J starts as the columns of K, earlier panels are subtracted, and the dense
remainder is factorised. For a quasi-definite matrix every order of pivots exists, and the sign of
each pivot is known beforehand (Vanderbei 1995); a pivot of the wrong sign or next to zero is
replaced, which iterative refinement makes good.
"""

from __future__ import annotations

from nbqp.kernels.jit import kernel
from nbqp.kernels.symbolic import PANEL
from nbqp.kernels.vector import (
    WIDTH,
    load,
    load_head,
    negative_fma,
    scaled,
    store,
    store_head,
)

PIVOT_TINY = 1e-13
# Such a pivot is rounding noise, and so is its column: an infinite one leaves both out, where a
# small one would multiply the noise at every later pivot of that kind.
PIVOT_REPLACEMENT = 1e100


@kernel
def _subtract_tall(U, u, ldu, L, l, ldl, p, W, w, bottom):
    """Four columns of U and 8 + `bottom` rows, held in registers; see `subtract_product`."""
    u1 = u + ldu
    u2 = u1 + ldu
    u3 = u2 + ldu
    a0 = load(U, u)
    a1 = load(U, u1)
    a2 = load(U, u2)
    a3 = load(U, u3)
    b0 = load_head(U, u + WIDTH, bottom)
    b1 = load_head(U, u1 + WIDTH, bottom)
    b2 = load_head(U, u2 + WIDTH, bottom)
    b3 = load_head(U, u3 + WIDTH, bottom)
    for k in range(p):
        top = load(L, l + k * ldl)
        low = load_head(L, l + k * ldl + WIDTH, bottom)
        at = w + k * PANEL
        a0 = negative_fma(top, W[at], a0)
        b0 = negative_fma(low, W[at], b0)
        a1 = negative_fma(top, W[at + 1], a1)
        b1 = negative_fma(low, W[at + 1], b1)
        a2 = negative_fma(top, W[at + 2], a2)
        b2 = negative_fma(low, W[at + 2], b2)
        a3 = negative_fma(top, W[at + 3], a3)
        b3 = negative_fma(low, W[at + 3], b3)
    store(U, u, a0)
    store(U, u1, a1)
    store(U, u2, a2)
    store(U, u3, a3)
    store_head(U, u + WIDTH, b0, bottom)
    store_head(U, u1 + WIDTH, b1, bottom)
    store_head(U, u2 + WIDTH, b2, bottom)
    store_head(U, u3 + WIDTH, b3, bottom)


@kernel
def _subtract_flat(U, u, ldu, L, l, ldl, p, W, w, head):
    """Four columns of U and `head` <= 8 rows; see `subtract_product`."""
    u1 = u + ldu
    u2 = u1 + ldu
    u3 = u2 + ldu
    a0 = load_head(U, u, head)
    a1 = load_head(U, u1, head)
    a2 = load_head(U, u2, head)
    a3 = load_head(U, u3, head)
    for k in range(p):
        top = load_head(L, l + k * ldl, head)
        at = w + k * PANEL
        a0 = negative_fma(top, W[at], a0)
        a1 = negative_fma(top, W[at + 1], a1)
        a2 = negative_fma(top, W[at + 2], a2)
        a3 = negative_fma(top, W[at + 3], a3)
    store_head(U, u, a0, head)
    store_head(U, u1, a1, head)
    store_head(U, u2, a2, head)
    store_head(U, u3, a3, head)


@kernel
def subtract_product(U, u, ldu, L, l, ldl, m, q, p, W):
    """U -= L W for column-major U (m x q, from U[u]), L (m x p, from L[l]) and W (p x q).

    W is stored as W[k * PANEL + j]. Tiles of four columns and up to sixteen rows stay in registers.
    L, W: not modified. U: overwritten.
    """
    for i in range(0, m, 2 * WIDTH):
        rows = m - i
        j = 0
        while j + 4 <= q:
            at = u + i + j * ldu
            if rows > WIDTH:
                bottom = min(rows - WIDTH, WIDTH)
                _subtract_tall(U, at, ldu, L, l + i, ldl, p, W, j, bottom)
            else:
                _subtract_flat(U, at, ldu, L, l + i, ldl, p, W, j, rows)
            j += 4
        while j < q:
            for r in range(i, min(i + 2 * WIDTH, m), WIDTH):
                head = min(m - r, WIDTH)
                at = u + r + j * ldu
                c = load_head(U, at, head)
                for k in range(p):
                    c = negative_fma(load_head(L, l + r + k * ldl, head), W[k * PANEL + j], c)
                store_head(U, at, c, head)
            j += 1


@kernel
def _scale_by_pivots(L, at, ldl, D, p, q, W):
    """W[k * PANEL + j] = L_jk D_k for the block of L (q x p, column-major, from L[at]).

    L, D (p): not modified. W: its first p * PANEL entries are overwritten.
    """
    for k in range(p):
        j = 0
        while j < q:
            head = min(q - j, WIDTH)
            store_head(W, k * PANEL + j, scaled(load_head(L, at + j + k * ldl, head), D[k]), head)
            j += WIDTH


@kernel
def _pivot(L, at, expected):
    """The pivot L[at], or its replacement; and whether it was replaced."""
    d = L[at]
    if d * expected > PIVOT_TINY:
        return d, 0
    return expected * PIVOT_REPLACEMENT, 1


@kernel
def _factor_column(L, at, m, D, expected):
    """LDL' of one column of m rows, from L[at]; see `factor_panel`."""
    d, replaced = _pivot(L, at, expected[0])
    D[0] = d
    inverse = 1.0 / d
    for i in range(at + 1, at + m):
        L[i] *= inverse
    return replaced


@kernel
def _factor_columns(L, at, ldl, m, width, D, expected):
    """LDL' of `width` columns of m rows, from L[at], one column at a time; see `factor_panel`."""
    replaced = 0
    for k in range(width):
        column = at + k * ldl
        replaced += _factor_column(L, column + k, m - k, D[k:], expected[k:])
        for j in range(k + 1, width):
            scale = L[column + j] * D[k]
            if scale != 0.0:
                target = at + j * ldl
                for i in range(j, m):
                    L[target + i] -= scale * L[column + i]
    return replaced


@kernel
def _factor_four(L, at, ldl, m, D, expected):
    """LDL' of four columns of m rows, from L[at]: the 4 x 4 block, then eight rows at a time."""
    a0 = at
    a1 = at + ldl
    a2 = a1 + ldl
    a3 = a2 + ldl
    d0, tiny0 = _pivot(L, a0, expected[0])
    u10 = L[a0 + 1]
    u20 = L[a0 + 2]
    u30 = L[a0 + 3]
    inverse0 = 1.0 / d0
    l10 = u10 * inverse0
    l20 = u20 * inverse0
    l30 = u30 * inverse0
    L[a1 + 1] -= l10 * u10
    d1, tiny1 = _pivot(L, a1 + 1, expected[1])
    u21 = L[a1 + 2] - l10 * u20
    u31 = L[a1 + 3] - l10 * u30
    inverse1 = 1.0 / d1
    l21 = u21 * inverse1
    l31 = u31 * inverse1
    L[a2 + 2] -= l20 * u20 + l21 * u21
    d2, tiny2 = _pivot(L, a2 + 2, expected[2])
    u32 = L[a2 + 3] - l20 * u30 - l21 * u31
    inverse2 = 1.0 / d2
    l32 = u32 * inverse2
    L[a3 + 3] -= l30 * u30 + l31 * u31 + l32 * u32
    d3, tiny3 = _pivot(L, a3 + 3, expected[3])
    inverse3 = 1.0 / d3
    D[0] = d0
    D[1] = d1
    D[2] = d2
    D[3] = d3
    L[a0 + 1] = l10
    L[a0 + 2] = l20
    L[a0 + 3] = l30
    L[a1 + 2] = l21
    L[a1 + 3] = l31
    L[a2 + 3] = l32
    for i in range(4, m, WIDTH):
        head = min(m - i, WIDTH)
        c0 = load_head(L, a0 + i, head)
        c1 = negative_fma(c0, l10, load_head(L, a1 + i, head))
        c2 = negative_fma(c1, l21, negative_fma(c0, l20, load_head(L, a2 + i, head)))
        c3 = negative_fma(c1, l31, negative_fma(c0, l30, load_head(L, a3 + i, head)))
        c3 = negative_fma(c2, l32, c3)
        store_head(L, a0 + i, scaled(c0, inverse0), head)
        store_head(L, a1 + i, scaled(c1, inverse1), head)
        store_head(L, a2 + i, scaled(c2, inverse2), head)
        store_head(L, a3 + i, scaled(c3, inverse3), head)
    return tiny0 + tiny1 + tiny2 + tiny3


@kernel
def factor_panel(L, at, m, width, D, expected, W):
    """Dense LDL' of a panel: the block on the diagonal and the rows below.

    L: the panel's m x width values from L[at], by columns, are those of K less the updates;
    overwritten by those of L (the unit diagonal is not stored). D (width): overwritten by the
    pivots. expected (width): their signs, not modified. W: workspace of PANEL * PANEL.
    Returns how many pivots were replaced.
    """
    if width == 1:
        return _factor_column(L, at, m, D, expected)
    replaced = 0
    for k in range(0, width, 4):
        columns = min(width - k, 4)
        here = at + k + k * m
        if k > 0:
            _scale_by_pivots(L, at + k, m, D, k, columns, W)
            subtract_product(L, here, m, L, at + k, m, m - k, columns, k, W)
        if columns == 4:
            replaced += _factor_four(L, here, m, m - k, D[k:], expected[k:])
        else:
            replaced += _factor_columns(L, here, m, m - k, columns, D[k:], expected[k:])
    return replaced


@kernel
def _neighbours(factor, e, end):
    """How many updates, from e to end, are one: by neighbouring panels of the same rows, without gaps in J.

    Their columns stand in L at one distance, as those of one panel do. As many rows without gaps are the
    same if the first and the last are.
    """
    first = factor.first
    row_ptr = factor.row_ptr
    rows = factor.rows
    K = factor.update_panel[e]
    p1 = factor.update_first[e]
    s0 = row_ptr[K]
    s1 = row_ptr[K + 1]
    count = 1
    while e + count < end:
        M = K + count
        t0 = row_ptr[M]
        t1 = row_ptr[M + 1]
        if (
            factor.update_panel[e + count] != M
            or factor.update_first[e + count] != p1
            or t1 - t0 != s1 - s0
            or rows[t0 + p1] != rows[s0 + p1]
            or rows[t1 - 1] != rows[s1 - 1]
            or first[M + 1] - first[K] > PANEL
        ):
            break
        count += 1
    return count


@kernel
def factorise(factor, expected, stale, L, D, local, work, abort):
    """Overwrite the values of K by those of its LDL' factor, in the panels that are stale.

    factor: symbolic factorisation. expected (N): sign of each pivot, in pivot order. stale: of each
    panel; those that a stale one updates are stale too, and the others hold their factor already.
    L (nnz + WIDTH): K's values where `locate` puts them, zeros elsewhere; overwritten. D (N): overwritten.
    local (N), int64, and work ((N + PANEL) * PANEL): workspaces. Returns the number of replaced pivots.
    abort (1), not modified: once it is not 0 the rest is left undone, and L is no factor.
    """
    first = factor.first
    row_ptr = factor.row_ptr
    all_rows = factor.rows
    val_ptr = factor.val_ptr
    update_ptr = factor.update_ptr
    update_panel = factor.update_panel
    update_first = factor.update_first
    update_last = factor.update_last
    # Blocks scaled by pivots come first in `work`, then products that are not subtracted at once.
    product = PANEL * PANEL
    replaced = 0
    for J in range(len(first) - 1):
        if not stale[J]:
            continue
        j0 = first[J]
        width = first[J + 1] - j0
        r0 = row_ptr[J]
        size = row_ptr[J + 1] - r0
        base = val_ptr[J]
        if update_ptr[J] < update_ptr[J + 1]:
            for i in range(size):
                local[all_rows[r0 + i]] = i
        e = update_ptr[J]
        while e < update_ptr[J + 1]:
            if abort[0] != 0:
                return replaced
            K = update_panel[e]
            p1 = update_first[e]
            q = update_last[e] - p1
            s0 = row_ptr[K]
            ldl = row_ptr[K + 1] - s0
            k0 = first[K]
            m = ldl - p1
            at = val_ptr[K] + p1
            rows = all_rows[s0 + p1 : s0 + ldl]
            top = local[rows[0]]
            without_gaps = local[rows[m - 1]] - top == m - 1
            joined = _neighbours(factor, e, update_ptr[J + 1]) if without_gaps else 1
            e += joined
            p = first[K + joined] - k0
            _scale_by_pivots(L, at, ldl, D[k0:], p, q, work)
            if without_gaps:
                column = rows[0] - j0
                subtract_product(L, base + column * size + top, size, L, at, ldl, m, q, p, work)
            elif p == 1:
                for j in range(q):
                    column = base + (rows[j] - j0) * size
                    scale = work[j]
                    for i in range(j, m):
                        L[column + local[rows[i]]] -= L[at + i] * scale
            else:
                work[product : product + m * q] = 0.0
                subtract_product(work, product, m, L, at, ldl, m, q, p, work)
                for j in range(q):
                    column = base + (rows[j] - j0) * size
                    target = L[column : column + size]
                    source = work[product + j * m : product + (j + 1) * m]
                    for i in range(j, m):
                        target[local[rows[i]]] += source[i]
        replaced += factor_panel(L, base, size, width, D[j0:], expected[j0:], work)
    return replaced
