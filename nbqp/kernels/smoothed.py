"""The smoothed phase: a proximal method of multipliers whose kink is rounded by a log barrier.

Each side of a row has a slack s > 0 and a multiplier z > 0 with s z -> 0, followed by Mehrotra's
predictor and corrector; the proximal centre is the current iterate (Schwan, Jiang, Kuhn, Jones,
*PIQP*, 2023). Eliminating slacks leaves the KKT matrix of the semismooth phase with other weights:

    W = 1 / (s_lo / z_lo + mu) + 1 / (s_hi / z_hi + mu),      w = 1 / W

so that pattern, ordering and kernels are shared. With the centre 0 instead, and mu kept, rows give way
by mu times their multiplier, and the limit is the penalty problem, which has a solution whether or not
the QP is feasible: `closest` starts there. The phase finds the neighbourhood of the solution in few
steps where the semismooth phase, started cold, would exchange the active set many times.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.barrier import (
    complementarity,
    net_multipliers,
    set_row_weights,
    set_targets,
    sides,
    step_barrier,
    step_lengths,
)
from nbqp.kernels.certificates import proves_dual_infeasible, proves_primal_infeasible
from nbqp.kernels.csc import add_transposed_product
from nbqp.kernels.dense import copy, largest
from nbqp.kernels.jit import kernel
from nbqp.kernels.kkt import factor_system, solve_blocks, solve_regularised
from nbqp.kernels.number import larger, maximum, minimum, opposite, where
from nbqp.kernels.residuals import (
    measure,
    set_aims,
    set_constraint_forces,
    update_products,
    worst_ratio,
)
from nbqp.kernels.semismooth import keep_best
from nbqp.kernels.status import (
    ABORTED,
    CONVERGED,
    DUAL_INFEASIBLE,
    NO_CERTIFICATE,
    OUT_OF_STEPS,
    PRIMAL_INFEASIBLE,
    STALLED,
)
from nbqp.kernels.subproblem import direction_products

# Residuals below which the phase hands over to the semismooth one, where the step for the sides that hold (`holding`)
# has not ended the solve: attempts from 1e-5 on were mostly in vain.
HAND_OVER = 1e-7
# rho and mu are lowered to the floor where their terms hold a residual up, which refinement can still
# make good, and raised to the ceiling where a direction failed.
REGULARISATION_FLOOR = 1e-14
REGULARISATION_CEILING = 1e-4
# The share of the way to the boundary that a step goes.
TO_BOUNDARY = 0.995
# The share of a residual, or of its tolerance, that may remain as an error of a direction, which the next
# one corrects.
ERROR_SHARE = 1e-2
# The `share` of `take_step`. WITHIN: residuals need not fall below their tolerances. NO_SHARE: rho and mu go as
# low as the residuals do; long-winded programs (LISWET10) end only so.
WITHIN = 1.0
NO_SHARE = 0.0
# A direction that leaves more of a residual has failed.
FAILED_SHARE = 0.5
# Rounding of the rows' values after a step, relative to its length.
STEP_ROUNDING = 1e-13
# Rows with a larger w = 1 / W have their right-hand side among the variables'.
LARGE_WEIGHT = 1.0
# Steps in which no residual improves on its lowest by a tenth before giving up; multipliers that are
# not unique, or many digits away, take long to come near. Once complementarity is well within the
# gap's tolerance, as this share of it says, what stays is rounding.
PATIENCE = 60
ROUNDED_PATIENCE = 10
COMPLEMENTARY = 0.01
# Multipliers or variables have to be this large before certificates are looked for.
LARGE = 1e3


@kernel
def _set_right_side(ws, elastic):
    """The system's right-hand side for the complementarity targets c_lo, c_hi of the barrier.

    With q the right-hand side of a side whose slack is eliminated, a row's net multiplier changes by

        dz = W_hi (q_hi + dv) - W_lo (q_lo - dv) = z0 + W dv,       z0 = W_hi q_hi - W_lo q_lo.

    A row with small w = 1 / W has -w z0 on the right; that of a row with large w would be huge beside
    all others, and z0, which is left in ws.work.trial, goes to the variables' side. So does a multiplier
    that a row without sides has to give up.
    """
    pattern = ws.pattern
    problem = ws.problem
    it = ws.it
    barrier = ws.barrier
    system = ws.system
    lo = problem.lo
    hi = problem.hi
    mu = ws.work.mu
    z0 = ws.work.trial
    mu_e = system.mu_e
    r1 = system.r1
    r2 = system.r2
    r3 = system.r3
    w = system.w
    dual = it.dual
    e = it.e
    v = it.v
    y = it.y
    z = it.z
    q_lo = barrier.q_lo
    q_hi = barrier.q_hi
    s_lo = barrier.s_lo
    W_lo = barrier.W_lo
    s_hi = barrier.s_hi
    W_hi = barrier.W_hi
    z_lo = barrier.z_lo
    z_hi = barrier.z_hi
    c_lo = barrier.c_lo
    c_hi = barrier.c_hi
    for i in range(pattern.n_eq):
        r2[i] = elastic * mu_e[i] * y[i] - e[i]
    for i in range(len(z0)):
        below, above = sides(lo[i], hi[i])
        give = elastic * mu[i]
        q = lo[i] - v[i] + s_lo[i] - give * z_lo[i] + c_lo[i] / z_lo[i]
        q_lo[i] = where(below, q, 0.0)
        q = v[i] - hi[i] + s_hi[i] - give * z_hi[i] + c_hi[i] / z_hi[i]
        q_hi[i] = where(above, q, 0.0)
        net = W_hi[i] * q_hi[i] - W_lo[i] * q_lo[i]
        large = w[i] > LARGE_WEIGHT
        equal = lo[i] == hi[i]
        given_up = where(below | above, 0.0, z[i])
        z0[i] = where(large & (lo[i] < hi[i]), net - given_up, 0.0)
        r3[i] = where(equal, hi[i] - v[i] + give * z[i], where(large, 0.0, -w[i] * net))
    copy(z0[pattern.n_in :], r1)
    add_transposed_product(pattern.Cp, pattern.Ci, problem.C, z0, r1)
    for j in range(pattern.n):
        r1[j] = -(dual[j] + r1[j])


@kernel
def _set_side_steps(ws):
    """The barrier's ds and dz that belong to the solution of the system.

    They follow from dz, never from dv: what rounding leaves of a row would be multiplied by W.
    """
    problem = ws.problem
    barrier = ws.barrier
    lo = problem.lo
    hi = problem.hi
    w = ws.system.w
    z0 = ws.work.trial
    dz = ws.system.dz
    q_lo = barrier.q_lo
    q_hi = barrier.q_hi
    dz_lo = barrier.dz_lo
    ds_lo = barrier.ds_lo
    dz_hi = barrier.dz_hi
    ds_hi = barrier.ds_hi
    s_lo = barrier.s_lo
    W_lo = barrier.W_lo
    s_hi = barrier.s_hi
    W_hi = barrier.W_hi
    z_lo = barrier.z_lo
    z_hi = barrier.z_hi
    c_lo = barrier.c_lo
    c_hi = barrier.c_hi
    for i in range(len(z0)):
        below, above = sides(lo[i], hi[i])
        step = z0[i] + dz[i]
        both = where(below & above, W_lo[i] * W_hi[i] * w[i] * (q_lo[i] + q_hi[i]), 0.0)
        dz_lo[i] = where(below, both - W_lo[i] * w[i] * step, 0.0)
        dz_hi[i] = where(above, both + W_hi[i] * w[i] * step, 0.0)
        ds_lo[i] = where(below, (c_lo[i] - s_lo[i] * dz_lo[i]) / z_lo[i], 0.0)
        ds_hi[i] = where(above, (c_hi[i] - s_hi[i] * dz_hi[i]) / z_hi[i], 0.0)


@kernel
def _has_failed(ws, dual_error, primal_error):
    """Whether a direction leaves more of a residual than it should and than rounding explains."""
    res = ws.work.res
    tol = ws.work.tol
    dx = ws.system.dx
    D = ws.problem.D
    length = 0.0
    for j in range(len(dx)):
        length = larger(length, abs(dx[j]) * D[j])
    dual = maximum(FAILED_SHARE * res[1], tol[1])
    primal = maximum(maximum(FAILED_SHARE * res[0], tol[0]), STEP_ROUNDING * length)
    return opposite((dual_error <= dual) & (primal_error <= primal))


@kernel
def _adapt_regularisation(ws, failed, share):
    """Raise rho and mu where the solve failed; lower them where they hold a residual up.

    share: of the tolerances, below which no residual needs to fall.
    """
    problem = ws.problem
    system = ws.system
    res = ws.work.res
    tol = ws.work.tol
    rho = system.rho
    unit_d = problem.unit_d
    unit_e = problem.unit_e
    unit = problem.unit
    dx = system.dx
    dy = system.dy
    dz = system.dz
    mu = ws.work.mu
    held = 0.0
    for j in range(len(dx)):
        held = maximum(held, abs(dx[j]) * unit_d[j])
    lower = where(
        rho[0] * held > 0.1 * maximum(res[1], share * tol[1]),
        maximum(0.1 * rho[0], REGULARISATION_FLOOR),
        rho[0],
    )
    raised = minimum(100.0 * rho[0], REGULARISATION_CEILING)
    rho[0] = where(failed, raised, lower)
    held = 0.0
    for i in range(len(dy)):
        held = maximum(held, abs(dy[i]) * unit_e[i])
    for i in range(len(dz)):
        held = maximum(held, abs(dz[i]) * unit[i])
    lower = where(
        mu[0] * held > 0.1 * maximum(res[0], share * tol[0]),
        maximum(0.1 * mu[0], REGULARISATION_FLOOR),
        mu[0],
    )
    raised = minimum(100.0 * mu[0], REGULARISATION_CEILING)
    mu[:] = where(failed, raised, lower)
    system.mu_e[:] = mu[0]


@kernel
def measure_point(ws, options, elastic):
    """Bring the products, residuals and tolerances of ws.it, as the barrier has it, up to date.

    Returns the sum of s z over all sides, and their number.
    """
    net_multipliers(ws.problem, ws.barrier, ws.it)
    update_products(ws.pattern, ws.problem, ws.it)
    if elastic > 0.0:
        _add_proximal_terms(ws)
    measure(ws.pattern, ws.problem, ws.it, ws.shift, ws.work.res)
    set_aims(ws.pattern, ws.problem, ws.it, options, ws.work.tol)
    return complementarity(ws.problem, ws.barrier, 0.0, 0.0)


@kernel
def take_step(ws, elastic, share, total, count):
    """One predictor-corrector step from a point that `measure_point` has measured.

    share: of the tolerances; to get residuals below it rho and mu are not lowered, which spares digits of
    the linear solves. total, count: from `measure_point`.
    """
    pattern = ws.pattern
    problem = ws.problem
    it = ws.it
    barrier = ws.barrier
    system = ws.system
    res = ws.work.res
    tol = ws.work.tol
    x = it.x
    y = it.y
    dx = system.dx
    dy = system.dy
    # One step length for both keeps a residual linear where it couples x to the multipliers: the
    # dual one by H, the primal one by elastic rows.
    separate = len(problem.H) == 0 and elastic == 0.0
    set_row_weights(problem, barrier, ws.work.mu, system.w)
    factor_system(pattern, ws.factor, ws.entries, problem.H, problem.A, problem.C, system)
    if system.abort[0] != 0:
        return
    set_targets(problem, barrier, 0.0, 0.0)
    _set_right_side(ws, elastic)
    # The predictor only says how far to aim, and is not refined.
    solve_regularised(pattern, ws.factor, system)
    _set_side_steps(ws)
    primal, dual = step_lengths(problem, barrier, separate)
    after, _ = complementarity(problem, barrier, primal, dual)
    ratio = after / total
    sigma = minimum(1.0, ratio * ratio * ratio)
    set_targets(problem, barrier, sigma * total / count, 1.0)
    _set_right_side(ws, elastic)
    dual_error, primal_error = solve_blocks(
        pattern,
        ws.factor,
        problem,
        system,
        ERROR_SHARE * maximum(res[1], tol[1]),
        ERROR_SHARE * maximum(res[0], tol[0]),
    )
    _set_side_steps(ws)
    primal, dual = step_lengths(problem, barrier, separate)
    primal = where(count > 0.0, minimum(1.0, TO_BOUNDARY * primal), 1.0)
    dual = where(count > 0.0, minimum(1.0, TO_BOUNDARY * dual), 1.0)
    # A direction that has failed is none at all, and perhaps NaN: the next one is better regularised.
    failed = _has_failed(ws, dual_error, primal_error)
    for j in range(len(x)):
        x[j] += where(failed, 0.0, primal * dx[j])
    for i in range(len(y)):
        y[i] += where(failed, 0.0, dual * dy[i])
    step_barrier(problem, barrier, it, system.dz, primal, dual, failed)
    if elastic == 0.0:
        _adapt_regularisation(ws, failed, share)


@kernel
def _detect_infeasible(ws, options):
    """Certificates in the multipliers themselves and in the last direction; see `semismooth`.

    The candidate is left in ws.step: y and z (primal) or x (dual).
    """
    pattern = ws.pattern
    problem = ws.problem
    it = ws.it
    step = ws.step
    if max(largest(it.y), largest(it.z)) > LARGE:
        copy(it.y, step.y)
        copy(it.z, step.z)
        set_constraint_forces(pattern, problem, step)
        if proves_primal_infeasible(
            pattern, problem, step.y, step.z, step.dual, options.eps_primal_inf, options.eps_abs
        ):
            return PRIMAL_INFEASIBLE
    if largest(it.x) > LARGE:
        copy(ws.system.dx, step.x)
        direction_products(pattern, problem, step)
        if proves_dual_infeasible(
            pattern, problem, step.x, step.Hx, step.e, step.v, options.eps_dual_inf
        ):
            return DUAL_INFEASIBLE
    return NO_CERTIFICATE


@kernel
def _add_proximal_terms(ws):
    """The proximal terms of an elastic problem, about 0.

    it.dual grows by rho x; ws.shift.e and ws.shift.s are set to mu times y and z.
    """
    rho = ws.system.rho[0]
    dual = ws.it.dual
    x = ws.it.x
    for j in range(len(x)):
        dual[j] += rho * x[j]
    mu_e = ws.system.mu_e
    mu = ws.work.mu
    y = ws.it.y
    z = ws.it.z
    s_e = ws.shift.e
    s = ws.shift.s
    for i in range(len(y)):
        s_e[i] = mu_e[i] * y[i]
    for i in range(len(z)):
        s[i] = mu[i] * z[i]


@kernel
def run_smoothed(ws, options, loose, elastic, share):
    """Predictor-corrector steps until the residuals are within `loose` times their tolerances.

    elastic: 0 to solve the QP, or 1 for the first subproblem of the proximal method of multipliers,
    about 0, with the rho and mu of ws.system and ws.work; ws.shift is then overwritten. share: as of
    `take_step`. ws.it and ws.barrier: the first point, overwritten as ws.step and ws.system are. ws.best,
    the best iterate so far, and ws.work.res are kept up to date, and rho and mu carry the regularisation
    over to a later call. Returns a code of `status`.
    """
    work = ws.work
    steps = ws.limits.steps
    max_steps = ws.limits.max_steps
    abort = ws.system.abort
    res = work.res
    tol = work.tol
    lowest = work.lowest
    idle = 0
    lowest[:] = np.inf
    while True:
        total, count = measure_point(ws, options, elastic)
        # The gap always counts here, since it tells how near complementarity is.
        keep_best(ws.it, ws.best, work, len(res))
        if res[0] <= loose * tol[0] and res[1] <= loose * tol[1] and res[2] <= loose * tol[2]:
            return CONVERGED
        if abort[0] != 0:
            return ABORTED
        if steps[0] >= max_steps[0]:
            return OUT_OF_STEPS
        verdict = _detect_infeasible(ws, options)
        if verdict == DUAL_INFEASIBLE or (verdict == PRIMAL_INFEASIBLE and elastic == 0.0):
            return verdict
        idle += 1
        for i in range(3):
            if res[i] < 0.9 * lowest[i]:
                lowest[i] = res[i]
                idle = 0
        complementary = total <= COMPLEMENTARY * loose * tol[2] * ws.problem.cost[0]
        patience = ROUNDED_PATIENCE if complementary else PATIENCE
        if idle > patience or not worst_ratio(res, tol, len(res)) < np.inf:
            return STALLED
        steps[0] += 1
        take_step(ws, elastic, share, total, count)
