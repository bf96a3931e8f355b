"""The linear system of the derivatives: which rows hold, and a solve with their KKT matrix.

With J the active rows of M = (C; I), A's rows always active,

    [ H    A'   M_J' ] [ x   ]   [ r_x ]
    [ A              ] [ y   ] = [ r_y ]            z = 0 on the other rows
    [ M_J            ] [ z_J ]   [ r_J ]

gives the adjoint (r = -dL) as well as the directional derivative (r = -dG), since K is symmetric.
The factor is that of K with rho and -mu on its diagonal, the refinement is against K itself. A
variable whose bound is active is decoupled by its diagonal, and so are inactive rows.

Let V be the equalities, the rows whose sides coincide, and those with a shift. Where some shift is not
0, or rows of V depend on each other, the solution w_V is unique up to the null space of M_V'. With the least-norm least-squares
solution b4 of M_V b4 = w_V the adjoint has b2_V = M_V b4 + dL/ds_V (Bambade et al. 2024, system (2)).
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.csc import add_product, add_transposed_product
from nbqp.kernels.dense import largest
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.kkt import (
    DECOUPLED,
    factor_system,
    refine_unregularised,
    solve_regularised,
)
from nbqp.kernels.scaling import (
    copy_scaling,
    scale_cost,
    scale_matrices,
    set_units,
    unscale_point,
)
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
# A row of a closest feasible QP whose side is shifted.
VIOLATED_LOWER = -4
VIOLATED_UPPER = 4

# Of a sample whose largest shift is near the tolerance for sides, shifts above this share of the largest
# one are shifts too; otherwise those above the tolerance, below which the accuracy of x makes some.
SHIFTED = 0.1

# A multiplier below this share of the distance to its side counts as none.
NEGLIGIBLE_SHARE = 1e-6

# What a solve ended with.
REGULAR = 0
SINGULAR = 1
SKIPPED = 2

# What null vectors of K have: none exists, rows of V alone, or anything else.
NO_NULL = 0
NULL_IN_V = 1
NULL_ELSEWHERE = 2

# Regularisation of the scaled matrix, and the residual (relative to the right-hand side) at which
# refinement against the matrix without it ends, or has to end.
# Dependent rows leave pivots of the size of mu beside terms 1 / rho: the product has to stand out
# of the rounding, or null vectors are not told from others.
REGULARISATION = 1e-6
REFINED = 1e-14
ACCEPTED = 1e-9
# Each step takes the regularisation over the smallest singular value off the error.
REFINEMENTS = 12
# Multiples of it, modulo 1, fill (0, 1) evenly: entries of a vector that is orthogonal to no other.
GOLDEN = 0.6180339887498949
# The size that two steps leave of a vector, relative to one, where a null vector is in it.
KEPT = 0.5
# The share of a null vector outside V that counts as none.
NEGLIGIBLE = 1e-4
# The weight of the proximal term for b4, and a smaller one for rows of V that are nearly dependent or
# small, where the first takes too many steps; the steps with each, and their relative size at the end.
PROXIMAL = 1e-5
SMALL_PROXIMAL = 1e-9
PROXIMAL_STEPS = 20
SETTLED = 1e-9


@kernel
def _side(value, low, high, z, s, tolerance, shifted):
    """The side that a row holds on to: Pi_1 = 1{[t]_- + z >= 0}, t = v - side.

    At a solution t or z is 0. Unless z is next to nothing beside it, that is t, however large a loose
    tolerance or the units have left it; a row with z = 0 counts where |t| is within `tolerance`.
    value: of the row, less its shift s, which is one above `shifted`.
    """
    if low == high:
        return BOTH
    if low == -np.inf and high == np.inf:
        return ABSENT
    if s > shifted:
        return VIOLATED_UPPER
    if s < -shifted:
        return VIOLATED_LOWER
    to_low = value - low
    to_high = high - value
    if z > 0.0 or (z == 0.0 and to_high < to_low):
        return UPPER if z >= NEGLIGIBLE_SHARE * to_high or tolerance >= to_high else NEAR_UPPER
    return LOWER if -z >= NEGLIGIBLE_SHARE * to_low or tolerance >= to_low else NEAR_LOWER


@entry
def active_sides(pattern, data, point, shifts, tolerance, side, side_box):
    """Sides of all samples: side (batch, n_in), side_box (batch, n), int64, are overwritten.

    A row that is weakly active (t = 0 = z, up to tolerance[k]) counts as active.
    """
    n_in = pattern.n_in
    value = np.empty(n_in)
    for k in range(len(side_box)):
        C = sample(data.C, k)
        x = point.x[k]
        size = max(largest(shifts.s_e[k]), largest(shifts.s_i[k]), largest(shifts.s_box[k]))
        shifted = min(tolerance[k], SHIFTED * size)
        for i in range(n_in):
            value[i] = -shifts.s_i[k, i]
        add_product(pattern.Cp, pattern.Ci, C, x, value)
        l = sample(data.l, k)
        u = sample(data.u, k)
        lb = sample(data.lb, k)
        ub = sample(data.ub, k)
        for i in range(n_in):
            s = shifts.s_i[k, i]
            side[k, i] = _side(value[i], l[i], u[i], point.z[k, i], s, tolerance[k], shifted)
        for j in range(pattern.n):
            s = shifts.s_box[k, j]
            side_box[k, j] = _side(
                x[j] - s, lb[j], ub[j], point.z_box[k, j], s, tolerance[k], shifted
            )


@kernel
def may_shift(side):
    """Whether the row belongs to V."""
    return side == BOTH or side == VIOLATED_LOWER or side == VIOLATED_UPPER


@kernel
def _active(side):
    return side == LOWER or side == UPPER or may_shift(side)


@kernel
def _factor_kkt(pattern, factor, entries, problem, side, side_box, system):
    """Factorise the KKT matrix of the active set with REGULARISATION, signed, on its diagonal.

    rho, mu_e, w and the factor of the system are overwritten. Returns whether all pivots had their
    signs.
    """
    n_in = pattern.n_in
    w = system.w
    system.rho[0] = REGULARISATION
    system.mu_e[:] = REGULARISATION
    for i in range(n_in):
        w[i] = REGULARISATION if _active(side[i]) else np.inf
    for j in range(pattern.n):
        w[n_in + j] = 1.0 / DECOUPLED if _active(side_box[j]) else np.inf
    H = problem.H
    return factor_system(pattern, factor, entries, H, problem.A, problem.C, system) == 0


@kernel
def _null_space_kind(pattern, factor, problem, side, side_box, system):
    """Which null vectors K has beside its regularisation R.

    Two steps w <- (K + R)^-1 R w from a fixed vector: w keeps its size where K w = 0, and shrinks
    by R over the smallest singular value elsewhere. The system's right-hand side, solution and e1 are
    overwritten.
    """
    n = pattern.n
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    w = system.w
    dx = system.dx
    dy = system.dy
    dz = system.dz
    e1 = system.e1
    state = 0.5
    for j in range(n):
        state = (state + GOLDEN) % 1.0
        dx[j] = 1.0 - 2.0 * state
    for i in range(n_eq):
        state = (state + GOLDEN) % 1.0
        dy[i] = 1.0 - 2.0 * state
    for i in range(n_in):
        state = (state + GOLDEN) % 1.0
        dz[i] = 1.0 - 2.0 * state
    size = 1.0
    elsewhere = 1.0
    previous = 1.0
    for _ in range(2):
        for j in range(n):
            system.r1[j] = 0.0 if w[n_in + j] < DECOUPLED else REGULARISATION * dx[j]
            system.r3[n_in + j] = 0.0
        for i in range(n_eq):
            system.r2[i] = -REGULARISATION * dy[i]
        for i in range(n_in):
            system.r3[i] = -REGULARISATION * dz[i] if w[i] < DECOUPLED else 0.0
        solve_regularised(pattern, factor, system)
        previous = size
        size = largest(dy)
        elsewhere = 0.0
        for i in range(n_in):
            if w[i] < DECOUPLED:
                size = max(size, abs(dz[i]))
                if not may_shift(side[i]):
                    elsewhere = max(elsewhere, abs(dz[i]))
        for j in range(n):
            if not w[n_in + j] < DECOUPLED:
                elsewhere = max(elsewhere, abs(dx[j]))
        size = max(size, elsewhere)
    if not size > KEPT * previous:
        return NO_NULL
    # Multipliers of active bounds follow from the rows of H, A and C.
    e1[:] = 0.0
    add_transposed_product(pattern.Hp, pattern.Hi, problem.H, dx, e1)
    add_transposed_product(pattern.Ap, pattern.Ai, problem.A, dy, e1)
    add_transposed_product(pattern.Cp, pattern.Ci, problem.C, dz, e1)
    for j in range(n):
        if w[n_in + j] < DECOUPLED and not may_shift(side_box[j]):
            elsewhere = max(elsewhere, abs(e1[j]))
    return NULL_IN_V if elsewhere <= NEGLIGIBLE * size else NULL_ELSEWHERE


@kernel
def _row_products(pattern, A, C, x, Ax, Cx):
    """Overwrite Ax and Cx, the first n_in entries of an array that may be longer."""
    Ax[:] = 0.0
    Cx[:] = 0.0
    add_product(pattern.Ap, pattern.Ai, A, x, Ax)
    add_product(pattern.Cp, pattern.Ci, C, x, Cx)


@kernel
def _project_multipliers(
    pattern, factor, entries, no_H, problem, side, side_box, system, q, rows, y, z, z_box, b4
):
    """b4 = least-norm least-squares solution of M_V b4 = w_V, in the user's units.

    y (n_eq), z (n_in), z_box (n): w; its entries of V are replaced by M_V b4. no_H: zeros on H's
    pattern. b4 (n), the system and the iterates q and rows are overwritten. Returns whether the
    proximal steps have settled.
    """
    n = pattern.n
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    A = problem.A
    C = problem.C
    D = problem.D
    unit_e = problem.unit_e
    unit = problem.unit
    w = system.w
    r2 = system.r2
    r3 = system.r3
    dx = system.dx
    x = q.x
    Ax = q.e
    Mx = q.v
    # Scaled rows M_s = M / unit, x_s = x / D: the norms of the user's units are weights.
    system.rho[0] = 0.0
    for i in range(n_eq):
        system.mu_e[i] = 1.0 / (unit_e[i] * unit_e[i])
        rows.e[i] = y[i] / unit_e[i]
    for i in range(n_in):
        w[i] = 1.0 / (unit[i] * unit[i]) if may_shift(side[i]) else np.inf
        rows.v[i] = z[i] / unit[i]
    for j in range(n):
        rows.v[n_in + j] = z_box[j] / D[j]
    system.r1[:] = 0.0
    x[:] = 0.0
    settled = False
    for step in range(2 * PROXIMAL_STEPS):
        if step % PROXIMAL_STEPS == 0:
            proximal = PROXIMAL if step == 0 else SMALL_PROXIMAL
            for j in range(n):
                weight = 1.0 if may_shift(side_box[j]) else 1.0 / proximal
                w[n_in + j] = weight / (D[j] * D[j])
            factor_system(pattern, factor, entries, no_H, A, C, system)
        _row_products(pattern, A, C, x, Ax, Mx)
        for i in range(n_eq):
            r2[i] = rows.e[i] - Ax[i]
        for i in range(n_in):
            r3[i] = rows.v[i] - Mx[i] if may_shift(side[i]) else 0.0
        for j in range(n):
            r3[n_in + j] = rows.v[n_in + j] - x[j] if may_shift(side_box[j]) else 0.0
        # What it leaves of its own residual the next step takes up.
        solve_regularised(pattern, factor, system)
        for j in range(n):
            x[j] += dx[j]
        settled = largest(dx) <= SETTLED * largest(x)
        if settled:
            break
    _row_products(pattern, A, C, x, Ax, Mx)
    for i in range(n_eq):
        y[i] = Ax[i] * unit_e[i]
    for i in range(n_in):
        if may_shift(side[i]):
            z[i] = Mx[i] * unit[i]
    for j in range(n):
        b4[j] = x[j] * D[j]
        if may_shift(side_box[j]):
            z_box[j] = b4[j]
    return settled


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
    r_s,
    closest,
    adjoint,
    begin,
    end,
    solution,
    b4,
    code,
):
    """Solve the system of samples begin..end-1.

    data: `Data`, of which H, A, C are read. scaling: `Scaling`, (0, .) to find one for each
    sample. side (batch, n_in), side_box (batch, n): from `active_sides`. r: `Point` of right-hand
    sides, whose inactive rows do not count; r_s: `Shifts`, -dL/ds, of which V counts. closest
    (batch), bool: whether some shift is not 0. adjoint: whether the adjoint is asked for; otherwise
    samples with null vectors are left to the caller. All these are not modified.

    Rows of solution, a `Point` with b2 for its multipliers, of b4 (batch, n) and of code (batch) are
    overwritten: REGULAR, or SINGULAR where the answer is not unique or none exists; samples whose
    code is SKIPPED are left alone.
    """
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    n = pattern.n
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    problem = new_problem(0.0, pattern)
    system = new_system(0.0, pattern, factor)
    point = new_iterate(0.0, pattern)
    rows = new_iterate(0.0, pattern)
    zero = np.zeros(n)
    no_H = np.zeros(len(pattern.Hi))
    r_x = np.empty(n)
    r_V = np.empty(n_in)
    D = problem.D
    E = problem.E
    F = problem.F
    scaled = False
    c = 1.0
    for k in range(begin, end):
        if code[k] == SKIPPED:
            continue
        code[k] = SINGULAR
        if closest[k] and not adjoint:
            continue
        H = sample(data.H, k)
        A = sample(data.A, k)
        C = sample(data.C, k)
        if len(scaling.D) == 0 or not scaled:
            # A shared scaling belongs to matrices that are shared: the first sample's serve all.
            copy_scaling(pattern, scaling, H, A, C, problem)
            c = scale_cost(pattern, H, zero, D)
            scale_matrices(pattern, H, A, C, c, problem)
            set_units(pattern, problem)
            scaled = True
        for i in range(n_in):
            r_V[i] = r_s.s_i[k, i] if may_shift(side[k, i]) else 0.0
        for j in range(n):
            r_x[j] = r.x[k, j]
            if may_shift(side_box[k, j]):
                r_x[j] += r_s.s_box[k, j]
        add_transposed_product(pattern.Ap, pattern.Ai, A, r_s.s_e[k], r_x)
        add_transposed_product(pattern.Cp, pattern.Ci, C, r_V, r_x)
        if not _factor_kkt(pattern, factor, entries, problem, side[k], side_box[k], system):
            continue
        null = _null_space_kind(pattern, factor, problem, side[k], side_box[k], system)
        if null == NULL_ELSEWHERE or (null == NULL_IN_V and not adjoint):
            continue
        for j in range(n):
            system.r1[j] = c * D[j] * r_x[j]
            system.r3[n_in + j] = r.z_box[k, j] / D[j] if _active(side_box[k, j]) else 0.0
        for i in range(n_eq):
            system.r2[i] = E[i] * r.y[k, i]
        for i in range(n_in):
            system.r3[i] = F[i] * r.z[k, i] if _active(side[k, i]) else 0.0
        error = refine_unregularised(
            pattern, factor, problem.H, problem.A, problem.C, system, REFINED, REFINEMENTS
        )
        if not error <= ACCEPTED:
            continue
        code[k] = REGULAR
        for j in range(n):
            point.x[j] = system.r3[n_in + j] if _active(side_box[k, j]) else system.dx[j]
            point.z[n_in + j] = system.dz[n_in + j]
        for i in range(n_eq):
            point.y[i] = system.dy[i]
        for i in range(n_in):
            point.z[i] = system.dz[i]
        y = solution.y[k]
        z = solution.z[k]
        z_box = solution.z_box[k]
        unscale_point(pattern, problem, point, solution.x[k], y, z, z_box)
        if closest[k] or null == NULL_IN_V:
            settled = _project_multipliers(
                pattern,
                factor,
                entries,
                no_H,
                problem,
                side[k],
                side_box[k],
                system,
                point,
                rows,
                y,
                z,
                z_box,
                b4[k],
            )
            if not settled:
                code[k] = SINGULAR
                continue
        for i in range(n_eq):
            y[i] -= r_s.s_e[k, i]
        for i in range(n_in):
            z[i] -= r_V[i]
        for j in range(n):
            if may_shift(side_box[k, j]):
                z_box[j] -= r_s.s_box[k, j]


@entry
def sample_products(rows, columns, Y, P, Q, X, S, B, out):
    """out[e] = sum over samples k of (Y_ki P_kj + Q_ki X_kj + S_ki B_kj), (i, j) the e-th entry.

    rows, columns (nnz) int64; Y, Q, S (batch, rows); P, X, B (batch, columns): not modified.
    """
    for e in range(len(out)):
        i = rows[e]
        j = columns[e]
        total = 0.0
        for k in range(len(X)):
            total += Y[k, i] * P[k, j] + Q[k, i] * X[k, j] + S[k, i] * B[k, j]
        out[e] = total
