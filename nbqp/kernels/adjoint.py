"""The linear system of the derivatives: which rows hold, and a solve with their KKT matrix.

With J the active rows of M = (C; I), A's rows always active,

    [ H    A'   M_J' ] [ x   ]   [ r_x ]
    [ A              ] [ y   ] = [ r_y ]            z = 0 on the other rows
    [ M_J            ] [ z_J ]   [ r_J ]

gives the adjoint (r = -dL) as well as the directional derivative (r = -dG), since K is symmetric.
The factor is that of K with rho and -mu on its diagonal, the refinement is against K itself. A
variable whose bound is active is decoupled by its diagonal, and so are inactive rows.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.csc import add_product
from nbqp.kernels.dense import largest
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.kkt import DECOUPLED, factor_system, refine_unregularised, solve_regularised
from nbqp.kernels.scaling import copy_scaling, scale_cost, scale_matrices, unscale_point
from nbqp.kernels.state import new_iterate, new_problem, new_system
from nbqp.kernels.structure import EntriesReference, FactorReference, PatternReference, sample

# What an inequality row or a bound does at a solution: it holds on to a side, it is inactive, with
# one side nearer than the other, both its sides coincide, or both are infinite.
LOWER = -1
UPPER = 1
NEAR_LOWER = -2
NEAR_UPPER = 2
BOTH = 3
ABSENT = 0

# What a solve ended with.
REGULAR = 0
SINGULAR = 1
SKIPPED = 2

# Regularisation of the scaled matrix, and the residual (relative to the right-hand side) at which
# refinement against the matrix without it ends, or has to end.
RHO = 1e-8
MU = 1e-8
REFINED = 1e-14
ACCEPTED = 1e-9
REFINEMENTS = 12


@kernel
def _side(value, low, high, z, tolerance):
    """The side that a row holds on to: Pi_1 = 1{[t]_- + z >= 0} with a tolerance, t = v - side."""
    if low == high:
        return BOTH
    if low == -np.inf and high == np.inf:
        return ABSENT
    to_low = value - low
    to_high = high - value
    if z > 0.0 or (z == 0.0 and to_high < to_low):
        return UPPER if z + tolerance >= to_high else NEAR_UPPER
    return LOWER if -z + tolerance >= to_low else NEAR_LOWER


@entry
def active_sides(pattern, data, point, tolerance, side, side_box):
    """Sides of all samples: side (batch, n_in), side_box (batch, n), int64, are overwritten.

    A row that is weakly active (t = 0 = z, up to tolerance[k]) counts as active.
    """
    n_in = pattern.n_in
    value = np.empty(n_in)
    for k in range(len(side_box)):
        C = sample(data.C, k)
        x = point.x[k]
        value[:] = 0.0
        add_product(pattern.Cp, pattern.Ci, C, x, value)
        l = sample(data.l, k)
        u = sample(data.u, k)
        lb = sample(data.lb, k)
        ub = sample(data.ub, k)
        for i in range(n_in):
            side[k, i] = _side(value[i], l[i], u[i], point.z[k, i], tolerance[k])
        for j in range(pattern.n):
            side_box[k, j] = _side(x[j], lb[j], ub[j], point.z_box[k, j], tolerance[k])


@kernel
def _active(side):
    return side == LOWER or side == UPPER or side == BOTH


@kernel
def _is_singular(pattern, factor, system):
    """Whether K is singular beside its regularisation R.

    Two steps w <- (K + R)^-1 R w from a fixed vector: w keeps its size where K w = 0, and shrinks
    by R over the smallest singular value elsewhere. The right-hand side is overwritten.
    """
    n = pattern.n
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    w = system.w
    dx = system.dx
    dy = system.dy
    dz = system.dz
    state = 0.5
    for j in range(n):
        state = (state + 0.6180339887498949) % 1.0
        dx[j] = 1.0 - 2.0 * state
    for i in range(n_eq):
        state = (state + 0.6180339887498949) % 1.0
        dy[i] = 1.0 - 2.0 * state
    for i in range(n_in):
        state = (state + 0.6180339887498949) % 1.0
        dz[i] = 1.0 - 2.0 * state
    size = 1.0
    previous = 1.0
    for _ in range(2):
        for j in range(n):
            system.r1[j] = 0.0 if w[n_in + j] < DECOUPLED else RHO * dx[j]
            system.r3[n_in + j] = 0.0
        for i in range(n_eq):
            system.r2[i] = -MU * dy[i]
        for i in range(n_in):
            system.r3[i] = -MU * dz[i] if w[i] < DECOUPLED else 0.0
        solve_regularised(pattern, factor, system)
        previous = size
        size = max(largest(dy), 0.0)
        for j in range(n):
            if not w[n_in + j] < DECOUPLED:
                size = max(size, abs(dx[j]))
        for i in range(n_in):
            if w[i] < DECOUPLED:
                size = max(size, abs(dz[i]))
    return size > 0.5 * previous


@entry
def solve_kkt_range(
    pattern_values,
    factor_values,
    entries_values,
    data,
    scaling,
    side,
    side_box,
    r,
    begin,
    end,
    solution,
    code,
):
    """Solve the system of samples begin..end-1.

    data: `Data`, of which H, A, C are read. scaling: `Scaling`, (0, .) to find one for each
    sample. side (batch, n_in), side_box (batch, n): from `active_sides`. r: `Point` of right-hand
    sides, whose inactive rows do not count. All these are not modified. Rows of solution, a
    `Point`, and of code (batch) are overwritten: REGULAR, or SINGULAR where the matrix is singular
    to working precision; samples whose code is SKIPPED are left alone.
    """
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    n = pattern.n
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    problem = new_problem(pattern)
    system = new_system(pattern, factor)
    point = new_iterate(pattern)
    zero = np.zeros(n)
    D = problem.D
    E = problem.E
    F = problem.F
    system.rho[0] = RHO
    system.mu_e[:] = MU
    for k in range(begin, end):
        if code[k] == SKIPPED:
            continue
        H = sample(data.H, k)
        A = sample(data.A, k)
        C = sample(data.C, k)
        copy_scaling(pattern, scaling, H, A, C, problem)
        c = scale_cost(pattern, H, zero, D)
        scale_matrices(pattern, H, A, C, c, problem)
        for i in range(n_in):
            system.w[i] = MU if _active(side[k, i]) else np.inf
        for j in range(n):
            system.w[n_in + j] = 1.0 / DECOUPLED if _active(side_box[k, j]) else np.inf
        replaced = system.counts[2]
        factor_system(pattern, factor, entries, problem.H, problem.A, problem.C, system)
        singular = system.counts[2] > replaced or _is_singular(pattern, factor, system)
        for j in range(n):
            system.r1[j] = c * D[j] * r.x[k, j]
            system.r3[n_in + j] = r.z_box[k, j] / D[j] if _active(side_box[k, j]) else 0.0
        for i in range(n_eq):
            system.r2[i] = E[i] * r.y[k, i]
        for i in range(n_in):
            system.r3[i] = F[i] * r.z[k, i] if _active(side[k, i]) else 0.0
        error = refine_unregularised(
            pattern, factor, problem.H, problem.A, problem.C, system, REFINED, REFINEMENTS
        )
        code[k] = SINGULAR if singular or not error <= ACCEPTED else REGULAR
        for j in range(n):
            point.x[j] = system.r3[n_in + j] if _active(side_box[k, j]) else system.dx[j]
            point.z[n_in + j] = system.dz[n_in + j]
        for i in range(n_eq):
            point.y[i] = system.dy[i]
        for i in range(n_in):
            point.z[i] = system.dz[i]
        unscale_point(
            pattern,
            problem,
            point,
            solution.x[k],
            solution.y[k],
            solution.z[k],
            solution.z_box[k],
        )


@entry
def sample_products(rows, columns, Y, P, Q, X, out):
    """out[e] = sum over samples k of Y[k, i] P[k, j] + Q[k, i] X[k, j], (i, j) the e-th entry.

    rows, columns (nnz) int64; Y, Q (batch, rows); P, X (batch, columns): not modified.
    """
    for e in range(len(out)):
        i = rows[e]
        j = columns[e]
        total = 0.0
        for k in range(len(X)):
            total += Y[k, i] * P[k, j] + Q[k, i] * X[k, j]
        out[e] = total
