"""The adjoint of least norm where the KKT matrix is singular and the system consistent.

Let E be the equalities, the rows whose sides coincide and those with a shift, B the other active rows,
N the inactive ones with a finite side. The adjoint (b1, b2, b3, b4) of the general system (see
`nbqp.least_norm`) has b2_E = M_E b4 - r_s, on active rows b2 = b3, on inactive ones b2 = 0 and
b3 = M b1 - r. That leaves

    [ H     M_E'M_E   M_B' ] [ b1 ]   [ r_x + M_E'r_s ]
    [ M_E                  ] [ b4 ] = [ r_E           ]
    [ M_B                  ] [ b_B]   [ r_B           ]

of which the solution is wanted that has the least

    |b1|^2 + |M_N b1 - r_N|^2 + |b4|^2 + |M_E b4 - r_s|^2 + 2 |b_B|^2

that is |L1'(b1 - start1)|^2 + |L4'(b4 - start4)|^2 + 2 |b_B|^2 and a constant, LL' = I + M'M. The data
are not scaled: the answer would depend on it.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.active import ABSENT, LOWER, UPPER, may_shift
from nbqp.kernels.adjoint import REGULAR, SINGULAR
from nbqp.kernels.dense import axpy, copy, dot, largest
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.orthogonal import least_norm, triangularise
from nbqp.kernels.structure import sample

# Diagonal entries of R below this multiple of the largest count as zero.
RCOND = 1e-10
# The residual, relative to the right-hand side, of a system that counts as consistent.
CONSISTENT = 1e-9

HELD = 0
ACTIVE = 1
INACTIVE = 2


@kernel
def _kind(side):
    """E, B or N; ABSENT rows are none of them: -1."""
    if may_shift(side):
        return HELD
    if side == LOWER or side == UPPER:
        return ACTIVE
    return -1 if side == ABSENT else INACTIVE


@kernel
def _gather(kinds, kind, rows):
    """Number the rows of a kind: rows (all) is overwritten there; returns how many there are."""
    count = 0
    for i in range(len(kinds)):
        if kinds[i] == kind:
            rows[i] = count
            count += 1
    return count


@kernel
def _dense_rows(pattern, A, C, kinds, rows, kind, count):
    """The rows of (A; C; I) of a kind, transposed: (n, count)."""
    n = pattern.n
    n_eq = pattern.n_eq
    Ap = pattern.Ap
    Ai = pattern.Ai
    Cp = pattern.Cp
    Ci = pattern.Ci
    M = np.zeros((n, count))
    for j in range(n):
        for p in range(Ap[j], Ap[j + 1]):
            if kinds[Ai[p]] == kind:
                M[j, rows[Ai[p]]] = A[p]
        for p in range(Cp[j], Cp[j + 1]):
            if kinds[n_eq + Ci[p]] == kind:
                M[j, rows[n_eq + Ci[p]]] = C[p]
        i = n_eq + pattern.n_in + j
        if kinds[i] == kind:
            M[j, rows[i]] = 1.0
    return M


@kernel
def _factor_norm(M):
    """Lower L with LL' = I + M'M; M as from `_dense_rows`, so that its rows are columns of M."""
    n = len(M)
    L = np.zeros((n, n))
    for j in range(n):
        for i in range(j, n):
            L[i, j] = dot(M[i], M[j]) - dot(L[i, :j], L[j, :j])
        L[j, j] = np.sqrt(L[j, j] + 1.0)
        for i in range(j + 1, n):
            L[i, j] /= L[j, j]
    return L


@kernel
def _solve_lower(L, x):
    """Overwrite x by L^-1 x."""
    for j in range(len(x)):
        x[j] = (x[j] - dot(L[j, :j], x[:j])) / L[j, j]


@kernel
def _solve_upper(L, x):
    """Overwrite x by L'^-1 x."""
    for j in range(len(x) - 1, -1, -1):
        x[j] /= L[j, j]
        axpy(x[:j], -x[j], L[j, :j])


@kernel
def _divide_columns(L, columns):
    """Overwrite K by K L'^-1, columns: a row for each column of K."""
    for j in range(len(columns)):
        for i in range(j):
            if L[j, i] != 0.0:
                axpy(columns[j], -L[j, i], columns[i])
        for i in range(columns.shape[1]):
            columns[j, i] /= L[j, j]


