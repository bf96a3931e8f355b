"""One subproblem of PROX-QP: a semismooth Newton method on the proximal augmented Lagrangian.

    min_x  1/2 x'Hx + g'x + rho/2 |x - x_k|^2
           + |Ax - b + mu_e y_k|^2 / (2 mu_e) + dist^2(Mx + mu z_k, [lo, hi]) / (2 mu)

With the rows J where p = Mx + mu z_k leaves [lo, hi] (the active set), a step is one KKT system in
residual form (see `kkt`), then the exact line search. Where a full step keeps the active set it has solved
the subproblem, and the multipliers are those of the linear solve, not a difference divided by mu.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.csc import add_product, add_transposed_product
from nbqp.kernels.dense import copy
from nbqp.kernels.jit import kernel
from nbqp.kernels.kkt import refactor_system, solve_system
from nbqp.kernels.linesearch import exact_step
from nbqp.kernels.residuals import update_dual

# Newton steps with the same matrix, which only rounding can ask for, before a subproblem is left.
REPEATED = 4
# Newton steps before it is left: active sets may alternate without end where rounding decides.
MOST_STEPS = 1000
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
def minimise(ws, problem, it, centre, tolerance):
    """Minimise the augmented Lagrangian about `centre` from it.x; set it.y and it.z.

    ws.work.active: the rows of the first step. A tolerance of 0 asks for the exact minimum. Where
    the factor is that of other matrices, `outdate_factor` was called. The products of `it` are kept
    up to date; ws.step, ws.system and the workspaces of ws.work are overwritten. Returns whether it
    converged.
    """
    pattern = ws.pattern
    system = ws.system
    step = ws.step
    work = ws.work
    steps = ws.limits.steps
    max_steps = ws.limits.max_steps
    abort = ws.system.abort
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
    stop = min(max_steps[0], steps[0] + MOST_STEPS)
    while steps[0] < stop and abort[0] == 0 and repeated < REPEATED:
        for i in range(len(w)):
            w[i] = mu[i] if active[i] != 0 else np.inf
        repeated += 1
        remade, _ = refactor_system(
            pattern, ws.factor, ws.entries, problem.H, problem.A, problem.C, system
        )
        if abort[0] != 0:
            break
        if remade > 0:
            steps[0] += 1
            repeated = 0
        _newton_direction(ws, problem, it, centre)
        copy(dx, step_x)
        direction_products(pattern, problem, step)
        for i in range(len(w)):
            trial[i] = v[i] + step_v[i]
            next_active[i] = active[i]
        changed = set_active(problem, trial, centre.z, mu, next_active)
        if changed > ws.limits.most_changed[0]:
            # The solution is far from here: this phase takes no further step.
            max_steps[0] = steps[0]
            break
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
