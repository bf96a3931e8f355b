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
from nbqp.kernels.residuals import measure, set_tolerances, update_dual, update_products, within
from nbqp.kernels.state import copy_point
from nbqp.kernels.status import (
    ABORTED,
    CONVERGED,
    DUAL_INFEASIBLE,
    OUT_OF_STEPS,
    PRIMAL_INFEASIBLE,
    STALLED,
)

MU_FLOOR = 1e-9
RHO_FLOOR = 1e-9
# A residual has to fall by this factor in an outer step, or its penalty is raised.
SUFFICIENT_DECREASE = 0.25
# Outer steps without a better iterate, all penalties at their floors, before giving up.
PATIENCE = 12
# Newton steps with the same matrix, which only rounding can ask for, before a subproblem is left.
REPEATED = 4


@kernel
def active_side(v, z, mu, lo, hi):
    """+1, -1 or 0: the side that p = v + mu z has left; rows with lo = hi are always active."""
    p = v + mu * z
    if p > hi:
        return 1
    if p < lo or lo == hi:
        return -1
    return 0


@kernel
def _set_active(problem, v, z, mu, active):
    """Fill `active` (m) with the sides at v; returns how many rows changed."""
    lo = problem.lo
    hi = problem.hi
    changed = 0
    for i in range(len(active)):
        side = active_side(v[i], z[i], mu[i], lo[i], hi[i])
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
def _newton_direction(pattern, factor, problem, it, centre, system, mu, active):
    """(dx, dy, dz) of the subproblem for the active set; it.y, it.z become those it refers to."""
    n = pattern.n
    n_eq = pattern.n_eq
    z = it.z
    r1 = system.r1
    r2 = system.r2
    r3 = system.r3
    dual = it.dual
    e = it.e
    mu_e = system.mu_e
    hi = problem.hi
    lo = problem.lo
    centre_y = centre.y
    y = it.y
    v = it.v
    x = it.x
    centre_x = centre.x
    centre_z = centre.z
    for i in range(len(z)):
        if active[i] == 0:
            z[i] = 0.0
    update_dual(pattern, problem, it)
    rho = system.rho[0]
    for j in range(n):
        r1[j] = -(dual[j] + rho * (x[j] - centre_x[j]))
    for i in range(n_eq):
        r2[i] = -e[i] - mu_e[i] * (centre_y[i] - y[i])
    for i in range(len(z)):
        if active[i] != 0:
            side = hi[i] if active[i] > 0 else lo[i]
            r3[i] = side - v[i] - mu[i] * (centre_z[i] - z[i])
        else:
            r3[i] = 0.0
    return solve_system(pattern, factor, problem.H, problem.A, problem.C, system, 1e-13)


