"""First points of the smoothed phase: Mehrotra's, and those next to a point that is known."""

from __future__ import annotations

import numpy as np

from nbqp.kernels.barrier import forget_step, sides
from nbqp.kernels.dense import copy
from nbqp.kernels.jit import kernel
from nbqp.kernels.kkt import factor_system, solve_system
from nbqp.kernels.number import maximum, minimum, where
from nbqp.kernels.residuals import update_products

# First weights of the proximal terms, small since their centre is the iterate itself and the barrier
# holds the rest.
RHO_START = 1e-8
MU_START = 1e-8
# Residual of the first point, relative to its right-hand side.
START_TOLERANCE = 1e-11
# Mehrotra's shifts of the first slacks and multipliers, smaller than his, which `closest` has: that saves half a step
# of eight or nine on Sudoku and dense QPs. And the least that they come to where the least-squares point meets
# every side or has no multiplier at all.
OUTWARD = 1.1
BALANCE = 0.1
LEAST_START = 1e-2
# The least slacks and multipliers of a warm start.
INTERIOR = 0.1


@kernel
def regularise(ws):
    """Set the first rho and mu of a phase that solves the QP itself."""
    ws.system.rho[0] = RHO_START
    ws.system.mu_e[:] = MU_START
    ws.work.mu[:] = MU_START


@kernel
def _least_squares_point(ws):
    """Set ws.it to the least-squares point of the rows, multipliers included, with its products.

    It is left as it is where the solve is aborted.
    """
    pattern = ws.pattern
    problem = ws.problem
    it = ws.it
    system = ws.system
    lo = problem.lo
    hi = problem.hi
    b = problem.b
    g = problem.g
    mu = ws.work.mu
    w = system.w
    r1 = system.r1
    r2 = system.r2
    r3 = system.r3
    for i in range(len(lo)):
        free = (lo[i] == -np.inf) & (hi[i] == np.inf)
        w[i] = where(free, np.inf, where(lo[i] == hi[i], mu[i], 1.0))
    factor_system(pattern, ws.factor, ws.entries, problem.H, problem.A, problem.C, system)
    if system.abort[0] != 0:
        return
    for j in range(pattern.n):
        r1[j] = -g[j]
    for i in range(pattern.n_eq):
        r2[i] = b[i]
    for i in range(len(lo)):
        # The point of the row's interval next to 0.
        r3[i] = minimum(maximum(0.0, lo[i]), hi[i])
    solve_system(pattern, ws.factor, problem.H, problem.A, problem.C, system, START_TOLERANCE)
    copy(system.dx, it.x)
    copy(system.dy, it.y)
    copy(system.dz, it.z)
    update_products(pattern, problem, it)


@kernel
def _split_point(problem, it, barrier):
    """Slacks and multipliers of the sides at `it`; returns the least of each, infinity for none."""
    lo = problem.lo
    hi = problem.hi
    v = it.v
    z = it.z
    s_lo = barrier.s_lo
    s_hi = barrier.s_hi
    z_lo = barrier.z_lo
    z_hi = barrier.z_hi
    low_s = np.inf
    low_z = np.inf
    for i in range(len(lo)):
        below, above = sides(lo[i], hi[i])
        s_lo[i] = where(below, v[i] - lo[i], 0.0)
        s_hi[i] = where(above, hi[i] - v[i], 0.0)
        # Between two sides each takes the sign that is its own.
        z_lo[i] = where(below, where(above, maximum(-z[i], 0.0), -z[i]), 0.0)
        z_hi[i] = where(above, where(below, maximum(z[i], 0.0), z[i]), 0.0)
        low_s = minimum(low_s, where(below, s_lo[i], np.inf))
        low_s = minimum(low_s, where(above, s_hi[i], np.inf))
        low_z = minimum(low_z, where(below, z_lo[i], np.inf))
        low_z = minimum(low_z, where(above, z_hi[i], np.inf))
    return low_s, low_z


@kernel
def _shift_sides(problem, barrier, shift_s, shift_z):
    """Add shifts to slacks and multipliers of all sides; returns their sums and that of s z.

    An infinite side has no multiplier: its z stays 0, and its slack means nothing.
    """
    lo = problem.lo
    hi = problem.hi
    s_lo = barrier.s_lo
    s_hi = barrier.s_hi
    z_lo = barrier.z_lo
    z_hi = barrier.z_hi
    sum_s = 0.0
    sum_z = 0.0
    sum_sz = 0.0
    for i in range(len(lo)):
        below, above = sides(lo[i], hi[i])
        s_lo[i] += shift_s
        s_hi[i] += shift_s
        z_lo[i] += where(below, shift_z, 0.0)
        z_hi[i] += where(above, shift_z, 0.0)
        sum_s += where(below, s_lo[i], 0.0) + where(above, s_hi[i], 0.0)
        sum_z += z_lo[i] + z_hi[i]
        sum_sz += s_lo[i] * z_lo[i] + s_hi[i] * z_hi[i]
    return sum_s, sum_z, sum_sz


@kernel
def start_smoothed(ws, outward, balance):
    """Mehrotra's starting point: least squares on the rows, then shifted into the interior.

    outward: multiple of what takes slacks and multipliers to 0; balance: share of their mean product that both get
    besides. The rho and mu of ws.system and ws.work are set before.
    """
    problem = ws.problem
    barrier = ws.barrier
    forget_step(barrier)
    _least_squares_point(ws)
    low_s, low_z = _split_point(problem, ws.it, barrier)
    outward_s = maximum(-outward * low_s, 0.0)
    outward_z = maximum(-outward * low_z, 0.0)
    sum_s, sum_z, sum_sz = _shift_sides(problem, barrier, outward_s, outward_z)
    balance_s = where(sum_z > 0.0, balance * sum_sz / sum_z, 0.0)
    balance_z = where(sum_s > 0.0, balance * sum_sz / sum_s, 0.0)
    _shift_sides(problem, barrier, maximum(balance_s, LEAST_START), maximum(balance_z, LEAST_START))


@kernel
def restart_smoothed(ws, chosen):
    """Start at ws.it, with slacks and multipliers of at least INTERIOR: sides that hold may change.

    chosen: whether to, or which of eight do; slacks and multipliers of the others stay.
    """
    problem = ws.problem
    it = ws.it
    barrier = ws.barrier
    lo = problem.lo
    hi = problem.hi
    v = it.v
    z = it.z
    s_lo = barrier.s_lo
    s_hi = barrier.s_hi
    z_lo = barrier.z_lo
    z_hi = barrier.z_hi
    forget_step(barrier)
    update_products(ws.pattern, problem, it)
    for i in range(len(z)):
        below, above = sides(lo[i], hi[i])
        changes = chosen & (lo[i] < hi[i])
        # As in `start_smoothed`, an infinite side has z = 0.
        slack = where(below, maximum(v[i] - lo[i], INTERIOR), INTERIOR)
        s_lo[i] = where(changes, slack, s_lo[i])
        slack = where(above, maximum(hi[i] - v[i], INTERIOR), INTERIOR)
        s_hi[i] = where(changes, slack, s_hi[i])
        z_lo[i] = where(changes, where(below, maximum(-z[i], INTERIOR), 0.0), z_lo[i])
        z_hi[i] = where(changes, where(above, maximum(z[i], INTERIOR), 0.0), z_hi[i])