@kernel
def _solve_consistent(pattern, H, A, C, kinds, r_x, r, r_s, abort, b1, b2, b4):
    """Solve for one sample; r, r_s, b2: all rows. Returns whether the system is consistent.

    abort (1): once it is not 0 the answer means nothing.
    """
    n = pattern.n
    Hp = pattern.Hp
    Hi = pattern.Hi
    rows = np.zeros(len(kinds), dtype=np.int64)
    e = _gather(kinds, HELD, rows)
    active = _gather(kinds, ACTIVE, rows)
    inactive = _gather(kinds, INACTIVE, rows)
    M_E = _dense_rows(pattern, A, C, kinds, rows, HELD, e)
    M_B = _dense_rows(pattern, A, C, kinds, rows, ACTIVE, active)
    M_N = _dense_rows(pattern, A, C, kinds, rows, INACTIVE, inactive)
    L1 = _factor_norm(M_N)
    L4 = _factor_norm(M_E)
    m = n + e + active
    columns = np.zeros((2 * n + active, m))
    rhs = np.zeros(m)
    copy(r_x, rhs)
    r_N = np.zeros(inactive)
    s_E = np.zeros(e)
    for i in range(len(kinds)):
        if kinds[i] == HELD:
            rhs[n + rows[i]] = r[i]
            s_E[rows[i]] = r_s[i]
        elif kinds[i] == ACTIVE:
            rhs[n + e + rows[i]] = r[i]
        elif kinds[i] == INACTIVE:
            r_N[rows[i]] = r[i]
    for j in range(n):
        rhs[j] += dot(M_E[j], s_E)
        for p in range(Hp[j], Hp[j + 1]):
            columns[j, Hi[p]] = H[p]
        copy(M_E[j], columns[j, n:])
        copy(M_B[j], columns[j, n + e :])
        for i in range(n):
            columns[n + j, i] = dot(M_E[i], M_E[j])
        for i in range(active):
            columns[2 * n + i, j] = M_B[j, i] / np.sqrt(2.0)
        b1[j] = dot(M_N[j], r_N)
        b4[j] = dot(M_E[j], s_E)
    # The points of least norm but for the equations, from which the solutions are counted.
    for L, start in ((L1, b1), (L4, b4)):
        _solve_lower(L, start)
        _solve_upper(L, start)
    size = largest(rhs)
    for j in range(n):
        axpy(rhs, -b1[j], columns[j])
        axpy(rhs, -b4[j], columns[n + j])
    _divide_columns(L1, columns[:n])
    _divide_columns(L4, columns[n : 2 * n])
    order = np.empty(len(columns), dtype=np.int64)
    p = np.empty(len(columns))
    rank = triangularise(columns, order, rhs, RCOND, abort)
    if abort[0] != 0 or not np.sqrt(dot(rhs[rank:], rhs[rank:])) <= CONSISTENT * size:
        return False
    least_norm(columns, order, rank, rhs, p)
    _solve_upper(L1, p[:n])
    _solve_upper(L4, p[n : 2 * n])
    axpy(b1, 1.0, p[:n])
    axpy(b4, 1.0, p[n : 2 * n])
    b_E = np.zeros(e)
    for j in range(n):
        axpy(b_E, b4[j], M_E[j])
    for i in range(len(kinds)):
        b2[i] = 0.0
        if kinds[i] == HELD:
            b2[i] = b_E[rows[i]] - r_s[i]
        elif kinds[i] == ACTIVE:
            b2[i] = p[2 * n + rows[i]] / np.sqrt(2.0)
    return True


@entry
def solve_consistent_range(
    pattern, data, side, side_box, r, r_s, largest_dense, abort, begin, end, solution, b4, code
):
    """Solve for those right-hand sides of the samples begin..end-1 whose code is SINGULAR.

    data, side, side_box, r, r_s: see `adjoint.solve_kkt_range`; not modified. Rows of solution and b4
    and entries of code are overwritten where the system is consistent and has at most largest_dense
    unknowns; the code of others stays SINGULAR, and their rows mean nothing. abort (1), not modified: stop
    when not 0; all rows mean nothing then.
    """
    n = pattern.n
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    rows = n_eq + n_in + n
    kinds = np.empty(rows, dtype=np.int64)
    r_rows = np.empty(rows)
    s_rows = np.empty(rows)
    b2 = np.empty(rows)
    count = code.shape[1]
    for row in range(begin * count, end * count):
        k = row // count
        if code[k, row % count] != SINGULAR:
            continue
        if abort[0] != 0:
            return
        unknowns = n
        for i in range(rows):
            kinds[i] = HELD
            if i >= n_eq + n_in:
                kinds[i] = _kind(side_box[k, i - n_eq - n_in])
            elif i >= n_eq:
                kinds[i] = _kind(side[k, i - n_eq])
            if kinds[i] >= 0:
                unknowns += 2
        if unknowns > largest_dense:
            continue
        copy(r.y[row], r_rows)
        copy(r.z[row], r_rows[n_eq:])
        copy(r.z_box[row], r_rows[n_eq + n_in :])
        copy(r_s.s_e[row], s_rows)
        copy(r_s.s_i[row], s_rows[n_eq:])
        copy(r_s.s_box[row], s_rows[n_eq + n_in :])
        solved = _solve_consistent(
            pattern,
            sample(data.H, k),
            sample(data.A, k),
            sample(data.C, k),
            kinds,
            r.x[row],
            r_rows,
            s_rows,
            abort,
            solution.x[row],
            b2,
            b4[row],
        )
        if solved:
            code[k, row % count] = REGULAR
            copy(b2[:n_eq], solution.y[row])
            copy(b2[n_eq : n_eq + n_in], solution.z[row])
            copy(b2[n_eq + n_in :], solution.z_box[row])