@kernel
def _step_length(pattern, problem, it, centre, step, system, mu, p):
    """Exact line search from it.x along step.x, whose products are step.Hx, step.e, step.v."""
    n = pattern.n
    n_eq = pattern.n_eq
    step_x = step.x
    step_e = step.e
    mu_e = system.mu_e
    v = it.v
    step_Hx = step.Hx
    centre_y = centre.y
    centre_z = centre.z
    Hx = it.Hx
    g = problem.g
    e = it.e
    x = it.x
    centre_x = centre.x
    rho = system.rho[0]
    a = 0.0
    q = 0.0
    for j in range(n):
        dx = step_x[j]
        a += (Hx[j] + g[j] + rho * (x[j] - centre_x[j])) * dx
        q += (step_Hx[j] + rho * dx) * dx
    for i in range(n_eq):
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
def minimise(
    pattern, factor, entries, problem, it, centre, step, system, work, tolerance, stale, limits
):
    """Minimise the augmented Lagrangian about `centre` from it.x; set it.y and it.z.

    stale: whether the factor does not fit the system's rho and mu_e. limits: see `Limits`.
    Returns whether it converged.
    """
    v = it.v
    centre_z = centre.z
    mu_e = system.mu_e
    dx = system.dx
    step_x = step.x
    trial = work.trial
    next = work.next
    n = pattern.n
    n_eq = pattern.n_eq
    steps = limits.steps
    max_steps = limits.max_steps
    abort = limits.abort
    H = problem.H
    A = problem.A
    C = problem.C
    x = it.x
    Hx = it.Hx
    e = it.e
    y = it.y
    dy = system.dy
    z = it.z
    dz = system.dz
    y_ref = work.y_ref
    z_ref = work.z_ref
    step_v = step.v
    step_Hx = step.Hx
    step_e = step.e
    dual = it.dual
    rho = system.rho
    unit_d = problem.unit_d
    centre_x = centre.x
    mu = work.mu
    w = system.w
    active = work.active
    _set_active(problem, v, centre_z, mu, active)
    repeated = 0
    while steps[0] < max_steps[0] and abort[0] == 0 and repeated < REPEATED:
        for i in range(len(w)):
            weight = mu[i] if active[i] != 0 else np.inf
            if weight != w[i]:
                w[i] = weight
                stale = True
        repeated += 1
        if stale:
            factor_system(pattern, factor, entries, H, A, C, system)
            stale = False
            steps[0] += 1
            repeated = 0
        _newton_direction(pattern, factor, problem, it, centre, system, mu, active)
        copy(dx, step_x)
        direction_products(pattern, problem, step)
        for i in range(len(w)):
            trial[i] = v[i] + step_v[i]
            next[i] = active[i]
        changed = _set_active(problem, trial, centre_z, mu, next)
        t = 1.0
        if changed > 0:
            t = _step_length(pattern, problem, it, centre, step, system, mu, trial)
        for j in range(n):
            x[j] += t * step_x[j]
            Hx[j] += t * step_Hx[j]
        for i in range(n_eq):
            e[i] += t * step_e[i]
            y[i] += dy[i]
        for i in range(len(w)):
            v[i] += t * step_v[i]
            z[i] += dz[i]
        if changed == 0:
            return True
        if t == 0.0:
            _set_multipliers(problem, it, centre, mu_e, mu)
            return True
        changed = _set_active(problem, v, centre_z, mu, active)
        if tolerance > 0.0:
            copy(y, y_ref)
            copy(z, z_ref)
            _set_multipliers(problem, it, centre, mu_e, mu)
            update_dual(pattern, problem, it)
            gradient = 0.0
            for j in range(n):
                r = dual[j] + rho[0] * (x[j] - centre_x[j])
                gradient = max(gradient, abs(r) * unit_d[j])
            if gradient <= tolerance:
                return True
            copy(y_ref, y)
            copy(z_ref, z)
        elif changed == 0:
            return True
    _set_multipliers(problem, it, centre, mu_e, mu)
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
def _raise_penalties(pattern, problem, it, system, work, tol):
    """Lower mu on the rows whose violation matters and did not fall; returns whether any fell."""
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
        if slow and matters > 0.01 * tol and mu > MU_FLOOR:
            mu = max(mu / min(10.0, max(1.0, 100.0 * r / worst)), MU_FLOOR)
            if i < n_eq:
                mu_e[i] = mu
            else:
                work_mu[i - n_eq] = mu
            changed = True
    return changed


@kernel
def detect_dual_infeasible(pattern, problem, it, centre, step, options):
    """Whether x has moved along a certificate since the centre; it is left in step.x."""
    x = it.x
    centre_x = centre.x
    step_x = step.x
    for j in range(pattern.n):
        step_x[j] = x[j] - centre_x[j]
    direction_products(pattern, problem, step)
    return proves_dual_infeasible(
        pattern, problem, step_x, step.Hx, step.e, step.v, options.eps_dual_inf
    )


