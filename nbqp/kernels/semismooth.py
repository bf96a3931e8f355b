"""PROX-QP: the proximal method of multipliers with a semismooth Newton method inside.

Outer step k (Bambade et al. 2022, algorithm 1), about the centre (x_k, y_k, z_k):

    x_{k+1} = argmin_x  1/2 x'Hx + g'x + rho/2 |x - x_k|^2
                        + |Ax - b + mu_e y_k|^2 / (2 mu_e) + dist^2(Mx + mu z_k, [lo, hi]) / (2 mu)
    y_{k+1} = y_k + (A x_{k+1} - b) / mu_e
    z_{k+1} = (p - clip(p, lo, hi)) / mu,      p = M x_{k+1} + mu z_k

Inner step: with the rows J where p leaves [lo, hi] (the active set), one KKT system in residual
form (see `kkt`), then the exact line search. Where a full step keeps the active set it has solved
the subproblem, and the multipliers are those of the linear solve, not a difference divided by mu.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.certificates import proves_dual_infeasible, proves_primal_infeasible
from nbqp.kernels.csc import add_product, add_transposed_product
from nbqp.kernels.dense import copy
from nbqp.kernels.jit import kernel
from nbqp.kernels.kkt import factor_system, solve_system
from nbqp.kernels.linesearch import exact_step
from nbqp.kernels.residuals import (
    measure,
    set_constraint_forces,
    set_tolerances,
    update_dual,
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

# Below these the linear systems lose more digits than a smaller penalty gains.
MU_FLOOR = 1e-9
RHO_FLOOR = 1e-9
# A residual has to fall by this factor in an outer step, or its penalty is raised.
SUFFICIENT_DECREASE = 0.25
# Outer steps in which the worst residual makes no progress by this factor, all penalties at their floors,
# before giving up.
PROGRESS = 0.9
PATIENCE = 12
# Newton steps with the same matrix, which only rounding can ask for, before a subproblem is left.
REPEATED = 4
# Residual of a Newton direction, relative to its right-hand side, at which refinement ends.
SOLVE_TOLERANCE = 1e-13


@kernel
def _active_side(v, z, mu, lo, hi):
    """+1, -1 or 0: the side that p = v + mu z has left; rows with lo = hi are always active."""
    p = v + mu * z
    if p > hi:
        return 1
    if p < lo or lo == hi:
        return -1
    return 0


@kernel
def set_active(problem, v, z, mu, active):
    """Fill `active` (m) with the sides at v; returns how many rows changed."""
    lo = problem.lo
    hi = problem.hi
    changed = 0
    for i in range(len(active)):
        side = _active_side(v[i], z[i], mu[i], lo[i], hi[i])
        if side != active[i]:
            active[i] = side
            changed += 1
    return changed


@kernel
def _set_multipliers(problem, it, centre, mu_e, mu):
    """The augmented Lagrangian's multipliers at it.x into it.y and it.z."""
    y = it.y
    z = it.z
    centre_y = centre.y
    v = it.v
    e = it.e
    centre_z = centre.z
    hi = problem.hi
    lo = problem.lo
    for i in range(len(y)):
        y[i] = centre_y[i] + e[i] / mu_e[i]
    for i in range(len(z)):
        p = v[i] + mu[i] * centre_z[i]
        z[i] = (p - min(max(p, lo[i]), hi[i])) / mu[i]


