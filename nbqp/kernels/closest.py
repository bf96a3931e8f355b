"""Closest feasible QPs: the method of multipliers with one penalty, and multipliers of least norm.

On a QP without a feasible point the proximal method of multipliers converges to the QP whose sides
are moved by the smallest shifts s (Chiche and Gilbert 2016; Bambade et al. 2024, section 2):

    x -> x*,   s = Mx - clip(Mx, lo, hi) -> s*  with  M's* = 0,        M = (A; C; I)

while the multipliers grow by s / mu in every step. The norm of s is that of the user's units, in
which all rows have the same mu: in scaled units mu_i = mu / unit_i^2. The first subproblem, about 0, is
the smoothed phase's: it has a solution whether or not the QP has a feasible point. Since M's vanishes,
multipliers may go back along s as far as their signs and the dual residual allow, and in the end the ones
of least norm replace them.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.csc import add_transposed_product
from nbqp.kernels.dense import copy, largest
from nbqp.kernels.jit import kernel
from nbqp.kernels.kkt import outdate_factor
from nbqp.kernels.least_norm_multipliers import set_least_norm_multipliers, set_penalties
from nbqp.kernels.residuals import measure, set_tolerances, update_products, within
from nbqp.kernels.semismooth import (
    PATIENCE,
    SUFFICIENT_DECREASE,
    detect_dual_infeasible,
    run_semismooth,
)
from nbqp.kernels.smoothed import NO_SHARE, run_smoothed
from nbqp.kernels.starting import start_smoothed
from nbqp.kernels.state import copy_point
from nbqp.kernels.status import (
    ABORTED,
    CONVERGED,
    DUAL_INFEASIBLE,
    OUT_OF_STEPS,
    SOLVED_CLOSEST_PRIMAL_FEASIBLE,
    STALLED,
)
from nbqp.kernels.subproblem import minimise, set_active

# Mehrotra's shifts of the elastic phase's first point, and the residuals at which it ends.
OUTWARD = 1.5
BALANCE = 0.5
ELASTIC_END = 1e-5
# The first mu is proportional to the curvature, within these limits: the flatter the objective, the
# smaller the mu that it needs, and LPs end in one or two outer steps; but the larger the mu, the fewer
# steps the smoothed phase takes to multipliers of s / mu.
MU_START = 1e-3
LEAST_MU_START = 1e-4
# Below these, s and x are lost in the rounding of the multipliers.
MU_FLOOR = 1e-8
RHO_START = 1e-6
RHO_FLOOR = 1e-7
# A mu that had to be lowered leads to another active set, which the semismooth method reaches row by
# row. After so many Newton steps the smoothed phase starts afresh, at most twice, with a mu so much
# smaller that it need not be lowered again.
SUBPROBLEM_STEPS = 8
RESTARTS = 2
RESTART = 1e-2
# The smoothed phase's x is a start unless it has run away.
FAR = 1e6
# |M's| of the smallest shifts, relative to them and, in every column, to its terms.
SMALLEST = 1e-3
# Outer steps without progress, the shifts settled, that multipliers may take to fall.
DRAINING = 3
# Shifts, relative to the tolerance, that are none.
VANISHED = 0.1
# The factor on mu where the shifts have settled and x is not accurate enough.
RELAX = 100.0
# Penalties and Newton steps of the QP with the shifts that have been found.
SHIFTED_MU = 1e-5
SHIFTED_RHO = 1e-8
SHIFTED_STEPS = 10


@kernel
def _set_shift(pattern, problem, it, shift):
    """Set shift.e and shift.s to those of `it`, scaled; the rest of `shift` is a workspace.

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
def _imbalance(pattern, problem, shift, floor):
    """The largest |M's|_j relative to its terms, column by column, from `_set_shift`'s workspaces.

    It is 0 at the smallest shifts, also where rows are so small that |M's| is small for any. Only
    shifts above `floor`, in the user's units, count as terms.
    """
    Ap = pattern.Ap
    Ai = pattern.Ai
    Cp = pattern.Cp
    Ci = pattern.Ci
    A = problem.A
    C = problem.C
    unit_e = problem.unit_e
    unit = problem.unit
    s_e = shift.e
    s = shift.s
    t_e = shift.t_e
    t = shift.t
    pull = shift.pull
    n_in = pattern.n_in
    worst = 0.0
    for j in range(pattern.n):
        terms = abs(t[n_in + j]) if abs(s[n_in + j]) * unit[n_in + j] > floor else 0.0
        for p in range(Ap[j], Ap[j + 1]):
            i = Ai[p]
            if abs(s_e[i]) * unit_e[i] > floor:
                terms += abs(A[p] * t_e[i])
        for p in range(Cp[j], Cp[j + 1]):
            i = Ci[p]
            if abs(s[i]) * unit[i] > floor:
                terms += abs(C[p] * t[i])
        if terms > 0.0:
            worst = max(worst, abs(pull[j]) / terms)
    return worst


