"""The smoothed phase: a proximal method of multipliers whose kink is rounded by a log barrier.

Each side of a row has a slack s > 0 and a multiplier z > 0 with s z -> 0, followed by Mehrotra's
predictor and corrector; the proximal centre is the current iterate (Schwan, Jiang, Kuhn, Jones,
*PIQP*, 2023). Eliminating slacks leaves the KKT matrix of the semismooth phase with other weights:

    W = 1 / (s_lo / z_lo + mu) + 1 / (s_hi / z_hi + mu),      w = 1 / W

so that pattern, ordering and kernels are shared. It finds the neighbourhood of the solution in few
steps where the semismooth phase, started cold, would exchange the active set many times.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.certificates import proves_dual_infeasible, proves_primal_infeasible
from nbqp.kernels.csc import add_product
from nbqp.kernels.dense import copy, largest
from nbqp.kernels.jit import kernel
from nbqp.kernels.kkt import factor_system, solve_system
from nbqp.kernels.residuals import measure, set_tolerances, update_products
from nbqp.kernels.semismooth import direction_products, keep_best
from nbqp.kernels.status import (
    ABORTED,
    CONVERGED,
    DUAL_INFEASIBLE,
    OUT_OF_STEPS,
    PRIMAL_INFEASIBLE,
    STALLED,
)

RHO_START = 1e-8
MU_START = 1e-9
REGULARISATION_FLOOR = 1e-12
REGULARISATION_CEILING = 1e-4
TO_BOUNDARY = 0.99
SOLVE_TOLERANCE = 1e-11
FAILED_SOLVE = 1e-4
PATIENCE = 15
# Multipliers or variables have to be this large before certificates are looked for.
LARGE = 1e3


@kernel
def _net_multipliers(problem, barrier, it):
    for i in range(len(it.z)):
        if problem.lo[i] < problem.hi[i]:
            it.z[i] = barrier.z_hi[i] - barrier.z_lo[i]


@kernel
def _set_row_weights(problem, barrier, mu, w):
    """W of each side and w of each row; rows with lo = hi have w = mu, free ones w = inf."""
    for i in range(len(w)):
        lo = problem.lo[i]
        hi = problem.hi[i]
        if lo == hi:
            w[i] = mu
            continue
        barrier.W_lo[i] = 1.0 / (barrier.s_lo[i] / barrier.z_lo[i] + mu) if lo > -np.inf else 0.0
        barrier.W_hi[i] = 1.0 / (barrier.s_hi[i] / barrier.z_hi[i] + mu) if hi < np.inf else 0.0
        W = barrier.W_lo[i] + barrier.W_hi[i]
        w[i] = 1.0 / W if W > 0.0 else np.inf


@kernel
def _newton_step(pattern, factor, problem, it, barrier, system, dv):
    """Newton step for the complementarity targets c_lo, c_hi of the barrier.

    Sets system.dx, dy, dz, the barrier's ds and dz, and dv = M dx. Returns the solve's error.
    """
    m = len(dv)
    for j in range(pattern.n):
        system.r1[j] = -it.dual[j]
    for i in range(pattern.n_eq):
        system.r2[i] = -it.e[i]
    for i in range(m):
        lo = problem.lo[i]
        hi = problem.hi[i]
        system.r3[i] = 0.0
        if lo == hi:
            system.r3[i] = hi - it.v[i]
            continue
        total = 0.0
        if lo > -np.inf:
            r = lo - it.v[i] + barrier.s_lo[i]
            barrier.q_lo[i] = r + barrier.c_lo[i] / barrier.z_lo[i]
            total -= barrier.W_lo[i] * barrier.q_lo[i]
        if hi < np.inf:
            r = it.v[i] - hi + barrier.s_hi[i]
            barrier.q_hi[i] = r + barrier.c_hi[i] / barrier.z_hi[i]
            total += barrier.W_hi[i] * barrier.q_hi[i]
        if total != 0.0:
            system.r3[i] = -system.w[i] * total
    error = solve_system(pattern, factor, problem.H, problem.A, problem.C, system, SOLVE_TOLERANCE)
    for i in range(pattern.n_in):
        dv[i] = 0.0
    add_product(pattern.Cp, pattern.Ci, problem.C, system.dx, dv)
    copy(system.dx, dv[pattern.n_in :])
    for i in range(m):
        lo = problem.lo[i]
        hi = problem.hi[i]
        if lo == hi:
            continue
        if lo > -np.inf:
            barrier.dz_lo[i] = barrier.W_lo[i] * (barrier.q_lo[i] - dv[i])
            barrier.ds_lo[i] = (
                barrier.c_lo[i] - barrier.s_lo[i] * barrier.dz_lo[i]
            ) / barrier.z_lo[i]
        if hi < np.inf:
            barrier.dz_hi[i] = barrier.W_hi[i] * (barrier.q_hi[i] + dv[i])
            barrier.ds_hi[i] = (
                barrier.c_hi[i] - barrier.s_hi[i] * barrier.dz_hi[i]
            ) / barrier.z_hi[i]
    return error


@kernel
def _step_lengths(problem, barrier, separate):
    """Primal and dual step to the boundary, at most 1; equal unless `separate`."""
    primal = 1.0
    dual = 1.0
    for i in range(len(problem.lo)):
        lo = problem.lo[i]
        hi = problem.hi[i]
        if lo == hi:
            continue
        if lo > -np.inf:
            if barrier.ds_lo[i] < 0.0:
                primal = min(primal, -barrier.s_lo[i] / barrier.ds_lo[i])
            if barrier.dz_lo[i] < 0.0:
                dual = min(dual, -barrier.z_lo[i] / barrier.dz_lo[i])
        if hi < np.inf:
            if barrier.ds_hi[i] < 0.0:
                primal = min(primal, -barrier.s_hi[i] / barrier.ds_hi[i])
            if barrier.dz_hi[i] < 0.0:
                dual = min(dual, -barrier.z_hi[i] / barrier.dz_hi[i])
    if not separate:
        primal = min(primal, dual)
        dual = primal
    return primal, dual


@kernel
def _complementarity(problem, barrier, primal, dual):
    """Sum of s z over all sides after steps of the given lengths, and how many sides there are."""
    total = 0.0
    sides = 0
    for i in range(len(problem.lo)):
        lo = problem.lo[i]
        hi = problem.hi[i]
        if lo == hi:
            continue
        if lo > -np.inf:
            total += (barrier.s_lo[i] + primal * barrier.ds_lo[i]) * (
                barrier.z_lo[i] + dual * barrier.dz_lo[i]
            )
            sides += 1
        if hi < np.inf:
            total += (barrier.s_hi[i] + primal * barrier.ds_hi[i]) * (
                barrier.z_hi[i] + dual * barrier.dz_hi[i]
            )
            sides += 1
    return total, sides


@kernel
def _set_targets(problem, barrier, sigma_mu, second_order):
    """C = sigma mu - s z - ds dz (the last term in the corrector only) on every side."""
    for i in range(len(problem.lo)):
        barrier.c_lo[i] = sigma_mu - barrier.s_lo[i] * barrier.z_lo[i]
        barrier.c_hi[i] = sigma_mu - barrier.s_hi[i] * barrier.z_hi[i]
        if second_order:
            barrier.c_lo[i] -= barrier.ds_lo[i] * barrier.dz_lo[i]
            barrier.c_hi[i] -= barrier.ds_hi[i] * barrier.dz_hi[i]


@kernel
def _start(pattern, factor, entries, problem, it, barrier, system):
    """Mehrotra's starting point: least squares on the rows, then shifted into the interior."""
    m = len(problem.lo)
    for i in range(m):
        free = problem.lo[i] == -np.inf and problem.hi[i] == np.inf
        system.w[i] = np.inf if free else 1.0
        if problem.lo[i] == problem.hi[i]:
            system.w[i] = system.mu_e[0] if pattern.n_eq > 0 else MU_START
    factor_system(pattern, factor, entries, problem.H, problem.A, problem.C, system)
    for j in range(pattern.n):
        system.r1[j] = -problem.g[j]
    for i in range(pattern.n_eq):
        system.r2[i] = problem.b[i]
    for i in range(m):
        # The point of the row's interval next to 0.
        system.r3[i] = min(max(0.0, problem.lo[i]), problem.hi[i])
    solve_system(pattern, factor, problem.H, problem.A, problem.C, system, SOLVE_TOLERANCE)
    copy(system.dx, it.x)
    copy(system.dy, it.y)
    copy(system.dz, it.z)
    update_products(pattern, problem, it)
    low_s = np.inf
    low_z = np.inf
    for i in range(m):
        lo = problem.lo[i]
        hi = problem.hi[i]
        z = it.z[i]
        if lo == hi:
            continue
        if lo > -np.inf:
            barrier.s_lo[i] = it.v[i] - lo
            barrier.z_lo[i] = -z if hi == np.inf else max(-z, 0.0)
            low_s = min(low_s, barrier.s_lo[i])
            low_z = min(low_z, barrier.z_lo[i])
        if hi < np.inf:
            barrier.s_hi[i] = hi - it.v[i]
            barrier.z_hi[i] = z if lo == -np.inf else max(z, 0.0)
            low_s = min(low_s, barrier.s_hi[i])
            low_z = min(low_z, barrier.z_hi[i])
    shift_s = max(-1.5 * low_s, 0.0)
    shift_z = max(-1.5 * low_z, 0.0)
    sum_s = 0.0
    sum_z = 0.0
    sum_sz = 0.0
    for i in range(m):
        if problem.lo[i] == problem.hi[i]:
            continue
        if problem.lo[i] > -np.inf:
            barrier.s_lo[i] += shift_s
            barrier.z_lo[i] += shift_z
            sum_s += barrier.s_lo[i]
            sum_z += barrier.z_lo[i]
            sum_sz += barrier.s_lo[i] * barrier.z_lo[i]
        if problem.hi[i] < np.inf:
            barrier.s_hi[i] += shift_s
            barrier.z_hi[i] += shift_z
            sum_s += barrier.s_hi[i]
            sum_z += barrier.z_hi[i]
            sum_sz += barrier.s_hi[i] * barrier.z_hi[i]
    shift_s = 0.5 * sum_sz / sum_z if sum_z > 0.0 else 0.0
    shift_z = 0.5 * sum_sz / sum_s if sum_s > 0.0 else 0.0
    # Where the least-squares point meets every side or has no multiplier at all.
    shift_s = max(shift_s, 1e-2)
    shift_z = max(shift_z, 1e-2)
    for i in range(m):
        # An infinite side has no multiplier: its slack is never read, its z stays 0.
        barrier.s_lo[i] += shift_s
        barrier.s_hi[i] += shift_s
        barrier.z_lo[i] = barrier.z_lo[i] + shift_z if problem.lo[i] > -np.inf else 0.0
        barrier.z_hi[i] = barrier.z_hi[i] + shift_z if problem.hi[i] < np.inf else 0.0


