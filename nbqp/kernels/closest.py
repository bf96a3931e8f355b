"""Closest feasible QPs: the method of multipliers with one penalty, and bounded multipliers.

On a QP without a feasible point the proximal method of multipliers converges to the QP whose sides
are moved by the smallest shifts s (Chiche and Gilbert 2016; Bambade et al. 2024, section 2):

    x -> x*,   s = Mx - clip(Mx, lo, hi) -> s*  with  M's* = 0,        M = (A; C; I)

while the multipliers grow by s / mu in every step. The norm of s is that of the user's units, in
which all rows have the same mu: in scaled units mu_i = mu / unit_i^2. Since M's vanishes, multipliers
may go back along s as far as their signs and the dual residual allow, and in the end the ones of least
norm replace them (`bound_multipliers`).
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.csc import add_transposed_product
from nbqp.kernels.dense import copy, largest
from nbqp.kernels.jit import kernel
from nbqp.kernels.residuals import (
    measure,
    set_tolerances,
    side_of,
    update_dual,
    update_products,
)
from nbqp.kernels.semismooth import detect_dual_infeasible, minimise
from nbqp.kernels.state import copy_point
from nbqp.kernels.status import (
    ABORTED,
    CONVERGED,
    DUAL_INFEASIBLE,
    OUT_OF_STEPS,
    SOLVED_CLOSEST_PRIMAL_FEASIBLE,
    STALLED,
)

MU_START = 1e-2
MU_FLOOR = 1e-8
RHO_START = 1e-4
RHO_FLOOR = 1e-7
SUFFICIENT_DECREASE = 0.25
PATIENCE = 12
# The factor on mu where the shifts have settled and x is not accurate enough.
RELAX = 100.0
# Multipliers of least norm: first and last weight of the proximal term, number of proximal steps.
NORM_RHO = 1e-7
NORM_RHO_FLOOR = 1e-13
NORM_STEPS = 8


@kernel
def _set_penalties(problem, mu, system, work):
    """The same mu for all rows in the user's units, relative to the mean row."""
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
def set_shift(pattern, problem, it, shift):
    """Shifts of it, scaled: shift.e, shift.s; and shift.t_e, t (rows times unit^2), pull = M't.

    Returns the largest shift, the largest change of one, and the largest |M's|, in the user's units.
    """
    unit_e = problem.unit_e
    unit = problem.unit
    lo = problem.lo
    hi = problem.hi
    D = problem.D
    e = it.e
    v = it.v
    s_e = shift.e
    s = shift.s
    t_e = shift.t_e
    t = shift.t
    pull = shift.pull
    n_in = pattern.n_in
    size = 0.0
    change = 0.0
    for i in range(len(s_e)):
        change = max(change, abs(e[i] - s_e[i]) * unit_e[i])
        size = max(size, abs(e[i]) * unit_e[i])
        s_e[i] = e[i]
        t_e[i] = e[i] * unit_e[i] * unit_e[i]
    for i in range(len(s)):
        new = v[i] - min(max(v[i], lo[i]), hi[i])
        change = max(change, abs(new - s[i]) * unit[i])
        size = max(size, abs(new) * unit[i])
        s[i] = new
        t[i] = new * unit[i] * unit[i]
    for j in range(pattern.n):
        pull[j] = t[n_in + j]
    add_transposed_product(pattern.Ap, pattern.Ai, problem.A, t_e, pull)
    add_transposed_product(pattern.Cp, pattern.Ci, problem.C, t, pull)
    worst = 0.0
    for j in range(pattern.n):
        worst = max(worst, abs(pull[j]) / D[j])
    return size, change, worst


@kernel
def _measure(problem, it, shift, res):
    """Residuals of the shifted QP, in the user's units: 0, dual, |gap| (see `residuals`)."""
    unit_d = problem.unit_d
    dual_terms = it.dual
    x = it.x
    v = it.v
    z = it.z
    s = shift.s
    lo = problem.lo
    hi = problem.hi
    dual = 0.0
    gap = 0.0
    for j in range(len(x)):
        dual = max(dual, abs(dual_terms[j]) * unit_d[j])
        gap += x[j] * dual_terms[j]
    for i in range(len(z)):
        if z[i] != 0.0:
            gap -= z[i] * (v[i] - s[i] - side_of(z[i], lo[i], hi[i]))
    res[0] = 0.0
    res[1] = dual
    res[2] = abs(gap) / problem.cost[0]