@kernel
def _newton_direction(ws, problem, it, centre):
    """(dx, dy, dz) of the subproblem for the active set, from it.y and it.z of its rows.

    it.z is set to 0 on the other rows, and it.dual to what belongs to it; the system's right-hand
    side and solution are overwritten.
    """
    pattern = ws.pattern
    system = ws.system
    n_eq = pattern.n_eq
    r1 = system.r1
    r2 = system.r2
    r3 = system.r3
    mu_e = system.mu_e
    rho = system.rho[0]
    mu = ws.work.mu
    active = ws.work.active
    hi = problem.hi
    lo = problem.lo
    dual = it.dual
    e = it.e
    x = it.x
    v = it.v
    y = it.y
    z = it.z
    centre_x = centre.x
    centre_y = centre.y
    centre_z = centre.z
    for i in range(len(z)):
        if active[i] == 0:
            z[i] = 0.0
    update_dual(pattern, problem, it)
    for j in range(pattern.n):
        r1[j] = -(dual[j] + rho * (x[j] - centre_x[j]))
    for i in range(n_eq):
        r2[i] = -e[i] - mu_e[i] * (centre_y[i] - y[i])
    for i in range(len(z)):
        if active[i] != 0:
            side = hi[i] if active[i] > 0 else lo[i]
            r3[i] = side - v[i] - mu[i] * (centre_z[i] - z[i])
        else:
            r3[i] = 0.0
    solve_system(pattern, ws.factor, problem.H, problem.A, problem.C, system, SOLVE_TOLERANCE)


@kernel
def _step_length(ws, problem, it, centre):
    """Exact line search from it.x along ws.step, whose products are up to date.

    ws.work.trial is overwritten.
    """
    pattern = ws.pattern
    step = ws.step
    step_x = step.x
    step_e = step.e
    step_Hx = step.Hx
    rho = ws.system.rho[0]
    mu_e = ws.system.mu_e
    mu = ws.work.mu
    p = ws.work.trial
    g = problem.g
    Hx = it.Hx
    e = it.e
    v = it.v
    x = it.x
    centre_x = centre.x
    centre_y = centre.y
    centre_z = centre.z
    a = 0.0
    q = 0.0
    for j in range(pattern.n):
        dx = step_x[j]
        a += (Hx[j] + g[j] + rho * (x[j] - centre_x[j])) * dx
        q += (step_Hx[j] + rho * dx) * dx
    for i in range(pattern.n_eq):
        a += (centre_y[i] + e[i] / mu_e[i]) * step_e[i]
        q += step_e[i] * step_e[i] / mu_e[i]
    for i in range(len(p)):
        p[i] = v[i] + mu[i] * centre_z[i]
    return exact_step(a, q, p, step.v, mu, problem.lo, problem.hi)


@kernel
def direction_products(pattern, problem, step):
    """step.Hx, step.e, step.v = H, A, M times step.x."""
    step_Hx = step.Hx
    step_e = step.e
    step_v = step.v
    step_x = step.x
    n = pattern.n
    n_in = pattern.n_in
    step_Hx[:] = 0.0
    step_e[:] = 0.0
    step_v[:] = 0.0
    add_transposed_product(pattern.Hp, pattern.Hi, problem.H, step_x, step_Hx)
    add_product(pattern.Ap, pattern.Ai, problem.A, step_x, step_e)
    add_product(pattern.Cp, pattern.Ci, problem.C, step_x, step_v)
    for j in range(n):
        step_v[n_in + j] = step_x[j]


@kernel
def _small_gradient(ws, problem, it, centre, tolerance):
    """Whether the augmented Lagrangian's gradient is small; it.y, it.z are then its multipliers.

    it.dual and the copies of multipliers in ws.work are overwritten.
    """
    system = ws.system
    work = ws.work
    rho = system.rho[0]
    unit_d = problem.unit_d
    dual = it.dual
    x = it.x
    centre_x = centre.x
    copy(it.y, work.y_ref)
    copy(it.z, work.z_ref)
    _set_multipliers(problem, it, centre, system.mu_e, work.mu)
    update_dual(ws.pattern, problem, it)
    gradient = 0.0
    for j in range(len(x)):
        gradient = max(gradient, abs(dual[j] + rho * (x[j] - centre_x[j])) * unit_d[j])
    if gradient <= tolerance:
        return True
    copy(work.y_ref, it.y)
    copy(work.z_ref, it.z)
    return False


@kernel
def outdate_factor(system):
    """No factor fits any more: the next Newton step factorises, since no weight is negative."""
    system.w[:] = -1.0