@kernel
def _adapt_regularisation(pattern, problem, it, system, work, mu, error):
    """Raise rho and mu where the solve failed; lower them where they hold a residual up.

    error: of the last solve. Returns the new mu, and stores rho and mu_e.
    """
    if error > FAILED_SOLVE:
        mu = min(100.0 * mu, REGULARISATION_CEILING)
        system.rho[0] = min(100.0 * system.rho[0], REGULARISATION_CEILING)
    else:
        held = 0.0
        for j in range(pattern.n):
            held = max(held, abs(system.dx[j]) * problem.unit_d[j])
        if system.rho[0] * held > 0.1 * work.res[1]:
            system.rho[0] = max(0.1 * system.rho[0], REGULARISATION_FLOOR)
        held = 0.0
        for i in range(pattern.n_eq):
            held = max(held, abs(system.dy[i]) * problem.unit_e[i])
        for i in range(len(system.dz)):
            held = max(held, abs(system.dz[i]) * problem.unit[i])
        if mu * held > 0.1 * work.res[0]:
            mu = max(0.1 * mu, REGULARISATION_FLOOR)
    system.mu_e[:] = mu
    return mu


@kernel
def _detect_infeasible(pattern, problem, it, step, system, options):
    """Certificates in the multipliers themselves and in the last direction; see `semismooth`.

    The candidate is left in step.y, step.z (primal) or step.x (dual).
    """
    if max(largest(it.y), largest(it.z)) > LARGE:
        copy(it.y, step.y)
        copy(it.z, step.z)
        for j in range(pattern.n):
            step.dual[j] = it.dual[j] - it.Hx[j] - problem.g[j]
        if proves_primal_infeasible(
            pattern, problem, step.y, step.z, step.dual, options.eps_primal_inf, options.eps_abs
        ):
            return PRIMAL_INFEASIBLE
    if largest(it.x) > LARGE:
        copy(system.dx, step.x)
        direction_products(pattern, problem, step)
        if proves_dual_infeasible(
            pattern, problem, step.x, step.Hx, step.e, step.v, options.eps_dual_inf
        ):
            return DUAL_INFEASIBLE
    return CONVERGED


