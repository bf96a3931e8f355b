"""Numeric LDL' factorisation and solves on the panels of `symbolic`.

Left-looking: panel J starts as the columns of K, earlier panels are subtracted, and the dense
remainder is factorised. For a quasi-definite matrix every order of pivots exists, and the sign of
each pivot is known beforehand (Vanderbei 1995); a pivot of the wrong sign or next to zero is
replaced, which iterative refinement makes good.
"""

from __future__ import annotations

from nbqp.kernels.dense import axpy, dot
from nbqp.kernels.jit import kernel
from nbqp.kernels.symbolic import PANEL
from nbqp.kernels.vector import WIDTH, load, load_head, negative_fma, store, store_head

PIVOT_TINY = 1e-13
# Such a pivot is rounding noise, and so is its column: an infinite one leaves both out, where a
# small one would multiply the noise at every later pivot of that kind.
PIVOT_REPLACEMENT = 1e100


@kernel
def subtract_product(U, u, ldu, L, l, ldl, m, q, p, W):
    """U -= L W for column-major U (m x q, from U[u]), L (m x p, from L[l]) and W (p x q).

    W is stored as W[k * PANEL + j]. Four columns and eight rows are held in registers.
    L, W: not modified. U: overwritten.
    """
    for i in range(0, m, WIDTH):
        head = m - i
        if head >= WIDTH:
            j = 0
            while j + 4 <= q:
                at = u + i + j * ldu
                c0 = load(U, at)
                c1 = load(U, at + ldu)
                c2 = load(U, at + 2 * ldu)
                c3 = load(U, at + 3 * ldu)
                for k in range(p):
                    a = load(L, l + i + k * ldl)
                    w = k * PANEL + j
                    c0 = negative_fma(a, W[w], c0)
                    c1 = negative_fma(a, W[w + 1], c1)
                    c2 = negative_fma(a, W[w + 2], c2)
                    c3 = negative_fma(a, W[w + 3], c3)
                store(U, at, c0)
                store(U, at + ldu, c1)
                store(U, at + 2 * ldu, c2)
                store(U, at + 3 * ldu, c3)
                j += 4
            while j < q:
                at = u + i + j * ldu
                c0 = load(U, at)
                for k in range(p):
                    c0 = negative_fma(load(L, l + i + k * ldl), W[k * PANEL + j], c0)
                store(U, at, c0)
                j += 1
        else:
            j = 0
            while j + 2 <= q:
                at = u + i + j * ldu
                c0 = load_head(U, at, head)
                c1 = load_head(U, at + ldu, head)
                for k in range(p):
                    a = load_head(L, l + i + k * ldl, head)
                    c0 = negative_fma(a, W[k * PANEL + j], c0)
                    c1 = negative_fma(a, W[k * PANEL + j + 1], c1)
                store_head(U, at, c0, head)
                store_head(U, at + ldu, c1, head)
                j += 2
            while j < q:
                at = u + i + j * ldu
                c0 = load_head(U, at, head)
                for k in range(p):
                    a = load_head(L, l + i + k * ldl, head)
                    c0 = negative_fma(a, W[k * PANEL + j], c0)
                store_head(U, at, c0, head)
                j += 1


@kernel
def factor_panel(P, m, width, D, expected):
    """Dense LDL' of a panel: the block on the diagonal and the rows below.

    P (m * width), column-major: columns of K less the updates; overwritten by those of L (the
    unit diagonal is not stored). D (width): overwritten by the pivots. expected (width): their
    signs, not modified. Returns how many pivots were replaced.
    """
    replaced = 0
    for k in range(width):
        column = P[k * m : (k + 1) * m]
        d = column[k]
        if not d * expected[k] > PIVOT_TINY:
            d = expected[k] * PIVOT_REPLACEMENT
            replaced += 1
        D[k] = d
        inverse = 1.0 / d
        for j in range(k + 1, width):
            scale = column[j] * inverse
            if scale != 0.0:
                source = column[j:]
                target = P[j * m + j : (j + 1) * m]
                for i in range(len(source)):
                    target[i] -= scale * source[i]
        for i in range(k + 1, m):
            column[i] *= inverse
    return replaced


@kernel
def factorise(factor, expected, L, D, local, product):
    """Overwrite the values of K by those of its LDL' factor.

    factor: symbolic factorisation. expected (N): sign of each pivot, in pivot order.
    L (nnz): K's values where `locate` puts them, zeros elsewhere; overwritten. D (N): overwritten.
    local (N), int64, and product ((N + PANEL) * PANEL): workspaces. Returns the number of replaced pivots.
    """
    first = factor.first
    row_ptr = factor.row_ptr
    all_rows = factor.rows
    val_ptr = factor.val_ptr
    update_ptr = factor.update_ptr
    update_panel = factor.update_panel
    update_first = factor.update_first
    update_last = factor.update_last
    scaled = product[len(D) * PANEL :]
    replaced = 0
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
            for k in range(p):
                for j in range(q):
                    scaled[k * PANEL + j] = L[at + j + k * ldl] * D[k0 + k]
            rows = all_rows[s0 + p1 : s0 + ldl]
            top = local[rows[0]]
            if local[rows[m - 1]] - top == m - 1:
                column = rows[0] - j0
                subtract_product(L, base + column * size + top, size, L, at, ldl, m, q, p, scaled)
            else:
                product[: m * q] = 0.0
                subtract_product(product, 0, m, L, at, ldl, m, q, p, scaled)
                for j in range(q):
                    target = L[base + (rows[j] - j0) * size : base + (rows[j] - j0 + 1) * size]
                    source = product[j * m : (j + 1) * m]
                    for i in range(j, m):
                        target[local[rows[i]]] += source[i]
        panel = L[base : base + size * width]
        replaced += factor_panel(panel, size, width, D[j0 : j0 + width], expected[j0 : j0 + width])
    return replaced


@kernel
def solve_permuted(factor, L, D, x, below):
    """Solve L D L' x = x in pivot order.

    L (nnz), D (N): from `factorise`, not modified. x (N): overwritten. below (N): workspace.
    """
    first = factor.first
    row_ptr = factor.row_ptr
    all_rows = factor.rows
    val_ptr = factor.val_ptr
    panels = len(first) - 1
    for J in range(panels):
        j0 = first[J]
        width = first[J + 1] - j0
        rows = all_rows[row_ptr[J] + width : row_ptr[J + 1]]
        size = len(rows) + width
        values = L[val_ptr[J] : val_ptr[J + 1]]
        for k in range(width):
            axpy(
                x[j0 + k + 1 : j0 + width], -x[j0 + k], values[k * size + k + 1 : k * size + width]
            )
        if len(rows) > 0:
            update = below[: len(rows)]
            update[:] = 0.0
            for k in range(width):
                axpy(update, x[j0 + k], values[k * size + width : (k + 1) * size])
            for i in range(len(rows)):
                x[rows[i]] -= update[i]
    for j in range(len(x)):
        x[j] /= D[j]
    for J in range(panels - 1, -1, -1):
        j0 = first[J]
        width = first[J + 1] - j0
        rows = all_rows[row_ptr[J] + width : row_ptr[J + 1]]
        size = len(rows) + width
        values = L[val_ptr[J] : val_ptr[J + 1]]
        gathered = below[: len(rows)]
        for i in range(len(rows)):
            gathered[i] = x[rows[i]]
        for k in range(width - 1, -1, -1):
            s = dot(gathered, values[k * size + width : (k + 1) * size])
            s += dot(x[j0 + k + 1 : j0 + width], values[k * size + k + 1 : k * size + width])
            x[j0 + k] -= s