@kernel
def _detect_infeasible(pattern, problem, it, centre, step, options):
    """Certificates in the differences of multipliers and of x since the centre.

    The candidate is left in step.y, step.z (primal) or step.x (dual). Returns a status or
    CONVERGED where there is none.
    """
    n_eq = pattern.n_eq
    n = pattern.n
    step_y = step.y
    step_dual = step.dual
    step_z = step.z
    z = it.z
    y = it.y
    centre_y = centre.y
    centre_z = centre.z
    n_in = pattern.n_in
    for i in range(n_eq):
        step_y[i] = y[i] - centre_y[i]
    for i in range(len(z)):
        step_z[i] = z[i] - centre_z[i]
    for j in range(n):
        step_dual[j] = step_z[n_in + j]
    add_transposed_product(pattern.Ap, pattern.Ai, problem.A, step_y, step_dual)
    add_transposed_product(pattern.Cp, pattern.Ci, problem.C, step_z, step_dual)
    if proves_primal_infeasible(
        pattern, problem, step_y, step_z, step_dual, options.eps_primal_inf, options.eps_abs
    ):
        return PRIMAL_INFEASIBLE
    if detect_dual_infeasible(pattern, problem, it, centre, step, options):
        return DUAL_INFEASIBLE
    return CONVERGED


@kernel
def run_semismooth(
    pattern,
    factor,
    entries,
    problem,
    it,
    best,
    centre,
    step,
    system,
    work,
    options,
    limits,
    mu,
    rho,
):
    """Outer steps from `it` until its residuals are within tolerance.

    mu, rho: the first penalties. it, best (the best iterate so far), work.res:
    overwritten. Returns a code of `status`.
    """
    system_rho = system.rho
    tol = work.tol
    res = work.res
    outer = limits.outer
    abort = limits.abort
    steps = limits.steps
    max_steps = limits.max_steps
    system.mu_e[:] = mu
    work.mu[:] = mu
    system_rho[0] = rho
    work.violation[:] = np.inf
    system.w[:] = -1.0
    stale = True
    idle = 0
    previous_dual = np.inf
    tolerance = tol[1]
    update_products(pattern, problem, it)
    measure(pattern, problem, it, res)
    inner_tolerance = max(min(1.0, 0.1 * res[1]), 0.1 * tolerance)
    while True:
        copy_point(it, centre)
        solved = minimise(
            pattern,
            factor,
            entries,
            problem,
            it,
            centre,
            step,
            system,
            work,
            inner_tolerance,
            stale,
            limits,
        )
        stale = False
        outer[0] += 1
        update_products(pattern, problem, it)
        measure(pattern, problem, it, res)
        set_tolerances(pattern, problem, it, options.eps_abs, options.eps_rel, tol)
        if keep_best(it, best, work):
            idle = 0
        else:
            idle += 1
        if within(res, tol):
            return CONVERGED
        if abort[0] != 0:
            return ABORTED
        if steps[0] >= max_steps[0]:
            return OUT_OF_STEPS
        verdict = _detect_infeasible(pattern, problem, it, centre, step, options)
        if verdict != CONVERGED:
            return verdict
        eps = min(tol[0], tol[2])
        if _raise_penalties(pattern, problem, it, system, work, eps):
            stale = True
        if res[1] > max(SUFFICIENT_DECREASE * previous_dual, tol[1]) and solved:
            if system_rho[0] > RHO_FLOOR:
                system_rho[0] = max(0.1 * system_rho[0], RHO_FLOOR)
                stale = True
        previous_dual = res[1]
        inner_tolerance = max(0.1 * inner_tolerance, 0.1 * tol[1])
        if idle > PATIENCE and not stale:
            return STALLED


@kernel
def keep_best(it, best, work):
    """Copy `it` to `best` if its largest residual, relative to its tolerance, is smaller."""
    best_score = work.best_score
    res = work.res
    tol = work.tol
    score = 0.0
    for k in range(3):
        ratio = res[k] / tol[k]
        if not ratio <= score:
            score = ratio
    if score < best_score[0]:
        best_score[0] = score
        copy_point(it, best)
        return True
    return False