@kernel
def _move_sides(problem, s_e, s, sign):
    """Add sign times the shifts to b, lo and hi."""
    b = problem.b
    lo = problem.lo
    hi = problem.hi
    for i in range(len(s_e)):
        b[i] += sign * s_e[i]
    for i in range(len(s)):
        lo[i] += sign * s[i]
        hi[i] += sign * s[i]


@kernel
def _solve_shifted(ws, options):
    """Semismooth steps on the QP with the shifts of ws.shift, from ws.it; whether they solve it.

    x then is as accurate as that of any QP, where the steps that find the shifts left it to within
    the tolerance of those. ws.saved is overwritten.
    """
    limits = ws.limits
    shift = ws.shift
    s_e = ws.saved.e
    s = ws.saved.v
    max_steps = limits.max_steps[0]
    copy(shift.e, s_e)
    copy(shift.s, s)
    _move_sides(ws.problem, s_e, s, 1.0)
    shift.e[:] = 0.0
    shift.s[:] = 0.0
    limits.max_steps[0] = min(max_steps, limits.steps[0] + SHIFTED_STEPS)
    code = run_semismooth(ws, options, SHIFTED_MU, SHIFTED_RHO)
    limits.max_steps[0] = max_steps
    _move_sides(ws.problem, s_e, s, -1.0)
    copy(s_e, shift.e)
    copy(s, shift.s)
    return code == CONVERGED


@kernel
def _first_mu(problem):
    """The first mu, relative to the curvature of the objective."""
    return max(MU_START * min(largest(problem.H), 1.0), LEAST_MU_START)


@kernel
def _start_elastic(ws, options, mu):
    """The x of the penalty problem with this mu, about 0, by the smoothed phase; ws.it without y, z."""
    it = ws.it
    set_penalties(ws.problem, mu, ws.system, ws.work)
    ws.system.rho[0] = RHO_START
    start_smoothed(ws, OUTWARD, BALANCE)
    run_smoothed(ws, options, max(1.0, ELASTIC_END / options.eps_abs), 1.0, NO_SHARE)
    if not largest(it.x) < FAR:
        it.x[:] = 0.0
    it.y[:] = 0.0
    it.z[:] = 0.0
    update_products(ws.pattern, ws.problem, it)


