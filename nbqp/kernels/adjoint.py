"""The linear system of the derivatives: a solve with the KKT matrix of the rows that hold (`active`).

With J the active rows of M = (C; I), A's rows always active,

    [ H    A'   M_J' ] [ x   ]   [ r_x ]
    [ A              ] [ y   ] = [ r_y ]            z = 0 on the other rows
    [ M_J            ] [ z_J ]   [ r_J ]

gives the adjoint (r = -dL) as well as the directional derivative (r = -dG), since K is symmetric.
The factor is that of K with rho and -mu on its diagonal, the refinement is against K itself. A
variable whose bound is active is decoupled by its diagonal, and so are inactive rows.

Let V be the equalities, the rows whose sides coincide, and those with a shift. Where some shift is not
0, or rows of V depend on each other, the solution w_V is unique up to the null space of M_V'. With the
least-norm least-squares solution b4 of M_V b4 = w_V the adjoint has b2_V = M_V b4 + dL/ds_V (Bambade et
al. 2024, system (2)).
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.active import is_active, may_shift
from nbqp.kernels.csc import add_product, add_transposed_product
from nbqp.kernels.dense import copy, largest
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.kkt import (
    DECOUPLED,
    factor_system,
    refine_unregularised,
    solve_regularised,
)
from nbqp.kernels.number import maximum, where
from nbqp.kernels.scaling import (
    copy_scaling,
    scale_cost,
    scale_hessian,
    scale_rows,
    set_units,
    unscale_point,
)
from nbqp.kernels.state import new_iterate, new_problem, new_system
from nbqp.kernels.structure import (
    EntriesReference,
    FactorReference,
    PatternReference,
    sample,
    sample_data,
    shares_matrices,
)

# What a solve ended with, that it is not to be done, that it is still to be done, and that of its
# multipliers the projection is.
REGULAR = 0
SINGULAR = 1
SKIPPED = 2
OPEN = 3
UNPROJECTED = 4

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
def set_active_weights(side, side_box, w):
    """Fill w (n_in + n): active rows are equations, active bounds fix their variables."""
    n_in = len(side)
    for i in range(n_in):
        w[i] = REGULARISATION if is_active(side[i]) else np.inf
    for j in range(len(side_box)):
        w[n_in + j] = 1.0 / DECOUPLED if is_active(side_box[j]) else np.inf


@kernel
def factor_kkt(pattern, factor, entries, problem, system):
    """Factorise the KKT matrix of the rows that system.w holds, with REGULARISATION on its diagonal.

    rho, mu_e and the factor of the system are overwritten. Returns how many pivots had the wrong sign.
    """
    system.rho[0] = REGULARISATION
    system.mu_e[:] = REGULARISATION
    return factor_system(pattern, factor, entries, problem.H, problem.A, problem.C, system)


@kernel
def find_null_vector(pattern, factor, system):
    """Which vectors keep their size: null vectors of K, beside its regularisation R.

    Two steps d <- (K + R)^-1 R d from a fixed vector: d keeps its size where K d = 0, and shrinks
    by R over the smallest singular value elsewhere. Returns the size before and after the second one;
    the system's right-hand side is overwritten, and its solution is the vector.
    """
    n = pattern.n
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    w = system.w
    dx = system.dx
    dy = system.dy
    dz = system.dz
    r1 = system.r1
    r2 = system.r2
    r3 = system.r3
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
    previous = 1.0
    for _ in range(2):
        for j in range(n):
            fixed = w[n_in + j] < DECOUPLED
            r1[j] = where(fixed, 0.0, REGULARISATION * dx[j])
            r3[n_in + j] = 0.0
        for i in range(n_eq):
            r2[i] = -REGULARISATION * dy[i]
        for i in range(n_in):
            r3[i] = where(w[i] < DECOUPLED, -REGULARISATION * dz[i], 0.0)
        solve_regularised(pattern, factor, system)
        previous = size
        size = largest(dy)
        for i in range(n_in):
            size = maximum(size, where(w[i] < DECOUPLED, abs(dz[i]), 0.0))
        for j in range(n):
            size = maximum(size, where(w[n_in + j] < DECOUPLED, 0.0, abs(dx[j])))
    return previous, size


@kernel
def _null_space_kind(pattern, factor, problem, side, side_box, system):
    """Which null vectors K has; the system's right-hand side, solution and e1 are overwritten."""
    n = pattern.n
    n_in = pattern.n_in
    w = system.w
    dx = system.dx
    dz = system.dz
    e1 = system.e1
    previous, size = find_null_vector(pattern, factor, system)
    if not size > KEPT * previous:
        return NO_NULL
    elsewhere = 0.0
    for i in range(n_in):
        if w[i] < DECOUPLED and not may_shift(side[i]):
            elsewhere = max(elsewhere, abs(dz[i]))
    # Multipliers of active bounds follow from the rows of H, A and C.
    e1[:] = 0.0
    add_transposed_product(pattern.Hp, pattern.Hi, problem.H, dx, e1)
    add_transposed_product(pattern.Ap, pattern.Ai, problem.A, system.dy, e1)
    add_transposed_product(pattern.Cp, pattern.Ci, problem.C, dz, e1)
    for j in range(n):
        if not w[n_in + j] < DECOUPLED:
            elsewhere = max(elsewhere, abs(dx[j]))
        elif not may_shift(side_box[j]):
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
        if settled or system.abort[0] != 0:
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