@kernel
def start_smoothed(pattern, factor, entries, problem, it, barrier, system):
    """Set the regularisation and the starting point of the phase."""
    system.rho[0] = RHO_START
    system.mu_e[:] = MU_START
    _start(pattern, factor, entries, problem, it, barrier, system)


@kernel
def run_smoothed(
    pattern,
    factor,
    entries,
    problem,
    it,
    best,
    step,
    barrier,
    system,
    work,
    options,
    limits,
    factor_tol,
):
    """Predictor-corrector steps until the residuals are within factor_tol times their tolerances.

    it, best, barrier, work: overwritten.
    system.rho and system.mu_e carry the regularisation over to a later call. Returns a code of
    `status`.
    """
    mu = system.mu_e[0] if pattern.n_eq > 0 else MU_START
    # One step length for both keeps the dual residual linear where H couples it to x.
    separate = len(problem.H) == 0
    dv = step.v
    idle = 0
    lowest = np.inf
    while True:
        _net_multipliers(problem, barrier, it)
        update_products(pattern, problem, it)
        measure(pattern, problem, it, work.res)
        set_tolerances(pattern, problem, it, options.eps_abs, options.eps_rel, work.tol)
        keep_best(it, best, work)
        if (
            work.res[0] <= factor_tol * work.tol[0]
            and work.res[1] <= factor_tol * work.tol[1]
            and work.res[2] <= factor_tol * work.tol[2]
        ):
            return CONVERGED
        if limits.abort[0] != 0:
            return ABORTED
        if limits.steps[0] >= limits.max_steps[0]:
            return OUT_OF_STEPS
        verdict = _detect_infeasible(pattern, problem, it, step, system, options)
        if verdict != CONVERGED:
            return verdict
        total, sides = _complementarity(problem, barrier, 0.0, 0.0)
        score = work.res[0] / work.tol[0] + work.res[1] / work.tol[1] + work.res[2] / work.tol[2]
        if score < 0.9 * lowest:
            lowest = score
            idle = 0
        else:
            idle += 1
        if idle > PATIENCE or not score < np.inf:
            return STALLED

        _set_row_weights(problem, barrier, mu, system.w)
        factor_system(pattern, factor, entries, problem.H, problem.A, problem.C, system)
        limits.steps[0] += 1
        primal = 1.0
        dual = 1.0
        if sides > 0:
            _set_targets(problem, barrier, 0.0, False)
            error = _newton_step(pattern, factor, problem, it, barrier, system, dv)
            primal, dual = _step_lengths(problem, barrier, separate)
            after, _ = _complementarity(problem, barrier, primal, dual)
            ratio = after / total
            sigma = min(1.0, ratio * ratio * ratio)
            _set_targets(problem, barrier, sigma * total / sides, True)
            error = _newton_step(pattern, factor, problem, it, barrier, system, dv)
            primal, dual = _step_lengths(problem, barrier, separate)
            primal = min(1.0, TO_BOUNDARY * primal)
            dual = min(1.0, TO_BOUNDARY * dual)
        else:
            error = _newton_step(pattern, factor, problem, it, barrier, system, dv)

        for j in range(pattern.n):
            it.x[j] += primal * system.dx[j]
        for i in range(pattern.n_eq):
            it.y[i] += dual * system.dy[i]
        for i in range(len(dv)):
            if problem.lo[i] == problem.hi[i]:
                it.z[i] += dual * system.dz[i]
                continue
            if problem.lo[i] > -np.inf:
                barrier.s_lo[i] += primal * barrier.ds_lo[i]
                barrier.z_lo[i] += dual * barrier.dz_lo[i]
            if problem.hi[i] < np.inf:
                barrier.s_hi[i] += primal * barrier.ds_hi[i]
                barrier.z_hi[i] += dual * barrier.dz_hi[i]

        mu = _adapt_regularisation(pattern, problem, it, system, work, mu, error)