@kernel
def run_closest(ws, options, elastic):
    """Outer steps until the shifted QP is solved; ws.it and ws.shift hold it.

    elastic: whether to start with the smoothed phase rather than at ws.it, and to go back to it.
    Returns a code of `status`: CONVERGED where the shifts vanish, and are set to 0.
    """
    pattern = ws.pattern
    problem = ws.problem
    it = ws.it
    centre = ws.centre
    shift = ws.shift
    system = ws.system
    work = ws.work
    steps = ws.limits.steps
    max_steps = ws.limits.max_steps
    outer = ws.limits.outer
    abort = ws.system.abort
    rho = system.rho
    tol = work.tol
    res = work.res
    x = it.x
    centre_x = centre.x
    unit_d = problem.unit_d
    mu = _first_mu(problem)
    proximal = RHO_START
    stale = True
    first = True
    attempted = False
    idle = 0
    lowest = np.inf
    previous = np.inf
    if elastic:
        _start_elastic(ws, options, mu)
    elastic_mu = mu
    restarts = RESTARTS if elastic else 0
    allowed = max_steps[0]
    update_products(pattern, problem, it)
    _set_shift(pattern, problem, it, shift)
    measure(pattern, problem, it, shift, res)
    inner_tolerance = max(min(1.0, 0.1 * res[1]), 0.1 * tol[1])
    if steps[0] >= max_steps[0] or outer[0] >= options.max_iter:
        return OUT_OF_STEPS
    while True:
        copy_point(it, centre)
        if stale:
            set_penalties(problem, mu, system, work)
            rho[0] = proximal
            outdate_factor(system)
        set_active(problem, it.v, centre.z, work.mu, work.active)
        capped = restarts > 0 and mu < elastic_mu
        if capped:
            max_steps[0] = min(allowed, steps[0] + SUBPROBLEM_STEPS)
        solved = minimise(ws, problem, it, centre, inner_tolerance)
        max_steps[0] = allowed
        stale = False
        if capped and not solved and steps[0] < allowed:
            # Rows are exchanged one by one: the smoothed phase is better at that.
            restarts -= 1
            mu = max(RESTART * mu, MU_FLOOR)
            elastic_mu = mu
            _start_elastic(ws, options, mu)
            stale = True
            first = True
            previous = np.inf
            continue
        outer[0] += 1
        update_products(pattern, problem, it)
        size, change, pull = _set_shift(pattern, problem, it, shift)
        set_tolerances(pattern, problem, it, options, tol)
        balanced = _imbalance(pattern, problem, shift, tol[0]) <= SMALLEST
        if first or pull > SMALLEST * size or not balanced:
            # Their change says nothing before the multipliers have changed, nor does a small pull that
            # is that of small shifts.
            change = size
        first = False
        # Either the shifts vanish, or they are the smallest ones and have settled.
        unmet = min(size, max(pull, change))
        if size <= tol[0]:
            shift.e[:] = 0.0
            shift.s[:] = 0.0
            measure(pattern, problem, it, shift, res)
            if within(res, tol, options):
                return CONVERGED
            _set_shift(pattern, problem, it, shift)
        # Shifts just within the tolerance may stay, and keep the gap up, since multipliers grow along them.
        waited = idle >= DRAINING and size > VANISHED * tol[0]
        if change <= tol[0] and (waited or (pull <= tol[0] and size > tol[0])):
            # The multipliers have grown along s, and the dual residual with them by rounding. Some may
            # also have grown on rows that are met by now; there they would fall by s / mu a step.
            stale = True
            accurate = set_least_norm_multipliers(ws, options)
            if size <= tol[0] and not attempted:
                attempted = True
                shift.e[:] = 0.0
                shift.s[:] = 0.0
                if _solve_shifted(ws, options):
                    return CONVERGED
                update_products(pattern, problem, it)
                _set_shift(pattern, problem, it, shift)
            elif pull <= tol[0] and (accurate or _solve_shifted(ws, options)):
                return SOLVED_CLOSEST_PRIMAL_FEASIBLE
            # x is not accurate enough: on from there, with less cancellation.
            mu = min(RELAX * mu, MU_START)
        if abort[0] != 0:
            return ABORTED
        if steps[0] >= max_steps[0] or outer[0] >= options.max_iter:
            return OUT_OF_STEPS
        if detect_dual_infeasible(ws, options):
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
def largest_pull(pattern, qp, s_e, s_i, s_box, pull):
    """|A's_e + C's_i + s_box|_inf on the user's data `qp` (not modified). pull (n): overwritten."""
    copy(s_box, pull)
    add_transposed_product(pattern.Ap, pattern.Ai, qp.A, s_e, pull)
    add_transposed_product(pattern.Cp, pattern.Ci, qp.C, s_i, pull)
    return largest(pull)
