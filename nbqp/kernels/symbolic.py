"""Symbolic LDL' factorisation: elimination tree, supernodes, panels, schedule.

The pattern of L is found once and serves every numeric factorisation. Columns with the same rows
form a supernode; supernodes are cut into panels of at most `PANEL` columns, on which the numeric
kernels work with dense arithmetic (Davis, *Direct Methods for Sparse Linear Systems*, chapter 4;
Chen, Davis, Hager, Rajamanickam, *Algorithm 887: CHOLMOD*, for relaxed amalgamation).
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.dense import copy, sort_ascending
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.ordering import approximate_minimum_degree
from nbqp.kernels.structure import Factor

PANEL = 16
# A supernode may absorb a child as long as the explicit zeros stay below this share of its
# entries, or their number below a few vector registers.
RELAX_SHARE = 0.08
RELAX_ZEROS = 16
# What a panel takes whatever its size, in multiplications, and what it takes for each product of two rows
# whatever its width, since what that is subtracted from is read and written.
PANEL_COST = 300.0
PRODUCT_COST = 2.0


@kernel
def permute_upper(N, Kp, Ki, position, Up, Ui):
    """Pattern of the strict upper triangle of P K P'.

    Kp (N+1), Ki (nnz): strict or full upper triangle of K by columns (not modified).
    position (N): new index of each old one. Up (N+1), Ui (nnz): overwritten.
    """
    Up[:] = 0
    for j in range(N):
        for p in range(Kp[j], Kp[j + 1]):
            if Ki[p] != j:
                Up[max(position[Ki[p]], position[j]) + 1] += 1
    for j in range(N):
        Up[j + 1] += Up[j]
    fill = Up[:N].copy()
    for j in range(N):
        for p in range(Kp[j], Kp[j + 1]):
            if Ki[p] != j:
                a = position[Ki[p]]
                b = position[j]
                Ui[fill[max(a, b)]] = min(a, b)
                fill[max(a, b)] += 1


@kernel
def elimination_tree(N, Up, Ui, parent):
    """parent[j] = first row below the diagonal of column j of L, or -1 (Liu 1986).

    Up (N+1), Ui: strict upper triangle by columns (not modified). parent (N): overwritten.
    """
    ancestor = np.full(N, -1, dtype=np.int64)
    for j in range(N):
        parent[j] = -1
        for p in range(Up[j], Up[j + 1]):
            i = Ui[p]
            while i != -1 and i < j:
                above = ancestor[i]
                ancestor[i] = j
                if above == -1:
                    parent[i] = j
                i = above


@kernel
def postorder(N, parent, order):
    """order[k] = k-th node of a depth-first walk that visits children before parents.

    parent (N): not modified. order (N): overwritten.
    """
    head = np.full(N, -1, dtype=np.int64)
    sibling = np.empty(N, dtype=np.int64)
    for j in range(N - 1, -1, -1):
        if parent[j] != -1:
            sibling[j] = head[parent[j]]
            head[parent[j]] = j
    stack = np.empty(N, dtype=np.int64)
    k = 0
    for root in range(N):
        if parent[root] != -1:
            continue
        top = 0
        stack[0] = root
        while top >= 0:
            j = stack[top]
            child = head[j]
            if child == -1:
                order[k] = j
                k += 1
                top -= 1
            else:
                head[j] = sibling[child]
                top += 1
                stack[top] = child


@kernel
def column_counts(N, Up, Ui, parent, count):
    """count[j] = entries of column j of L, the diagonal included; O(nnz(L)).

    Up, Ui, parent: not modified. count (N): overwritten.
    """
    mark = np.full(N, -1, dtype=np.int64)
    count[:] = 1
    for j in range(N):
        mark[j] = j
        for p in range(Up[j], Up[j + 1]):
            i = Ui[p]
            while mark[i] != j:
                count[i] += 1
                mark[i] = j
                i = parent[i]


@kernel
def find_supernodes(N, parent, count, first):
    """Fundamental supernodes, joined while few explicit zeros come in; returns their number.

    parent, count (N): not modified. first (N+1): first column of each, overwritten.
    """
    size = np.empty(N, dtype=np.int64)  # rows of each supernode, its own columns included
    zeros = np.empty(N, dtype=np.int64)
    last = np.empty(N, dtype=np.int64)
    ns = 0
    j = 0
    while j < N:
        end = j
        while end + 1 < N and parent[end] == end + 1 and count[end] == count[end + 1] + 1:
            end += 1
        first[ns] = j
        last[ns] = end
        size[ns] = count[j]
        zeros[ns] = 0
        ns += 1
        while ns >= 2:
            child = ns - 2
            above = parent[last[child]]
            if above == -1 or above > last[ns - 1]:
                break
            width = last[child] - first[child] + 1
            joined = size[ns - 1] + width
            new_zeros = zeros[child] + zeros[ns - 1] + width * (joined - size[child])
            columns = last[ns - 1] - first[child] + 1
            entries = columns * joined - columns * (columns - 1) // 2
            if new_zeros > RELAX_ZEROS and new_zeros > RELAX_SHARE * entries:
                break
            last[child] = last[ns - 1]
            size[child] = joined
            zeros[child] = new_zeros
            ns -= 1
        j = end + 1
    first[ns] = N
    return ns


@kernel
def supernode_rows(N, Up, Ui, ns, first, row_ptr):
    """Rows of each supernode, ascending, its own columns first.

    Up, Ui, first (ns+1): not modified. row_ptr (at least ns+1): overwritten.
    Returns rows (row_ptr[ns]).
    """
    owner = np.empty(N, dtype=np.int64)
    for s in range(ns):
        owner[first[s] : first[s + 1]] = s
    # The lower triangle by columns: which rows of K start in each supernode.
    start = np.zeros(ns + 1, dtype=np.int64)
    for j in range(N):
        for p in range(Up[j], Up[j + 1]):
            start[owner[Ui[p]] + 1] += 1
    for s in range(ns):
        start[s + 1] += start[s]
    below = np.empty(start[ns], dtype=np.int64)
    fill = start[:ns].copy()
    for j in range(N):
        for p in range(Up[j], Up[j + 1]):
            s = owner[Ui[p]]
            below[fill[s]] = j
            fill[s] += 1
    head = np.full(ns, -1, dtype=np.int64)
    sibling = np.empty(ns, dtype=np.int64)
    mark = np.full(N, -1, dtype=np.int64)
    capacity = max(16, 2 * N)
    rows = np.empty(capacity, dtype=np.int64)
    row_ptr[0] = 0
    for s in range(ns):
        begin = row_ptr[s]
        end = begin
        bound = first[s + 1] - first[s] + start[s + 1] - start[s]
        child = head[s]
        while child != -1:
            bound += row_ptr[child + 1] - row_ptr[child]
            child = sibling[child]
        bound = min(bound, N - first[s])
        if end + bound > capacity:
            capacity = max(2 * capacity, end + bound)
            larger = np.empty(capacity, dtype=np.int64)
            copy(rows[:end], larger)
            rows = larger
        for j in range(first[s], first[s + 1]):
            mark[j] = s
            rows[end] = j
            end += 1
        columns_end = end
        for p in range(start[s], start[s + 1]):
            if mark[below[p]] != s:
                mark[below[p]] = s
                rows[end] = below[p]
                end += 1
        child = head[s]
        while child != -1:
            for p in range(row_ptr[child], row_ptr[child + 1]):
                i = rows[p]
                if i >= first[s + 1] and mark[i] != s:
                    mark[i] = s
                    rows[end] = i
                    end += 1
            child = sibling[child]
        sort_ascending(rows[columns_end:end])
        row_ptr[s + 1] = end
        if end > columns_end:
            above = owner[rows[columns_end]]
            sibling[s] = head[above]
            head[above] = s
    return rows[: row_ptr[ns]].copy()


@kernel
def _cost(width, below):
    """Multiplications that take as long as factorising a panel and subtracting its products."""
    return PANEL_COST + (PRODUCT_COST + width) * float(width + below) ** 2


@kernel
def _unite(a, b, union):
    """Merge two ascending lists into a third; returns its length."""
    i = 0
    k = 0
    count = 0
    while i < len(a) or k < len(b):
        if k == len(b) or (i < len(a) and a[i] <= b[k]):
            if k < len(b) and a[i] == b[k]:
                k += 1
            union[count] = a[i]
            i += 1
        else:
            union[count] = b[k]
            k += 1
        count += 1
    return count


@kernel
def join_siblings(ns, first, row_ptr, rows, joined):
    """Join neighbouring supernodes that do not meet where fewer panels outweigh zeros; returns their number.

    Variables that meet much the same constraints, and are not coupled by H, are such siblings: joined,
    they update the constraints by products instead of one at a time. first, row_ptr (ns+1), rows: not
    modified. joined (ns+1): their first columns, overwritten.
    """
    N = first[ns]
    below = np.empty(N, dtype=np.int64)
    union = np.empty(N, dtype=np.int64)
    count = 0
    s = 0
    while s < ns:
        begin = first[s]
        size = row_ptr[s + 1] - row_ptr[s] - (first[s + 1] - begin)
        copy(rows[row_ptr[s + 1] - size : row_ptr[s + 1]], below)
        t = s + 1
        # A supernode without rows below has no siblings.
        while t < ns and first[t + 1] - begin <= PANEL and size > 0 and below[0] >= first[t + 1]:
            width = first[t + 1] - first[t]
            size_t = row_ptr[t + 1] - row_ptr[t] - width
            united = _unite(below[:size], rows[row_ptr[t + 1] - size_t : row_ptr[t + 1]], union)
            apart = _cost(first[t] - begin, size) + _cost(width, size_t)
            if size_t == 0 or not _cost(first[t + 1] - begin, united) < apart:
                break
            size = united
            copy(union[:size], below)
            t += 1
        joined[count] = begin
        count += 1
        s = t
    joined[count] = N
    return count


@kernel
def cut_panels(ns, first, row_ptr, rows):
    """Cut supernodes into panels of at most PANEL columns.

    Returns first, row_ptr, rows and val_ptr of the panels. Arguments are not modified.
    """
    count = 0
    total = 0
    for s in range(ns):
        width = first[s + 1] - first[s]
        size = row_ptr[s + 1] - row_ptr[s]
        pieces = (width + PANEL - 1) // PANEL
        count += pieces
        for k in range(pieces):
            total += size - k * PANEL
    panel_first = np.empty(count + 1, dtype=np.int64)
    panel_row_ptr = np.empty(count + 1, dtype=np.int64)
    panel_val_ptr = np.empty(count + 1, dtype=np.int64)
    panel_rows = np.empty(total, dtype=np.int64)
    panel_row_ptr[0] = 0
    panel_val_ptr[0] = 0
    J = 0
    for s in range(ns):
        j = first[s]
        while j < first[s + 1]:
            width = min(PANEL, first[s + 1] - j)
            skip = row_ptr[s] + (j - first[s])
            size = row_ptr[s + 1] - skip
            panel_first[J] = j
            begin = panel_row_ptr[J]
            copy(rows[skip : skip + size], panel_rows[begin:])
            panel_row_ptr[J + 1] = begin + size
            panel_val_ptr[J + 1] = panel_val_ptr[J] + size * width
            J += 1
            j += width
    panel_first[count] = first[ns]
    return panel_first, panel_row_ptr, panel_rows, panel_val_ptr


@kernel
def schedule_updates(N, first, row_ptr, rows):
    """For each panel, which earlier panels update it, and with which of their rows.

    Returns update_ptr, update_panel, update_first, update_last. Arguments are not modified.
    """
    count = len(first) - 1
    owner = np.empty(N, dtype=np.int64)
    for J in range(count):
        owner[first[J] : first[J + 1]] = J
    update_ptr = np.zeros(count + 1, dtype=np.int64)
    for K in range(count):
        previous = -1
        for p in range(row_ptr[K] + first[K + 1] - first[K], row_ptr[K + 1]):
            if owner[rows[p]] != previous:
                previous = owner[rows[p]]
                update_ptr[previous + 1] += 1
    for J in range(count):
        update_ptr[J + 1] += update_ptr[J]
    fill = update_ptr[:count].copy()
    update_panel = np.empty(update_ptr[count], dtype=np.int64)
    update_first = np.empty(update_ptr[count], dtype=np.int64)
    update_last = np.empty(update_ptr[count], dtype=np.int64)
    for K in range(count):
        p = row_ptr[K] + first[K + 1] - first[K]
        while p < row_ptr[K + 1]:
            J = owner[rows[p]]
            q = p
            while q < row_ptr[K + 1] and owner[rows[q]] == J:
                q += 1
            e = fill[J]
            fill[J] += 1
            update_panel[e] = K
            update_first[e] = p - row_ptr[K]
            update_last[e] = q - row_ptr[K]
            p = q
    return update_ptr, update_panel, update_first, update_last


@entry
def order_columns(N, Kp, Ki, most, abort, perm):
    """Overwrite perm (N) by an order of elimination of a symmetric matrix.

    Kp (N+1), Ki (nnz), int64: upper triangle by columns, diagonal optional (not modified). Returns how
    many entries its factor has, unless it stops early: see `approximate_minimum_degree`.
    """
    return approximate_minimum_degree(N, Kp, Ki, most, abort, perm)


@entry
def plan_factor(N, Kp, Ki, perm):
    """Plan the factorisation of a symmetric matrix in an order of elimination, or an equivalent one.

    N, Kp, Ki, perm: as of `order_columns`; the last one is overwritten. Returns a `Factor`.
    """
    position = np.empty(N, dtype=np.int64)
    parent = np.empty(N, dtype=np.int64)
    order = np.empty(N, dtype=np.int64)
    count = np.empty(N, dtype=np.int64)
    Up = np.empty(N + 1, dtype=np.int64)
    Ui = np.empty(len(Ki), dtype=np.int64)

    for k in range(N):
        position[perm[k]] = k
    permute_upper(N, Kp, Ki, position, Up, Ui)
    elimination_tree(N, Up, Ui, parent)
    postorder(N, parent, order)
    for k in range(N):
        position[perm[order[k]]] = k
    for j in range(N):
        perm[position[j]] = j
    permute_upper(N, Kp, Ki, position, Up, Ui)
    elimination_tree(N, Up, Ui, parent)
    column_counts(N, Up, Ui, parent, count)

    first = np.empty(N + 1, dtype=np.int64)
    ns = find_supernodes(N, parent, count, first)
    row_ptr = np.empty(ns + 1, dtype=np.int64)
    rows = supernode_rows(N, Up, Ui, ns, first, row_ptr)
    joined = np.empty(ns + 1, dtype=np.int64)
    ns = join_siblings(ns, first, row_ptr, rows, joined)
    rows = supernode_rows(N, Up, Ui, ns, joined, row_ptr)
    panel_first, panel_row_ptr, panel_rows, val_ptr = cut_panels(ns, joined, row_ptr, rows)
    update_ptr, update_panel, update_first, update_last = schedule_updates(
        N, panel_first, panel_row_ptr, panel_rows
    )
    return Factor(
        perm,
        position,
        panel_first,
        panel_row_ptr,
        panel_rows,
        val_ptr,
        update_ptr,
        update_panel,
        update_first,
        update_last,
    )


@kernel
def locate(factor, i, j):
    """Position among the values of L of the entry that couples original indices i and j."""
    row_ptr = factor.row_ptr
    position = factor.position
    first = factor.first
    rows = factor.rows
    row = max(position[i], position[j])
    column = min(position[i], position[j])
    low = 0
    high = len(first) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if first[middle] <= column:
            low = middle
        else:
            high = middle
    begin = row_ptr[low]
    size = row_ptr[low + 1] - begin
    offset = factor.val_ptr[low] + (column - first[low]) * size
    left = 0
    right = size
    while right - left > 1:
        middle = (left + right) // 2
        if rows[begin + middle] <= row:
            left = middle
        else:
            right = middle
    return offset + left
