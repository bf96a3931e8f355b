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
    changed = 0
    for i in range(len(active)):
        side = active_side(v[i], z[i], mu[i], problem.lo[i], problem.hi[i])
        if side != active[i]:
            active[i] = side
            changed += 1
    return changed


@kernel
def _set_multipliers(problem, it, centre, mu_e, mu):
    """The augmented Lagrangian's multipliers at it.x into it.y and it.z."""
    for i in range(len(it.y)):
        it.y[i] = centre.y[i] + it.e[i] / mu_e[i]
    for i in range(len(it.z)):
        p = it.v[i] + mu[i] * centre.z[i]
        it.z[i] = (p - min(max(p, problem.lo[i]), problem.hi[i])) / mu[i]


@kernel
def _newton_direction(pattern, factor, problem, it, centre, system, mu, active):
    """(dx, dy, dz) of the subproblem for the active set; it.y, it.z become those it refers to."""
    for i in range(len(it.z)):
        if active[i] == 0:
            it.z[i] = 0.0
    update_dual(pattern, problem, it)
    rho = system.rho[0]
    for j in range(pattern.n):
        system.r1[j] = -(it.dual[j] + rho * (it.x[j] - centre.x[j]))
    for i in range(pattern.n_eq):
        system.r2[i] = -it.e[i] - system.mu_e[i] * (centre.y[i] - it.y[i])
    for i in range(len(it.z)):
        if active[i] != 0:
            side = problem.hi[i] if active[i] > 0 else problem.lo[i]
            system.r3[i] = side - it.v[i] - mu[i] * (centre.z[i] - it.z[i])
        else:
            system.r3[i] = 0.0
    return solve_system(pattern, factor, problem.H, problem.A, problem.C, system, 1e-13)


@kernel
def _step_length(pattern, problem, it, centre, step, system, mu, p):
    """Exact line search from it.x along step.x, whose products are step.Hx, step.e, step.v."""
    rho = system.rho[0]
    a = 0.0
    q = 0.0
    for j in range(pattern.n):
        dx = step.x[j]
        a += (it.Hx[j] + problem.g[j] + rho * (it.x[j] - centre.x[j])) * dx
        q += (step.Hx[j] + rho * dx) * dx
    for i in range(pattern.n_eq):
        a += (centre.y[i] + it.e[i] / system.mu_e[i]) * step.e[i]
        q += step.e[i] * step.e[i] / system.mu_e[i]
    for i in range(len(p)):
        p[i] = it.v[i] + mu[i] * centre.z[i]
    return exact_step(a, q, p, step.v, mu, problem.lo, problem.hi)


@kernel
def direction_products(pattern, problem, step):
    """step.Hx, step.e, step.v = H, A, M times step.x."""
    step.Hx[:] = 0.0
    step.e[:] = 0.0
    step.v[:] = 0.0
    add_transposed_product(pattern.Hp, pattern.Hi, problem.H, step.x, step.Hx)
    add_product(pattern.Ap, pattern.Ai, problem.A, step.x, step.e)
    add_product(pattern.Cp, pattern.Ci, problem.C, step.x, step.v)
    for j in range(pattern.n):
        step.v[pattern.n_in + j] = step.x[j]


@kernel
def _minimise(
    pattern, factor, entries, problem, it, centre, step, system, work, tolerance, stale, limits
):
    """Minimise the augmented Lagrangian about `centre` from it.x; set it.y and it.z.

    stale: whether the factor does not fit the system's rho and mu_e. limits: see `Limits`.
    Returns whether it converged.
    """
    mu = work.mu
    w = system.w
    active = work.active
    _set_active(problem, it.v, centre.z, mu, active)
    while limits.steps[0] < limits.max_steps[0] and limits.abort[0] == 0:
        for i in range(len(w)):
            weight = mu[i] if active[i] != 0 else np.inf
            if weight != w[i]:
                w[i] = weight
                stale = True
        if stale:
            factor_system(pattern, factor, entries, problem.H, problem.A, problem.C, system)
            stale = False
            limits.steps[0] += 1
        _newton_direction(pattern, factor, problem, it, centre, system, mu, active)
        copy(system.dx, step.x)
        direction_products(pattern, problem, step)
        for i in range(len(w)):
            work.trial[i] = it.v[i] + step.v[i]
            work.next[i] = active[i]
        changed = _set_active(problem, work.trial, centre.z, mu, work.next)
        t = 1.0
        if changed > 0:
            t = _step_length(pattern, problem, it, centre, step, system, mu, work.trial)
        for j in range(pattern.n):
            it.x[j] += t * step.x[j]
            it.Hx[j] += t * step.Hx[j]
        for i in range(pattern.n_eq):
            it.e[i] += t * step.e[i]
            it.y[i] += system.dy[i]
        for i in range(len(w)):
            it.v[i] += t * step.v[i]
            it.z[i] += system.dz[i]
        if changed == 0:
            return True
        if t == 0.0:
            _set_multipliers(problem, it, centre, system.mu_e, mu)
            return True
        changed = _set_active(problem, it.v, centre.z, mu, active)
        if tolerance > 0.0:
            copy(it.y, work.y_ref)
            copy(it.z, work.z_ref)
            _set_multipliers(problem, it, centre, system.mu_e, mu)
            update_dual(pattern, problem, it)
            gradient = 0.0
            for j in range(pattern.n):
                r = it.dual[j] + system.rho[0] * (it.x[j] - centre.x[j])
                gradient = max(gradient, abs(r) * problem.unit_d[j])
            if gradient <= tolerance:
                return True
            copy(work.y_ref, it.y)
            copy(work.z_ref, it.z)
        elif changed == 0:
            return True
    _set_multipliers(problem, it, centre, system.mu_e, mu)
    return False


