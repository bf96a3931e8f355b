"""PROX-QP: the proximal method of multipliers, its penalties, and when it ends.

Outer step k (Bambade et al. 2022, algorithm 1), about the centre (x_k, y_k, z_k):

    x_{k+1} = argmin_x  1/2 x'Hx + g'x + rho/2 |x - x_k|^2
                        + |Ax - b + mu_e y_k|^2 / (2 mu_e) + dist^2(Mx + mu z_k, [lo, hi]) / (2 mu)
    y_{k+1} = y_k + (A x_{k+1} - b) / mu_e
    z_{k+1} = (p - clip(p, lo, hi)) / mu,      p = M x_{k+1} + mu z_k

The minimisation is that of `subproblem`.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.certificates import proves_dual_infeasible, proves_primal_infeasible
from nbqp.kernels.jit import kernel
from nbqp.kernels.kkt import outdate_factor
from nbqp.kernels.residuals import (
    measure,
    set_aims,
    set_constraint_forces,
    update_products,
    within,
    worst_ratio,
)
from nbqp.kernels.state import copy_point
from nbqp.kernels.status import (
    ABORTED,
    CONVERGED,
    DUAL_INFEASIBLE,
    NO_CERTIFICATE,
    OUT_OF_STEPS,
    PRIMAL_INFEASIBLE,
    STALLED,
)
from nbqp.kernels.subproblem import direction_products, minimise, set_active

# Below these the linear systems lose more digits than a smaller penalty gains, ...
MU_FLOOR = 1e-9
RHO_LOW = 1e-9
# ... unless rho holds x: a variable that its cost alone moves goes g / rho in an outer step, and its bound may
# be far. The dual residual is then this share at least of the proximal term.
RHO_FLOOR = 1e-14
HELD = 0.5
# A residual has to fall by this factor in an outer step, or its penalty is raised.
SUFFICIENT_DECREASE = 0.25
# Outer steps in which the worst residual makes no progress by this factor, all penalties at their floors,
# before giving up.
PROGRESS = 0.9
PATIENCE = 12


@kernel
def _violation(problem, it, i):
    """How far row i is from its side, or from its interval where it has no multiplier."""
    z = it.z
    hi = problem.hi
    lo = problem.lo
    v = it.v[i]
    if z[i] > 0.0:
        return abs(v - hi[i])
    if z[i] < 0.0:
        return abs(v - lo[i])
    return max(max(v - hi[i], lo[i] - v), 0.0)


@kernel
def _lower_mu(pattern, problem, it, system, work, eps):
    """Lower mu on the rows whose violation matters and did not fall; returns whether a mu changed.

    eps: the smallest tolerance. work.violation is overwritten.
    """
    z = it.z
    violation = work.violation
    mu_e = system.mu_e
    work_mu = work.mu
    unit_e = problem.unit_e
    unit = problem.unit
    e = it.e
    cost = problem.cost
    y = it.y
    n_eq = pattern.n_eq
    worst = 0.0
    for i in range(n_eq):
        worst = max(worst, abs(e[i]) * unit_e[i])
    for i in range(len(z)):
        worst = max(worst, _violation(problem, it, i) * unit[i])
    changed = False
    for i in range(n_eq + len(z)):
        if i < n_eq:
            r = abs(e[i]) * unit_e[i]
            matters = max(r, abs(y[i] * e[i]) / cost[0])
            mu = mu_e[i]
        else:
            v = _violation(problem, it, i - n_eq)
            r = v * unit[i - n_eq]
            matters = max(r, abs(z[i - n_eq] * v) / cost[0])
            mu = work_mu[i - n_eq]
        slow = r > SUFFICIENT_DECREASE * violation[i]
        violation[i] = r
        if slow and matters > 0.01 * eps:
            lower = max(mu / min(10.0, max(1.0, 100.0 * r / worst)), MU_FLOOR)
            changed = changed or lower < mu
            if i < n_eq:
                mu_e[i] = lower
            else:
                work_mu[i - n_eq] = lower
    return changed


@kernel
def _is_held(problem, it, centre, rho, dual_residual):
    """Whether rho (x - centre) is what is left of the dual residual."""
    x = it.x
    centre_x = centre.x
    unit_d = problem.unit_d
    pull = 0.0
    for j in range(len(x)):
        pull = max(pull, abs(x[j] - centre_x[j]) * unit_d[j])
    return rho * pull > HELD * dual_residual


@kernel
def detect_dual_infeasible(ws, options):
    """Whether x has moved along a certificate since the centre; it is left in ws.step.x."""
    problem = ws.problem
    step = ws.step
    x = ws.it.x
    centre_x = ws.centre.x
    step_x = step.x
    for j in range(len(x)):
        step_x[j] = x[j] - centre_x[j]
    direction_products(ws.pattern, problem, step)
    return proves_dual_infeasible(
        ws.pattern, problem, step_x, step.Hx, step.e, step.v, options.eps_dual_inf
    )


@kernel
def _detect_infeasible(ws, options):
    """Certificates in the differences of multipliers and of x since the centre.

    The candidate is left in ws.step: y and z (primal) or x (dual). Returns a code of `status`.
    """
    pattern = ws.pattern
    problem = ws.problem
    y = ws.it.y
    z = ws.it.z
    centre_y = ws.centre.y
    centre_z = ws.centre.z
    step_y = ws.step.y
    step_z = ws.step.z
    for i in range(len(y)):
        step_y[i] = y[i] - centre_y[i]
    for i in range(len(z)):
        step_z[i] = z[i] - centre_z[i]
    set_constraint_forces(pattern, problem, ws.step)
    if proves_primal_infeasible(
        pattern, problem, step_y, step_z, ws.step.dual, options.eps_primal_inf, options.eps_abs
    ):
        return PRIMAL_INFEASIBLE
    if detect_dual_infeasible(ws, options):
        return DUAL_INFEASIBLE
    return NO_CERTIFICATE


@kernel
def run_semismooth(ws, options, mu, rho):
    """Outer steps from ws.it until its residuals are within tolerance, or make no progress (STALLED).

    mu, rho: the first penalties. ws.best, the best iterate so far, and ws.work.res are kept up to
    date; ws.centre, ws.step, ws.system and ws.work are overwritten. Returns a code of `status`.
    """
    pattern = ws.pattern
    problem = ws.problem
    it = ws.it
    centre = ws.centre
    system = ws.system
    work = ws.work
    steps = ws.limits.steps
    max_steps = ws.limits.max_steps
    outer = ws.limits.outer
    abort = ws.system.abort
    system_rho = system.rho
    tol = work.tol
    res = work.res
    system.mu_e[:] = mu
    work.mu[:] = mu
    system_rho[0] = rho
    work.violation[:] = np.inf
    outdate_factor(system)
    idle = 0
    lowest = np.inf
    previous_dual = np.inf
    counted = 3 if options.check_duality_gap else 2
    update_products(pattern, problem, it)
    measure(pattern, problem, it, ws.shift, res)
    inner_tolerance = max(min(1.0, 0.1 * res[1]), 0.1 * tol[1])
    if steps[0] >= max_steps[0] or outer[0] >= options.max_iter:
        keep_best(it, ws.best, work, counted)
        return OUT_OF_STEPS
    while True:
        copy_point(it, centre)
        set_active(problem, it.v, centre.z, work.mu, work.active)
        solved = minimise(ws, problem, it, centre, inner_tolerance)
        outer[0] += 1
        update_products(pattern, problem, it)
        measure(pattern, problem, it, ws.shift, res)
        set_aims(pattern, problem, it, options, tol)
        keep_best(it, ws.best, work, counted)
        score = worst_ratio(res, tol, counted)
        if score < PROGRESS * lowest:
            lowest = score
            idle = 0
        else:
            idle += 1
        if within(res, tol, options):
            return CONVERGED
        if abort[0] != 0:
            return ABORTED
        if steps[0] >= max_steps[0] or outer[0] >= options.max_iter:
            return OUT_OF_STEPS
        verdict = _detect_infeasible(ws, options)
        if verdict != NO_CERTIFICATE:
            return verdict
        eps = min(tol[0], tol[2])
        stale = _lower_mu(pattern, problem, it, system, work, eps)
        # A dual residual within its tolerance still keeps the gap up where x is far from 0.
        matters = res[1] > tol[1] or abs(res[2]) > tol[2]
        if matters and res[1] > SUFFICIENT_DECREASE * previous_dual and solved:
            floor = RHO_FLOOR if _is_held(problem, it, centre, system_rho[0], res[1]) else RHO_LOW
            if system_rho[0] > floor:
                system_rho[0] = max(0.1 * system_rho[0], floor)
                stale = True
        previous_dual = res[1]
        inner_tolerance = max(0.1 * inner_tolerance, 0.1 * tol[1])
        if not stale and idle > PATIENCE:
            return STALLED


@kernel
def keep_best(it, best, work, counted):
    """Copy `it` to `best` if its largest residual, relative to its tolerance, is smaller.

    counted: 3, or 2 to leave the gap out.
    """
    best_score = work.best_score
    score = worst_ratio(work.res, work.tol, counted)
    if score < best_score[0]:
        best_score[0] = score
        copy_point(it, best)