@kernel
def minimise(ws, problem, it, centre, tolerance):
    """Minimise the augmented Lagrangian about `centre` from it.x; set it.y and it.z.

    ws.work.active: the rows of the first step. A tolerance of 0 asks for the exact minimum. Where
    the factor does not fit rho and mu_e, `outdate_factor` was called. The products of `it` are kept
    up to date; ws.step, ws.system and the workspaces of ws.work are overwritten. Returns whether it
    converged.
    """
    pattern = ws.pattern
    system = ws.system
    step = ws.step
    work = ws.work
    steps = ws.limits.steps
    max_steps = ws.limits.max_steps
    abort = ws.limits.abort
    dx = system.dx
    dy = system.dy
    dz = system.dz
    w = system.w
    mu = work.mu
    active = work.active
    trial = work.trial
    next_active = work.next_active
    step_x = step.x
    step_e = step.e
    step_v = step.v
    step_Hx = step.Hx
    x = it.x
    y = it.y
    z = it.z
    Hx = it.Hx
    e = it.e
    v = it.v
    repeated = 0
    while steps[0] < max_steps[0] and abort[0] == 0 and repeated < REPEATED:
        stale = False
        for i in range(len(w)):
            weight = mu[i] if active[i] != 0 else np.inf
            if weight != w[i]:
                w[i] = weight
                stale = True
        repeated += 1
        if stale:
            factor_system(pattern, ws.factor, ws.entries, problem.H, problem.A, problem.C, system)
            steps[0] += 1
            repeated = 0
        _newton_direction(ws, problem, it, centre)
        copy(dx, step_x)
        direction_products(pattern, problem, step)
        for i in range(len(w)):
            trial[i] = v[i] + step_v[i]
            next_active[i] = active[i]
        changed = set_active(problem, trial, centre.z, mu, next_active)
        t = 1.0
        if changed > 0:
            t = _step_length(ws, problem, it, centre)
        for j in range(len(x)):
            x[j] += t * step_x[j]
            Hx[j] += t * step_Hx[j]
        for i in range(len(y)):
            e[i] += t * step_e[i]
            y[i] += dy[i]
        for i in range(len(w)):
            v[i] += t * step_v[i]
            z[i] += dz[i]
        if changed == 0:
            return True
        if t == 0.0:
            _set_multipliers(problem, it, centre, system.mu_e, mu)
            return True
        changed = set_active(problem, v, centre.z, mu, active)
        if tolerance > 0.0:
            if _small_gradient(ws, problem, it, centre, tolerance):
                return True
        elif changed == 0:
            return True
    _set_multipliers(problem, it, centre, system.mu_e, mu)
    return False


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
        if slow and matters > 0.01 * eps and mu > MU_FLOOR:
            mu = max(mu / min(10.0, max(1.0, 100.0 * r / worst)), MU_FLOOR)
            if i < n_eq:
                mu_e[i] = mu
            else:
                work_mu[i - n_eq] = mu
            changed = True
    return changed


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
    """Outer steps from ws.it until its residuals are within tolerance.

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
    abort = ws.limits.abort
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
    while True:
        copy_point(it, centre)
        set_active(problem, it.v, centre.z, work.mu, work.active)
        solved = minimise(ws, problem, it, centre, inner_tolerance)
        outer[0] += 1
        update_products(pattern, problem, it)
        measure(pattern, problem, it, ws.shift, res)
        set_tolerances(pattern, problem, it, options, tol)
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
        if res[1] > max(SUFFICIENT_DECREASE * previous_dual, tol[1]) and solved:
            if system_rho[0] > RHO_FLOOR:
                system_rho[0] = max(0.1 * system_rho[0], RHO_FLOOR)
                stale = True
        previous_dual = res[1]
        inner_tolerance = max(0.1 * inner_tolerance, 0.1 * tol[1])
        if stale:
            outdate_factor(system)
        elif idle > PATIENCE:
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
