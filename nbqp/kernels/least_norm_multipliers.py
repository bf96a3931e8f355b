"""The multipliers of least norm, at a point with the smallest shifts.

There the multipliers grow along s without end; those of least norm are the bounded ones, by the method of
Lawson and Hanson, and by the proximal method of multipliers on its dual where that takes many exchanges.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.dense import copy
from nbqp.kernels.jit import kernel
from nbqp.kernels.kkt import outdate_factor, refactor_system, solve_system
from nbqp.kernels.residuals import (
    measure,
    set_tolerances,
    update_dual,
    update_products,
    within,
)
from nbqp.kernels.subproblem import SOLVE_TOLERANCE, minimise, set_active

# Multipliers of least norm: how near its side a row is that may have one, relative to the tolerance;
# first and last weight of the proximal term and its factor, number of proximal steps.
ON_SIDE = 10.0
NORM_RHO = 1e-7
NORM_RHO_FALL = 0.01
NORM_RHO_FLOOR = 1e-13
NORM_STEPS = 8
# Rows that are exchanged one by one before the semismooth method exchanges many at a time.
EXCHANGES = 12


@kernel
def set_penalties(problem, mu, system, work):
    """Set the mu of all rows, the same in the user's units, relative to the mean row."""
    mu_e = system.mu_e
    work_mu = work.mu
    unit_e = problem.unit_e
    unit = problem.unit
    total = 0.0
    for i in range(len(unit_e)):
        total += np.log(unit_e[i])
    for i in range(len(unit)):
        total += np.log(unit[i])
    mean = np.exp(2.0 * total / (len(unit_e) + len(unit)))
    for i in range(len(unit_e)):
        mu_e[i] = mu * mean / (unit_e[i] * unit_e[i])
    for i in range(len(unit)):
        work_mu[i] = mu * mean / (unit[i] * unit[i])


@kernel
def _set_norm_problem(problem, it, shift, tolerance, norm):
    """Set H and b to 0, g to Hx + g, and sides to 0 where a multiplier may be: above, below, or both."""
    g = norm.g
    lo = norm.lo
    hi = norm.hi
    z = it.z
    v = it.v
    s = shift.s
    unit = problem.unit
    norm.H[:] = 0.0
    norm.b[:] = 0.0
    for j in range(len(g)):
        g[j] = it.Hx[j] + problem.g[j]
    for i in range(len(lo)):
        low = problem.lo[i]
        high = problem.hi[i]
        value = v[i] - s[i]
        upper = z[i] > 0.0 or (high - value) * unit[i] <= tolerance
        lower = z[i] < 0.0 or (value - low) * unit[i] <= tolerance
        hi[i] = 0.0 if upper or low == high else np.inf
        lo[i] = 0.0 if lower or low == high else -np.inf


@kernel
def _exchange_rows(ws):
    """Least-norm multipliers by exchanging one row at a time, from the feasible ones in ws.it.z.

    The non-negative least squares of Lawson and Hanson (1974): the row leaves the active ones whose
    multiplier is the first to vanish on the way to those of least norm; when there is none, the row
    enters whose side ws.saved.x, the dual solution, violates most. ws.it.z is overwritten.
    """
    pattern = ws.pattern
    norm = ws.norm
    saved = ws.saved
    system = ws.system
    steps = ws.limits.steps
    max_steps = ws.limits.max_steps
    abort = ws.system.abort
    active = ws.work.active
    mu = ws.work.mu
    g = norm.g
    lo = norm.lo
    hi = norm.hi
    unit = norm.unit
    v = saved.v
    z = ws.it.z
    w = system.w
    r1 = system.r1
    dz = system.dz
    for i in range(len(z)):
        active[i] = np.sign(z[i]) if lo[i] < hi[i] else -1
    for j in range(pattern.n):
        r1[j] = -g[j]
    system.r2[:] = 0.0
    system.r3[:] = 0.0
    saved.x[:] = 0.0
    for _ in range(EXCHANGES):
        if steps[0] >= max_steps[0] or abort[0] != 0:
            return
        for i in range(len(w)):
            w[i] = mu[i] if active[i] != 0 else np.inf
        refactor_system(pattern, ws.factor, ws.entries, norm.H, norm.A, norm.C, system)
        if abort[0] != 0:
            return
        steps[0] += 1
        solve_system(pattern, ws.factor, norm.H, norm.A, norm.C, system, SOLVE_TOLERANCE)
        t = 1.0
        chosen = -1
        for i in range(len(z)):
            if lo[i] < hi[i] and active[i] * dz[i] < 0.0 and z[i] / (z[i] - dz[i]) < t:
                t = z[i] / (z[i] - dz[i])
                chosen = i
        for i in range(len(z)):
            if active[i] != 0:
                z[i] += t * (dz[i] - z[i])
        if chosen >= 0:
            active[chosen] = 0
            z[chosen] = 0.0
            continue
        copy(system.dx, saved.x)
        update_products(pattern, norm, saved)
        worst = 0.0
        for i in range(len(z)):
            violation = max(v[i] - hi[i], lo[i] - v[i]) * unit[i]
            if active[i] == 0 and violation > worst:
                worst = violation
                chosen = i
        if chosen < 0:
            return
        active[chosen] = 1 if v[chosen] > hi[chosen] else -1
    copy(system.dx, saved.x)


@kernel
def set_least_norm_multipliers(ws, options):
    """Replace it.y and it.z by the multipliers of least norm; returns whether they solve the QP.

    min 1/2 |lam|^2  s.t.  M'lam = -(Hx + g),  lam_i >= 0 on upper, <= 0 on lower sides, else 0,

    whose dual is a penalty problem on the same pattern: min_p (Hx + g)'p + 1/2 dist^2(Mp, sides),
    lam = Mp - clip(Mp), with norms of the user's units. it.Hx, it.v and ws.shift are up to date;
    it.x is not modified. ws.norm, saved (p), centre, step, system and work are overwritten, the
    penalties among them.
    """
    problem = ws.problem
    norm = ws.norm
    it = ws.it
    centre = ws.centre
    saved = ws.saved
    system = ws.system
    work = ws.work
    rho = system.rho
    tol = work.tol
    res = work.res
    _set_norm_problem(problem, it, ws.shift, ON_SIDE * tol[0], norm)
    set_penalties(problem, 1.0, system, work)
    rho[0] = NORM_RHO
    outdate_factor(system)
    _exchange_rows(ws)
    saved.y[:] = 0.0
    saved.z[:] = 0.0
    centre.y[:] = 0.0
    centre.z[:] = 0.0
    for _ in range(NORM_STEPS):
        update_products(ws.pattern, norm, saved)
        copy(saved.x, centre.x)
        set_active(norm, saved.v, centre.z, work.mu, work.active)
        minimise(ws, norm, saved, centre, 0.0)
        copy(saved.y, it.y)
        copy(saved.z, it.z)
        update_dual(ws.pattern, problem, it)
        measure(ws.pattern, problem, it, ws.shift, res)
        set_tolerances(ws.pattern, problem, it, options, tol)
        if within(res, tol, options):
            return True
        rho[0] = max(NORM_RHO_FALL * rho[0], NORM_RHO_FLOOR)
    return False
