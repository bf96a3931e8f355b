"""Equilibration: x = D xs, rows A by E, rows C by F, objective by a factor c.

With H_s = c D H D, g_s = c D g, A_s = E A D, b_s = E b, C_s = F C D, the multipliers are
y = E ys / c, z = F zs / c, z_box = zs_box / (c D), and the scaled bounds lb / D, ub / D.
D, E, F come from Ruiz's sweeps on the KKT matrix (Ruiz 2001; Stellato et al. 2020, section 5.1),
from the matrices alone, so that they serve every right-hand side.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.csc import first_of_dense
from nbqp.kernels.dense import copy
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.number import maximum
from nbqp.kernels.structure import sample
from nbqp.kernels.vector import WIDTH, load, load_head, peak, splat, store

SWEEPS = 10
# One sweep's factor, and rows that are (nearly) empty keep their scale.
SMALLEST = 1e-8
LARGEST_COST = 1e8


@kernel
def _raise_dense(column, d, E, rows):
    """rows[i] = max with |E_i column_i d|; returns the largest of them. rows[len(column) :] has WIDTH entries."""
    largest = splat(0.0)
    for i in range(0, len(column), WIDTH):
        head = min(len(column) - i, WIDTH)
        values = abs(load_head(column, i, head)) * load_head(E, i, head) * d
        # Whole vectors: what a masked store has left waits for the memory to be read again.
        store(rows, i, maximum(values, load(rows, i)))
        largest = maximum(values, largest)
    return peak(largest)


@kernel
def _symmetric_norm(Hp, Hi, Hx, D, j):
    """The largest |D_i H_ij D_j| of the column, or the row, j."""
    begin = Hp[j]
    end = Hp[j + 1]
    first = first_of_dense(Hi, begin, end)
    if first < 0:
        largest = 0.0
        for p in range(begin, end):
            largest = max(largest, abs(Hx[p]) * D[Hi[p]])
        return largest * D[j]
    norms = splat(0.0)
    for p in range(begin, end, WIDTH):
        head = min(end - p, WIDTH)
        scales = load_head(D, p - begin + first, head)
        norms = maximum(abs(load_head(Hx, p, head)) * scales, norms)
    return peak(norms) * D[j]


@kernel
def _raise_norms(Mp, Mi, Mx, D, E, columns, rows):
    """columns[j], rows[i] = max with |E_i M_ij D_j|; rows has WIDTH entries more."""
    for j in range(len(Mp) - 1):
        begin = Mp[j]
        end = Mp[j + 1]
        first = first_of_dense(Mi, begin, end)
        largest = 0.0
        if first >= 0:
            largest = _raise_dense(Mx[begin:end], D[j], E[first:], rows[first:])
        else:
            for p in range(begin, end):
                value = abs(Mx[p]) * D[j] * E[Mi[p]]
                largest = max(largest, value)
                rows[Mi[p]] = max(rows[Mi[p]], value)
        columns[j] = max(columns[j], largest)


@kernel
def _apply_norms(norms, D):
    """D /= sqrt(norms), of which only as many count as D has; returns the largest |1 - norm|."""
    worst = 0.0
    for j in range(len(D)):
        if norms[j] > SMALLEST:
            worst = max(worst, abs(1.0 - norms[j]))
            D[j] /= np.sqrt(norms[j])
    return worst


@kernel
def equilibrate(pattern, H, A, C, abort, D, E, F):
    """Ruiz's sweeps. H, A, C: values on the pattern, not modified. D, E, F: overwritten.

    abort (1), not modified: no further sweep once it is not 0. Any scales are valid.
    """
    n = pattern.n
    Hp = pattern.Hp
    Hi = pattern.Hi
    Ap = pattern.Ap
    Ai = pattern.Ai
    Cp = pattern.Cp
    Ci = pattern.Ci
    D[:] = 1.0
    E[:] = 1.0
    F[:] = 1.0
    columns = np.empty(n)
    rows_A = np.empty(pattern.n_eq + WIDTH)
    rows_C = np.empty(pattern.n_in + WIDTH)
    for _ in range(SWEEPS):
        rows_A[:] = 0.0
        rows_C[:] = 0.0
        for j in range(n):
            columns[j] = _symmetric_norm(Hp, Hi, H, D, j)
        _raise_norms(Ap, Ai, A, D, E, columns, rows_A)
        _raise_norms(Cp, Ci, C, D, F, columns, rows_C)
        worst = _apply_norms(columns, D)
        worst = max(worst, _apply_norms(rows_A, E))
        worst = max(worst, _apply_norms(rows_C, F))
        if worst < 0.1 or abort[0] != 0:
            break


@entry
def shared_scaling(pattern, H, A, C, abort, scaling):
    """Set a `Scaling` (1, .) that serves all QPs with these matrices: values on the pattern; see `equilibrate`."""
    equilibrate(pattern, H, A, C, abort, scaling.D[0], scaling.E[0], scaling.F[0])


@kernel
def has_scaling(scaling, k):
    """Whether there are D, E, F of sample k: no scale is 0."""
    return sample(scaling.D, k)[0] > 0.0


@kernel
def copy_scaling(pattern, scaling, k, qp, abort, problem):
    """Set D, E, F of `problem` to those of sample k, `qp`, by `equilibrate` where `scaling` does not have them."""
    if has_scaling(scaling, k):
        copy(sample(scaling.D, k), problem.D)
        copy(sample(scaling.E, k), problem.E)
        copy(sample(scaling.F, k), problem.F)
    else:
        equilibrate(pattern, qp.H, qp.A, qp.C, abort, problem.D, problem.E, problem.F)


@kernel
def find_scaling(pattern, scaling, k, qp, abort, problem):
    """As `copy_scaling`, and what was found is kept in `scaling` unless it was cut short.

    For solves alone: a sample is solved by one thread, before anybody else has its problem, while derivatives of
    one solution may be taken by several at once.
    """
    found = has_scaling(scaling, k)
    copy_scaling(pattern, scaling, k, qp, abort, problem)
    if not found and abort[0] == 0:
        copy(problem.D, scaling.D[k])
        copy(problem.E, scaling.E[k])
        copy(problem.F, scaling.F[k])


@kernel
def _scale_values(Mp, Mi, Mx, D, E, c, out):
    """Set out to c E M D on the pattern."""
    for j in range(len(Mp) - 1):
        begin = Mp[j]
        end = Mp[j + 1]
        first = first_of_dense(Mi, begin, end)
        if first >= 0:
            rows = E[first:]
            values = Mx[begin:end]
            target = out[begin:end]
            for i in range(len(values)):
                target[i] = c * rows[i] * values[i] * D[j]
        else:
            for p in range(begin, end):
                out[p] = c * E[Mi[p]] * Mx[p] * D[j]


@kernel
def scale_cost(pattern, H, g, D):
    """The factor c = 1 / max(mean column norm of D H D, |D g|), so that multipliers are near one."""
    n = pattern.n
    Hp = pattern.Hp
    Hi = pattern.Hi
    total = 0.0
    for j in range(n):
        total += _symmetric_norm(Hp, Hi, H, D, j)
    size = total / max(n, 1)
    for j in range(n):
        size = max(size, abs(g[j]) * D[j])
    if size == 0.0:
        return 1.0
    return min(max(1.0 / size, 1.0 / LARGEST_COST), LARGEST_COST)


@kernel
def scale_hessian(pattern, H, c, problem):
    """Fill H of `problem`, whose D is set, for the factor c on the objective."""
    problem.cost[0] = c
    _scale_values(pattern.Hp, pattern.Hi, H, problem.D, problem.D, c, problem.H)


@kernel
def scale_rows(pattern, A, C, problem):
    """Fill A and C of `problem`, whose D, E, F are set."""
    D = problem.D
    _scale_values(pattern.Ap, pattern.Ai, A, D, problem.E, 1.0, problem.A)
    _scale_values(pattern.Cp, pattern.Ci, C, D, problem.F, 1.0, problem.C)


@kernel
def set_units(pattern, problem):
    """Fill the factors that turn scaled residuals into the user's, from D, E, F and the cost."""
    n_in = pattern.n_in
    D = problem.D
    E = problem.E
    F = problem.F
    unit = problem.unit
    unit_d = problem.unit_d
    unit_e = problem.unit_e
    c = problem.cost[0]
    for j in range(pattern.n):
        unit[n_in + j] = D[j]
        unit_d[j] = 1.0 / (c * D[j])
    for i in range(pattern.n_eq):
        unit_e[i] = 1.0 / E[i]
    for i in range(n_in):
        unit[i] = 1.0 / F[i]


