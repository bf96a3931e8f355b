"""Approximate minimum degree ordering of a symmetric pattern (Amestoy, Davis, Duff 1996).

The graph of the remaining matrix is kept as a quotient graph: an eliminated pivot becomes an
*element*, the clique of its remaining neighbours, which absorbs the elements it touches. Variables
that cannot be told apart are merged into supervariables; degrees are bounded from above by sums
over elements. Unlike AMD, a supervariable's own size counts in its degree: a block of equal dense
constraint rows then waits for the variables it couples, as in a Schur complement. That costs little
fill and avoids pivots of the size of the regularisation. The members of a supervariable, whose
order does not matter for fill, come in ascending order for the same reason: variables, then the
rows that couple them.

AMD's rule for dense rows (postpone all above 10 sqrt(N)) marks every node of a dense problem and
loses the order. Here a node must also have ten times the mean degree: the few rows that couple
everything go last, and a dense problem is left alone.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.dense import sort_ascending
from nbqp.kernels.jit import kernel

DENSE_ROOTS = 10.0
DENSE_MEANS = 10.0


@kernel
def _full_adjacency(N, Kp, Ki, start, length, lists):
    """Neighbours of each node, both triangles, without the diagonal, node after node.

    start, length (N) and lists (2 nnz): overwritten. Returns the entries used.
    """
    length[:] = 0
    for j in range(N):
        for p in range(Kp[j], Kp[j + 1]):
            i = Ki[p]
            if i != j:
                length[i] += 1
                length[j] += 1
    total = 0
    for j in range(N):
        start[j] = total
        total += length[j]
        length[j] = 0
    for j in range(N):
        for p in range(Kp[j], Kp[j + 1]):
            i = Ki[p]
            if i != j:
                lists[start[i] + length[i]] = j
                length[i] += 1
                lists[start[j] + length[j]] = i
                length[j] += 1
    return total


@kernel
def _compacted(N, start, length, alive, lists, extra):
    """Copy the lists of the nodes alive into a new array with room for `extra` more entries.

    start (N): overwritten by the new places. Returns the array and the entries used.
    """
    live = 0
    for i in range(N):
        if alive[i]:
            live += length[i]
    fresh = np.empty(max(2 * live, len(lists)) + extra, dtype=np.int64)
    at = 0
    for i in range(N):
        if alive[i]:
            begin = start[i]
            start[i] = at
            for p in range(begin, begin + length[i]):
                fresh[at] = lists[p]
                at += 1
    return fresh, at


@kernel
def _insert(i, degree, head, following, previous):
    """Put node i at the front of the list of its degree."""
    first = head[degree]
    following[i] = first
    previous[i] = -1
    if first != -1:
        previous[first] = i
    head[degree] = i


@kernel
def _remove(i, degree, head, following, previous):
    """Take node i out of the list of its degree."""
    if previous[i] != -1:
        following[previous[i]] = following[i]
    else:
        head[degree] = following[i]
    if following[i] != -1:
        previous[following[i]] = previous[i]


@kernel
def _merge(i, j, weight, member, last_member, alive):
    """Node j joins i: eliminated with it, in the order of the members' chain."""
    weight[i] += weight[j]
    weight[j] = 0
    alive[j] = False
    member[last_member[i]] = j
    last_member[i] = last_member[j]


@kernel
def _same_neighbours(i, j, start, length, elements, lists, mark, stamp):
    """Whether j has the neighbours that carry the stamp, those of i."""
    if length[i] != length[j] or elements[i] != elements[j]:
        return False
    for p in range(start[j] + 1, start[j] + length[j]):
        if mark[lists[p]] != stamp:
            return False
    return True


