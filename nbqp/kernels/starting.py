"""First points of the smoothed phase: Mehrotra's, and those next to a point that is known."""

from __future__ import annotations

import numpy as np

from nbqp.kernels.barrier import forget_step
from nbqp.kernels.dense import copy
from nbqp.kernels.jit import kernel
from nbqp.kernels.kkt import factor_system, solve_system
from nbqp.kernels.residuals import update_products

# First weights of the proximal terms, small since their centre is the iterate itself and the barrier
# holds the rest.
RHO_START = 1e-8
MU_START = 1e-9
# Residual of the first point, relative to its right-hand side.
START_TOLERANCE = 1e-11
# Mehrotra's shifts of the first slacks and multipliers, and the least that they come to where the
# least-squares point meets every side or has no multiplier at all.
OUTWARD = 1.5
BALANCE = 0.5
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
def start_smoothed(ws):
    """Mehrotra's starting point: least squares on the rows, then shifted into the interior.

    The rho and mu of ws.system and ws.work are set before.
    """
    pattern = ws.pattern
    problem = ws.problem
    it = ws.it
    system = ws.system
    barrier = ws.barrier
    problem_lo = problem.lo
    problem_hi = problem.hi
    H = problem.H
    A = problem.A
    C = problem.C
    b = problem.b
    g = problem.g
    mu = ws.work.mu
    w = system.w
    r1 = system.r1
    r2 = system.r2
    r3 = system.r3
    it_z = it.z
    v = it.v
    s_lo = barrier.s_lo
    s_hi = barrier.s_hi
    z_lo = barrier.z_lo
    z_hi = barrier.z_hi
    m = len(problem_lo)
    forget_step(barrier)
    for i in range(m):
        free = problem_lo[i] == -np.inf and problem_hi[i] == np.inf
        w[i] = np.inf if free else 1.0
        if problem_lo[i] == problem_hi[i]:
            w[i] = mu[i]
    factor_system(pattern, ws.factor, ws.entries, H, A, C, system)
    for j in range(pattern.n):
        r1[j] = -g[j]
    for i in range(pattern.n_eq):
        r2[i] = b[i]
    for i in range(m):
        # The point of the row's interval next to 0.
        r3[i] = min(max(0.0, problem_lo[i]), problem_hi[i])
    solve_system(pattern, ws.factor, H, A, C, system, START_TOLERANCE)
    copy(system.dx, it.x)
    copy(system.dy, it.y)
    copy(system.dz, it_z)
    update_products(pattern, problem, it)
    low_s = np.inf
    low_z = np.inf
    for i in range(m):
        lo = problem_lo[i]
        hi = problem_hi[i]
        z = it_z[i]
        if lo == hi:
            continue
        if lo > -np.inf:
            s_lo[i] = v[i] - lo
            z_lo[i] = -z if hi == np.inf else max(-z, 0.0)
            low_s = min(low_s, s_lo[i])
            low_z = min(low_z, z_lo[i])
        if hi < np.inf:
            s_hi[i] = hi - v[i]
            z_hi[i] = z if lo == -np.inf else max(z, 0.0)
            low_s = min(low_s, s_hi[i])
            low_z = min(low_z, z_hi[i])
    shift_s = max(-OUTWARD * low_s, 0.0)
    shift_z = max(-OUTWARD * low_z, 0.0)
    sum_s = 0.0
    sum_z = 0.0
    sum_sz = 0.0
    for i in range(m):
        if problem_lo[i] == problem_hi[i]:
            continue
        if problem_lo[i] > -np.inf:
            s_lo[i] += shift_s
            z_lo[i] += shift_z
            sum_s += s_lo[i]
            sum_z += z_lo[i]
            sum_sz += s_lo[i] * z_lo[i]
        if problem_hi[i] < np.inf:
            s_hi[i] += shift_s
            z_hi[i] += shift_z
            sum_s += s_hi[i]
            sum_z += z_hi[i]
            sum_sz += s_hi[i] * z_hi[i]
    shift_s = BALANCE * sum_sz / sum_z if sum_z > 0.0 else 0.0
    shift_z = BALANCE * sum_sz / sum_s if sum_s > 0.0 else 0.0
    shift_s = max(shift_s, LEAST_START)
    shift_z = max(shift_z, LEAST_START)
    for i in range(m):
        # An infinite side has no multiplier: its z stays 0, and its slack means nothing.
        s_lo[i] += shift_s
        s_hi[i] += shift_s
        z_lo[i] = z_lo[i] + shift_z if problem_lo[i] > -np.inf else 0.0
        z_hi[i] = z_hi[i] + shift_z if problem_hi[i] < np.inf else 0.0


@kernel
def restart_smoothed(ws):
    """Start at ws.it, with slacks and multipliers of at least INTERIOR: sides that hold may change."""
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
        if lo[i] < hi[i]:
            # As in `start_smoothed`, an infinite side has z = 0.
            s_lo[i] = max(v[i] - lo[i], INTERIOR) if lo[i] > -np.inf else INTERIOR
            s_hi[i] = max(hi[i] - v[i], INTERIOR) if hi[i] < np.inf else INTERIOR
            z_lo[i] = max(-z[i], INTERIOR) if lo[i] > -np.inf else 0.0
            z_hi[i] = max(z[i], INTERIOR) if hi[i] < np.inf else 0.0