@kernel
def scale_problem(pattern, qp, problem, with_rows):
    """Fill `problem`, whose D, E, F are set, from the user's data `qp` (not modified).

    with_rows: its A and C as well; otherwise they are left as they are, those of an earlier QP.
    """
    g = qp.g
    b = qp.b
    l = qp.l
    u = qp.u
    lb = qp.lb
    ub = qp.ub
    D = problem.D
    E = problem.E
    F = problem.F
    problem_g = problem.g
    problem_b = problem.b
    lo = problem.lo
    hi = problem.hi
    n_in = pattern.n_in
    c = scale_cost(pattern, qp.H, g, D)
    scale_hessian(pattern, qp.H, c, problem)
    if with_rows:
        scale_rows(pattern, qp.A, qp.C, problem)
    set_units(pattern, problem)
    for j in range(pattern.n):
        problem_g[j] = c * D[j] * g[j]
        lo[n_in + j] = lb[j] / D[j]
        hi[n_in + j] = ub[j] / D[j]
    for i in range(pattern.n_eq):
        problem_b[i] = E[i] * b[i]
    for i in range(n_in):
        lo[i] = F[i] * l[i]
        hi[i] = F[i] * u[i]


@kernel
def scale_point(pattern, problem, x, y, z, z_box, iterate):
    """The user's (x, y, z, z_box), not modified, in scaled units into `iterate`."""
    n = pattern.n
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    D = problem.D
    E = problem.E
    F = problem.F
    c = problem.cost[0]
    for j in range(n):
        iterate.x[j] = x[j] / D[j]
        iterate.z[n_in + j] = c * D[j] * z_box[j]
    for i in range(n_eq):
        iterate.y[i] = c * y[i] / E[i]
    for i in range(n_in):
        iterate.z[i] = c * z[i] / F[i]


@kernel
def unscale_point(pattern, problem, iterate, x, y, z, z_box):
    """The inverse of `scale_point`: x (n), y (n_eq), z (n_in), z_box (n) are overwritten."""
    n = pattern.n
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    D = problem.D
    E = problem.E
    F = problem.F
    c = problem.cost[0]
    for j in range(n):
        x[j] = iterate.x[j] * D[j]
        z_box[j] = iterate.z[n_in + j] / (c * D[j])
    for i in range(n_eq):
        y[i] = iterate.y[i] * E[i] / c
    for i in range(n_in):
        z[i] = iterate.z[i] * F[i] / c