@kernel
def any_open(code):
    """Whether some right-hand side of a sample is still to be solved for."""
    for i in range(len(code)):
        if code[i] == OPEN:
            return True
    return False


@kernel
def scale_for_adjoint(pattern, scaling, k, qp, abort, problem):
    """Fill the matrices, scales and units of `problem`: those of the QP with g = 0."""
    copy_scaling(pattern, scaling, k, qp, abort, problem)
    problem.g[:] = 0.0
    c = scale_cost(pattern, qp.H, problem.g, problem.D)
    scale_hessian(pattern, qp.H, c, problem)
    scale_rows(pattern, qp.A, qp.C, problem)
    set_units(pattern, problem)


@kernel
def set_right_side(pattern, problem, A, C, side, side_box, r, r_s, k, r1, r2, r3):
    """Fill the scaled right-hand side r1 (n), r2 (n_eq), r3 (n_in + n) from row k of r and r_s.

    A, C: values of its sample in the user's units; problem: the scaled one.
    """
    n_in = pattern.n_in
    c = problem.cost[0]
    D = problem.D
    E = problem.E
    F = problem.F
    for j in range(pattern.n):
        r1[j] = r.x[k, j]
        if may_shift(side_box[j]):
            r1[j] += r_s.s_box[k, j]
        r3[n_in + j] = r.z_box[k, j] / D[j] if is_active(side_box[j]) else 0.0
    for i in range(n_in):
        r3[i] = r_s.s_i[k, i] if may_shift(side[i]) else 0.0
    if largest(r_s.s_e[k]) > 0.0:
        add_transposed_product(pattern.Ap, pattern.Ai, A, r_s.s_e[k], r1)
    if largest(r_s.s_i[k]) > 0.0:
        add_transposed_product(pattern.Cp, pattern.Ci, C, r3, r1)
    for j in range(pattern.n):
        r1[j] *= c * D[j]
    for i in range(pattern.n_eq):
        r2[i] = E[i] * r.y[k, i]
    for i in range(n_in):
        r3[i] = F[i] * r.z[k, i] if is_active(side[i]) else 0.0


@kernel
def write_solution(pattern, problem, side_box, r3, point, solution, k):
    """Write the solution of a system, `point` in scaled units, as row k; variables on bounds are r3."""
    n_in = pattern.n_in
    for j in range(pattern.n):
        if is_active(side_box[j]):
            point.x[j] = r3[n_in + j]
    y = solution.y[k]
    z = solution.z[k]
    unscale_point(pattern, problem, point, solution.x[k], y, z, solution.z_box[k])