@kernel
def _violation(problem, it, i):
    """How far row i is from its side, or from its interval where it has no multiplier."""
    v = it.v[i]
    if it.z[i] > 0.0:
        return abs(v - problem.hi[i])
    if it.z[i] < 0.0:
        return abs(v - problem.lo[i])
    return max(max(v - problem.hi[i], problem.lo[i] - v), 0.0)


@kernel
def _raise_penalties(pattern, problem, it, system, work, tol):
    """Lower mu on the rows whose violation matters and did not fall; returns whether any fell."""
    n_eq = pattern.n_eq
    worst = 0.0
    for i in range(n_eq):
        worst = max(worst, abs(it.e[i]) * problem.unit_e[i])
    for i in range(len(it.z)):
        worst = max(worst, _violation(problem, it, i) * problem.unit[i])
    changed = False
    for i in range(n_eq + len(it.z)):
        if i < n_eq:
            r = abs(it.e[i]) * problem.unit_e[i]
            matters = max(r, abs(it.y[i] * it.e[i]) / problem.cost[0])
            mu = system.mu_e[i]
        else:
            v = _violation(problem, it, i - n_eq)
            r = v * problem.unit[i - n_eq]
            matters = max(r, abs(it.z[i - n_eq] * v) / problem.cost[0])
            mu = work.mu[i - n_eq]
        slow = r > SUFFICIENT_DECREASE * work.violation[i]
        work.violation[i] = r
        if slow and matters > 0.01 * tol and mu > MU_FLOOR:
            mu = max(mu / min(10.0, max(1.0, 100.0 * r / worst)), MU_FLOOR)
            if i < n_eq:
                system.mu_e[i] = mu
            else:
                work.mu[i - n_eq] = mu
            changed = True
    return changed


@kernel
def _detect_infeasible(pattern, problem, it, centre, step, options):
    """Certificates in the differences of multipliers and of x since the centre.

    The candidate is left in step.y, step.z (primal) or step.x (dual). Returns a status or
    CONVERGED where there is none.
    """
    for i in range(pattern.n_eq):
        step.y[i] = it.y[i] - centre.y[i]
    for i in range(len(it.z)):
        step.z[i] = it.z[i] - centre.z[i]
    for j in range(pattern.n):
        step.dual[j] = step.z[pattern.n_in + j]
    add_transposed_product(pattern.Ap, pattern.Ai, problem.A, step.y, step.dual)
    add_transposed_product(pattern.Cp, pattern.Ci, problem.C, step.z, step.dual)
    if proves_primal_infeasible(
        pattern, problem, step.y, step.z, step.dual, options.eps_primal_inf, options.eps_abs
    ):
        return PRIMAL_INFEASIBLE
    for j in range(pattern.n):
        step.x[j] = it.x[j] - centre.x[j]
    direction_products(pattern, problem, step)
    if proves_dual_infeasible(
        pattern, problem, step.x, step.Hx, step.e, step.v, options.eps_dual_inf
    ):
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

    mu, rho: the first penalties. it, best (the best iterate so far), work.res, work.best_res:
    overwritten. Returns a code of `status`.
    """
    system.mu_e[:] = mu
    work.mu[:] = mu
    system.rho[0] = rho
    work.violation[:] = np.inf
    system.w[:] = -1.0
    stale = True
    idle = 0
    previous_dual = np.inf
    tolerance = work.tol[1]
    update_products(pattern, problem, it)
    measure(pattern, problem, it, work.res)
    inner_tolerance = max(min(1.0, 0.1 * work.res[1]), 0.1 * tolerance)
    while True:
        copy_point(it, centre)
        solved = _minimise(
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
        limits.outer[0] += 1
        update_products(pattern, problem, it)
        measure(pattern, problem, it, work.res)
        set_tolerances(pattern, problem, it, options.eps_abs, options.eps_rel, work.tol)
        if keep_best(it, best, work):
            idle = 0
        else:
            idle += 1
        if within(work.res, work.tol):
            return CONVERGED
        if limits.abort[0] != 0:
            return ABORTED
        if limits.steps[0] >= limits.max_steps[0]:
            return OUT_OF_STEPS
        verdict = _detect_infeasible(pattern, problem, it, centre, step, options)
        if verdict != CONVERGED:
            return verdict
        eps = min(work.tol[0], work.tol[2])
        if _raise_penalties(pattern, problem, it, system, work, eps):
            stale = True
        if work.res[1] > max(SUFFICIENT_DECREASE * previous_dual, work.tol[1]) and solved:
            if system.rho[0] > RHO_FLOOR:
                system.rho[0] = max(0.1 * system.rho[0], RHO_FLOOR)
                stale = True
        previous_dual = work.res[1]
        inner_tolerance = max(0.1 * inner_tolerance, 0.1 * work.tol[1])
        if idle > PATIENCE and not stale:
            return STALLED


@kernel
def keep_best(it, best, work):
    """Copy `it` to `best` if its largest residual, relative to its tolerance, is smaller."""
    score = 0.0
    for k in range(3):
        ratio = work.res[k] / work.tol[k]
        if not ratio <= score:
            score = ratio
    if score < work.best_score[0]:
        work.best_score[0] = score
        copy(work.res, work.best_res)
        copy_point(it, best)
        return True
    return False