@kernel
def _set_norm_problem(problem, it, shift, tolerance, norm):
    """G = Hx + g, and sides 0 where a multiplier may be: above, below, or both."""
    g = norm.g
    lo = norm.lo
    hi = norm.hi
    z = it.z
    v = it.v
    s = shift.s
    unit = problem.unit
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
def _bound_multipliers(
    pattern,
    factor,
    entries,
    problem,
    norm,
    it,
    point,
    base,
    step,
    shift,
    system,
    work,
    options,
    limits,
):
    """Replace it.y and it.z by the multipliers of least norm; returns whether they solve the QP.

    min 1/2 |lam|^2  s.t.  M'lam = -(Hx + g),  lam_i >= 0 on upper, <= 0 on lower sides, else 0,

    whose dual is a penalty problem on the same pattern: min_w (Hx + g)'w + 1/2 dist^2(Mw, sides),
    lam = Mw - clip(Mw), with norms of the user's units. it.Hx, it.v and shift are up to date. norm,
    point, base, step, work.res and the system are overwritten, it.x is not.
    """
    tol = work.tol
    res = work.res
    rho = system.rho
    _set_norm_problem(problem, it, shift, 10.0 * tol[0], norm)
    _set_penalties(problem, 1.0, system, work)
    rho[0] = NORM_RHO
    point.x[:] = 0.0
    base.y[:] = 0.0
    base.z[:] = 0.0
    for _ in range(NORM_STEPS):
        update_products(pattern, norm, point)
        copy(point.x, base.x)
        system.w[:] = -1.0
        minimise(pattern, factor, entries, norm, point, base, step, system, work, 0.0, True, limits)
        copy(point.y, it.y)
        copy(point.z, it.z)
        update_dual(pattern, problem, it)
        _measure(problem, it, shift, res)
        if res[1] <= tol[1] and (res[2] <= tol[2] or not options.check_duality_gap):
            return True
        rho[0] = max(0.01 * rho[0], NORM_RHO_FLOOR)
    return False


@kernel
def run_closest(
    pattern,
    factor,
    entries,
    problem,
    norm,
    it,
    point,
    base,
    centre,
    step,
    shift,
    system,
    work,
    options,
    limits,
):
    """Outer steps from `it` until the shifted QP is solved; it and shift: overwritten.

    norm: see `new_norm_problem`. point, base: iterates to work on. Returns a code of `status`:
    CONVERGED where the shifts vanish, and are set to 0.
    """
    rho = system.rho
    tol = work.tol
    res = work.res
    outer = limits.outer
    steps = limits.steps
    max_steps = limits.max_steps
    abort = limits.abort
    x = it.x
    centre_x = centre.x
    unit_d = problem.unit_d
    mu = MU_START
    proximal = RHO_START
    stale = True
    idle = 0
    lowest = np.inf
    previous = np.inf
    update_products(pattern, problem, it)
    set_shift(pattern, problem, it, shift)
    _measure(problem, it, shift, res)
    inner_tolerance = max(min(1.0, 0.1 * res[1]), 0.1 * tol[1])
    while True:
        copy_point(it, centre)
        if stale:
            _set_penalties(problem, mu, system, work)
            rho[0] = proximal
            system.w[:] = -1.0
        minimise(
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
        size, change, pull = set_shift(pattern, problem, it, shift)
        set_tolerances(pattern, problem, it, options.eps_abs, options.eps_rel, tol)
        # Either the shifts vanish, or they are the smallest ones and have settled.
        unmet = min(size, max(pull, change))
        if size <= tol[0]:
            measure(pattern, problem, it, res)
            if res[1] <= tol[1] and (res[2] <= tol[2] or not options.check_duality_gap):
                shift.e[:] = 0.0
                shift.s[:] = 0.0
                return CONVERGED
        elif unmet <= tol[0]:
            # The multipliers have grown along s, and the dual residual with them by rounding.
            stale = True
            if _bound_multipliers(
                pattern,
                factor,
                entries,
                problem,
                norm,
                it,
                point,
                base,
                step,
                shift,
                system,
                work,
                options,
                limits,
            ):
                return SOLVED_CLOSEST_PRIMAL_FEASIBLE
            # x is not accurate enough: on from there, with less cancellation.
            mu = min(RELAX * mu, MU_START)
        if abort[0] != 0:
            return ABORTED
        if steps[0] >= max_steps[0]:
            return OUT_OF_STEPS
        if detect_dual_infeasible(pattern, problem, it, centre, step, options):
            return DUAL_INFEASIBLE
        if unmet > SUFFICIENT_DECREASE * previous and unmet > tol[0] and mu > MU_FLOOR:
            mu = max(0.1 * mu, MU_FLOOR)
            stale = True
        held = 0.0
        for j in range(len(x)):
            held = max(held, abs(x[j] - centre_x[j]) * unit_d[j])
        if proximal * held > 0.1 * tol[1] and proximal > RHO_FLOOR:
            proximal = max(0.1 * proximal, RHO_FLOOR)
            stale = True
        previous = unmet
        inner_tolerance = max(0.1 * inner_tolerance, 0.1 * tol[1])
        if unmet > tol[0] and unmet < 0.9 * lowest:
            lowest = unmet
            idle = 0
        else:
            idle += 1
        if not unmet < np.inf or idle > PATIENCE:
            return STALLED


@kernel
def unscale_shift(pattern, problem, shift, s_e, s_i, s_box):
    """The shifts in the user's units: s_e (n_eq), s_i (n_in), s_box (n) are overwritten."""
    n_in = pattern.n_in
    for i in range(pattern.n_eq):
        s_e[i] = shift.e[i] * problem.unit_e[i]
    for i in range(n_in):
        s_i[i] = shift.s[i] * problem.unit[i]
    for j in range(pattern.n):
        s_box[j] = shift.s[n_in + j] * problem.unit[n_in + j]


@kernel
def largest_pull(pattern, A, C, s_e, s_i, s_box, pull):
    """|A's_e + C's_i + s_box|_inf on the user's data (not modified). pull (n): overwritten."""
    copy(s_box, pull)
    add_transposed_product(pattern.Ap, pattern.Ai, A, s_e, pull)
    add_transposed_product(pattern.Cp, pattern.Ci, C, s_i, pull)
    return largest(pull)