@kernel
def approximate_minimum_degree(N, Kp, Ki, most, abort, perm):
    """Overwrite perm (N) by an order of elimination: perm[k] = index eliminated k-th.

    Kp (N+1), Ki (nnz), int64, not modified: upper triangle of the pattern by columns, without
    duplicates; diagonal entries are optional. Ties fall to the node inserted last: deterministic.
    Returns the entries of L, its diagonal included, of all nodes but dense ones, and whether it went to the end:
    it stops where these will be more than `most`, of which so many are known, or abort (1) is not 0.
    """
    start = np.empty(N, dtype=np.int64)
    length = np.empty(N, dtype=np.int64)
    lists = np.empty(2 * len(Ki) + N + 1, dtype=np.int64)
    used = _full_adjacency(N, Kp, Ki, start, length, lists)
    # A variable's list: `elements` elements, then variables. An element's list: its variables.
    elements = np.zeros(N, dtype=np.int64)
    weight = np.ones(N, dtype=np.int64)  # size of a supervariable; 0 once merged or eliminated
    inside = np.zeros(N, dtype=np.bool_)  # in the element that is being formed
    alive = np.ones(N, dtype=np.bool_)  # has a list
    degree = length.copy()
    place = length.copy()  # list of each variable: its degree, its own supervariable included
    outside = np.zeros(N, dtype=np.int64)  # |Le \ Lme| of elements, where seen == stamp
    seen = np.full(N, -1, dtype=np.int64)
    mark = np.full(N, -1, dtype=np.int64)
    member = np.full(N, -1, dtype=np.int64)
    last_member = np.arange(N)
    head = np.full(N + 1, -1, dtype=np.int64)
    following = np.empty(N, dtype=np.int64)
    previous = np.empty(N, dtype=np.int64)
    bucket = np.full(N, -1, dtype=np.int64)
    chain = np.empty(N, dtype=np.int64)
    key = np.empty(N, dtype=np.int64)
    pivots = np.empty(N, dtype=np.int64)
    count = 0
    done = 0
    stamp = 0
    entries = 0

    dense = max(16.0, DENSE_ROOTS * np.sqrt(N), DENSE_MEANS * used / max(N, 1))
    postponed = 0
    for i in range(N - 1, -1, -1):
        if degree[i] > dense:
            weight[i] = 0
            alive[i] = False
            postponed += 1
            perm[N - postponed] = i
        else:
            _insert(i, degree[i], head, following, previous)
    remaining = N - postponed

    lowest = 0
    while done < remaining:
        if abort[0] != 0:
            return entries, False
        while head[lowest] == -1:
            lowest += 1
        me = head[lowest]
        _remove(me, lowest, head, following, previous)
        pivots[count] = me
        count += 1

        # Form the element: all variables that me sees, directly or through elements.
        if used + degree[me] + length[me] > len(lists):
            lists, used = _compacted(N, start, length, alive, lists, N + degree[me])
        begin = used
        inside[me] = True
        for q in range(elements[me] + 1):
            if q < elements[me]:
                source = lists[start[me] + q]
                first = start[source]
                last = first + length[source]
                if not alive[source]:
                    continue
                alive[source] = False
            else:
                first = start[me] + elements[me]
                last = start[me] + length[me]
            for p in range(first, last):
                i = lists[p]
                if weight[i] > 0 and not inside[i]:
                    inside[i] = True
                    lists[used] = i
                    used += 1
                    _remove(i, place[i], head, following, previous)
        done += weight[me]
        start[me] = begin
        length[me] = used - begin
        size = 0
        for p in range(begin, used):
            size += weight[lists[p]]
        # Whatever comes first of a clique, all of its pairs are entries.
        least = entries + (size + weight[me]) * (size + weight[me] + 1) // 2
        if least > most:
            return least, False

        # |Le \ Lme| for every element that a variable of me sees.
        stamp += 1
        for p in range(begin, used):
            i = lists[p]
            for q in range(start[i], start[i] + elements[i]):
                e = lists[q]
                if alive[e]:
                    if seen[e] != stamp:
                        seen[e] = stamp
                        outside[e] = degree[e]
                    outside[e] -= weight[i]

        # New lists and degrees: me first, surviving elements, then variables outside me.
        for p in range(begin, used):
            i = lists[p]
            at = start[i]
            bound = 0
            code = me
            kept = 0
            variables_from = start[i] + elements[i]
            variables_to = start[i] + length[i]
            # me takes one place: an absorbed element, or a variable inside me, has freed one.
            for q in range(start[i], variables_from):
                e = lists[q]
                if alive[e]:
                    if outside[e] > 0:
                        bound += outside[e]
                        code += e
                        lists[at + kept] = e
                        kept += 1
                    else:
                        alive[e] = False
            count_elements = kept
            for q in range(variables_from, variables_to):
                j = lists[q]
                if weight[j] > 0 and not inside[j]:
                    bound += weight[j]
                    code += j
                    lists[at + kept] = j
                    kept += 1
            if kept == 0:
                # Nothing but me: eliminated together with it.
                size -= weight[i]
                done += weight[i]
                _merge(me, i, weight, member, last_member, alive)
                continue
            # Bring me to the front.
            lists[at + kept] = lists[at + count_elements]
            lists[at + count_elements] = lists[at]
            lists[at] = me
            elements[i] = count_elements + 1
            length[i] = kept + 1
            degree[i] = min(degree[i], bound)
            key[i] = code % N
            chain[i] = bucket[key[i]]
            bucket[key[i]] = i

        # Supervariables: variables of me with equal lists.
        for p in range(begin, used):
            i = lists[p]
            if weight[i] == 0:
                continue
            i = bucket[key[i]]
            bucket[key[lists[p]]] = -1
            while i != -1:
                following_i = chain[i]
                if following_i != -1 and weight[i] > 0:
                    stamp += 1
                    for q in range(start[i] + 1, start[i] + length[i]):
                        mark[lists[q]] = stamp
                    j = following_i
                    while j != -1:
                        if weight[j] > 0 and _same_neighbours(
                            i, j, start, length, elements, lists, mark, stamp
                        ):
                            _merge(i, j, weight, member, last_member, alive)
                        j = chain[j]
                i = following_i

        # Drop what was merged; put the rest back with their approximate degrees.
        kept = 0
        for p in range(begin, used):
            i = lists[p]
            inside[i] = False
            if weight[i] > 0:
                degree[i] = min(degree[i] + size - weight[i], remaining - done - weight[i])
                place[i] = degree[i] + weight[i] - 1
                lowest = min(lowest, place[i])
                _insert(i, place[i], head, following, previous)
                lists[begin + kept] = i
                kept += 1
        inside[me] = False
        length[me] = kept
        degree[me] = size
        used = begin + kept
        entries += weight[me] * (weight[me] + 1) // 2 + weight[me] * size
        weight[me] = 0
        if kept == 0:
            alive[me] = False

    k = 0
    for c in range(count):
        i = pivots[c]
        first = k
        while i != -1:
            perm[k] = i
            k += 1
            i = member[i]
        sort_ascending(perm[first:k])
    return entries, True