@kernel
def add_shift_gradients(side, side_box, r_s, solution, k):
    """Add dL/ds = -r_s to the multipliers of V, in row k."""
    y = solution.y[k]
    z = solution.z[k]
    z_box = solution.z_box[k]
    for i in range(len(y)):
        y[i] -= r_s.s_e[k, i]
    for i in range(len(z)):
        if may_shift(side[i]):
            z[i] -= r_s.s_i[k, i]
    for j in range(len(z_box)):
        if may_shift(side_box[j]):
            z_box[j] -= r_s.s_box[k, j]


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
    abort,
    begin,
    end,
    solution,
    b4,
    code,
):
    """Solve the systems of the samples begin..end-1 for the right-hand sides whose code is OPEN.

    data: `Data`, of which H, A, C are read. scaling: `Scaling`, (0, .) to find one for each
    sample. side (batch, n_in), side_box (batch, n): from `active_sides`. r: `Point` of right-hand
    sides (batch * count, .), those of a sample after one another, whose inactive rows do not count; r_s:
    `Shifts`, -dL/ds, of which V counts. closest (batch), bool: whether some shift is not 0. adjoint:
    whether the adjoint is asked for; otherwise samples with null vectors are left to the caller. abort (1):
    stop when not 0; what is overwritten then means nothing. All these are not modified.

    Rows of solution, a `Point` with b2 for its multipliers, of b4 (batch * count, n) and entries of code
    (batch, count), where that is OPEN, are overwritten: REGULAR, or SINGULAR where the answer is not
    unique or none exists. A sample's matrix is factorised once for all its right-hand sides.
    """
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    problem = new_problem(0.0, pattern)
    system = new_system(0.0, pattern, factor, abort)
    point = new_iterate(0.0, pattern)
    rows = new_iterate(0.0, pattern)
    no_H = np.zeros(len(pattern.Hi))
    scaled = False
    count = code.shape[1]
    for k in range(begin, end):
        if not any_open(code[k]):
            continue
        if abort[0] != 0:
            return
        A = sample(data.A, k)
        C = sample(data.C, k)
        usable = adjoint or not closest[k]
        null = NO_NULL
        if usable:
            if not (scaled and shares_matrices(scaling)):
                scale_for_adjoint(pattern, scaling, k, sample_data(data, k), abort, problem)
                scaled = True
            set_active_weights(side[k], side_box[k], system.w)
            usable = factor_kkt(pattern, factor, entries, problem, system) == 0
        if usable:
            null = _null_space_kind(pattern, factor, problem, side[k], side_box[k], system)
            usable = null == NO_NULL or (null == NULL_IN_V and adjoint)
        projects = closest[k] or null == NULL_IN_V
        for i in range(count):
            if code[k, i] != OPEN:
                continue
            if abort[0] != 0:
                return
            code[k, i] = SINGULAR
            if not usable:
                continue
            row = k * count + i
            set_right_side(
                pattern,
                problem,
                A,
                C,
                side[k],
                side_box[k],
                r,
                r_s,
                row,
                system.r1,
                system.r2,
                system.r3,
            )
            error = refine_unregularised(
                pattern, factor, problem.H, problem.A, problem.C, system, REFINED, REFINEMENTS
            )
            if not error <= ACCEPTED:
                continue
            code[k, i] = UNPROJECTED if projects else REGULAR
            copy(system.dx, point.x)
            copy(system.dy, point.y)
            copy(system.dz, point.z)
            write_solution(pattern, problem, side_box[k], system.r3, point, solution, row)
            if not projects:
                add_shift_gradients(side[k], side_box[k], r_s, solution, row)
        # Only now: the projection factorises another matrix in the same place.
        for i in range(count):
            if code[k, i] != UNPROJECTED:
                continue
            if abort[0] != 0:
                return
            row = k * count + i
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
                solution.y[row],
                solution.z[row],
                solution.z_box[row],
                b4[row],
            )
            code[k, i] = REGULAR if settled else SINGULAR
            add_shift_gradients(side[k], side_box[k], r_s, solution, row)


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
