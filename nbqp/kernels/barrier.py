"""Slacks and multipliers of the smoothed phase: two for each side of each stacked row."""

from __future__ import annotations

import numpy as np

from nbqp.kernels.jit import kernel


@kernel
def net_multipliers(problem, barrier, it):
    """Set it.z to z_hi - z_lo on rows with lo < hi."""
    z = it.z
    lo = problem.lo
    hi = problem.hi
    z_hi = barrier.z_hi
    z_lo = barrier.z_lo
    for i in range(len(z)):
        if lo[i] < hi[i]:
            z[i] = z_hi[i] - z_lo[i]


@kernel
def round_multipliers(problem, barrier, it):
    """Set it.z as `net_multipliers`, without the multipliers of sides that are less than the slack.

    Returns the largest ratio of the smaller to the larger one: 1 where it is not clear which to drop.
    """
    z = it.z
    lo = problem.lo
    hi = problem.hi
    z_hi = barrier.z_hi
    z_lo = barrier.z_lo
    s_hi = barrier.s_hi
    s_lo = barrier.s_lo
    worst = 0.0
    for i in range(len(z)):
        if lo[i] < hi[i]:
            upper = 0.0
            lower = 0.0
            if hi[i] < np.inf:
                upper = z_hi[i] if z_hi[i] > s_hi[i] else 0.0
                worst = max(worst, min(z_hi[i], s_hi[i]) / max(z_hi[i], s_hi[i]))
            if lo[i] > -np.inf:
                lower = z_lo[i] if z_lo[i] > s_lo[i] else 0.0
                worst = max(worst, min(z_lo[i], s_lo[i]) / max(z_lo[i], s_lo[i]))
            z[i] = upper - lower
    return worst


@kernel
def set_row_weights(problem, barrier, mu, w):
    """W of each side and w of each row; rows with lo = hi have w = mu, free ones w = inf."""
    problem_lo = problem.lo
    problem_hi = problem.hi
    W_lo = barrier.W_lo
    W_hi = barrier.W_hi
    s_lo = barrier.s_lo
    z_lo = barrier.z_lo
    s_hi = barrier.s_hi
    z_hi = barrier.z_hi
    for i in range(len(w)):
        lo = problem_lo[i]
        hi = problem_hi[i]
        if lo == hi:
            w[i] = mu[i]
            continue
        W_lo[i] = 1.0 / (s_lo[i] / z_lo[i] + mu[i]) if lo > -np.inf else 0.0
        W_hi[i] = 1.0 / (s_hi[i] / z_hi[i] + mu[i]) if hi < np.inf else 0.0
        W = W_lo[i] + W_hi[i]
        w[i] = 1.0 / W if W > 0.0 else np.inf


@kernel
def step_lengths(problem, barrier, separate):
    """Primal and dual step to the boundary, at most 1; equal unless `separate`."""
    problem_lo = problem.lo
    problem_hi = problem.hi
    ds_lo = barrier.ds_lo
    dz_lo = barrier.dz_lo
    ds_hi = barrier.ds_hi
    dz_hi = barrier.dz_hi
    s_lo = barrier.s_lo
    z_lo = barrier.z_lo
    s_hi = barrier.s_hi
    z_hi = barrier.z_hi
    primal = 1.0
    dual = 1.0
    for i in range(len(problem_lo)):
        lo = problem_lo[i]
        hi = problem_hi[i]
        if lo == hi:
            continue
        if lo > -np.inf:
            if ds_lo[i] < 0.0:
                primal = min(primal, -s_lo[i] / ds_lo[i])
            if dz_lo[i] < 0.0:
                dual = min(dual, -z_lo[i] / dz_lo[i])
        if hi < np.inf:
            if ds_hi[i] < 0.0:
                primal = min(primal, -s_hi[i] / ds_hi[i])
            if dz_hi[i] < 0.0:
                dual = min(dual, -z_hi[i] / dz_hi[i])
    if not separate:
        primal = min(primal, dual)
        dual = primal
    return primal, dual


@kernel
def complementarity(problem, barrier, primal, dual):
    """Sum of s z over all sides after steps of the given lengths, and how many sides there are."""
    problem_lo = problem.lo
    problem_hi = problem.hi
    s_lo = barrier.s_lo
    z_lo = barrier.z_lo
    s_hi = barrier.s_hi
    z_hi = barrier.z_hi
    ds_lo = barrier.ds_lo
    dz_lo = barrier.dz_lo
    ds_hi = barrier.ds_hi
    dz_hi = barrier.dz_hi
    total = 0.0
    sides = 0
    for i in range(len(problem_lo)):
        lo = problem_lo[i]
        hi = problem_hi[i]
        if lo == hi:
            continue
        if lo > -np.inf:
            total += (s_lo[i] + primal * ds_lo[i]) * (z_lo[i] + dual * dz_lo[i])
            sides += 1
        if hi < np.inf:
            total += (s_hi[i] + primal * ds_hi[i]) * (z_hi[i] + dual * dz_hi[i])
            sides += 1
    return total, sides


@kernel
def set_targets(problem, barrier, sigma_mu, second_order):
    """Set c = sigma mu - s z - ds dz on every side; second_order: 1, or 0 to drop the last term."""
    lo = problem.lo
    c_lo = barrier.c_lo
    c_hi = barrier.c_hi
    s_lo = barrier.s_lo
    z_lo = barrier.z_lo
    s_hi = barrier.s_hi
    z_hi = barrier.z_hi
    ds_lo = barrier.ds_lo
    dz_lo = barrier.dz_lo
    ds_hi = barrier.ds_hi
    dz_hi = barrier.dz_hi
    for i in range(len(lo)):
        c_lo[i] = sigma_mu - s_lo[i] * z_lo[i] - second_order * ds_lo[i] * dz_lo[i]
        c_hi[i] = sigma_mu - s_hi[i] * z_hi[i] - second_order * ds_hi[i] * dz_hi[i]


@kernel
def step_barrier(problem, barrier, it, dz, primal, dual):
    """Steps of the given lengths: slacks, multipliers of sides, and it.z of rows with lo = hi."""
    lo = problem.lo
    hi = problem.hi
    z = it.z
    s_lo = barrier.s_lo
    z_lo = barrier.z_lo
    s_hi = barrier.s_hi
    z_hi = barrier.z_hi
    ds_lo = barrier.ds_lo
    dz_lo = barrier.dz_lo
    ds_hi = barrier.ds_hi
    dz_hi = barrier.dz_hi
    for i in range(len(lo)):
        if lo[i] == hi[i]:
            z[i] += dual * dz[i]
            continue
        if lo[i] > -np.inf:
            s_lo[i] += primal * ds_lo[i]
            z_lo[i] += dual * dz_lo[i]
        if hi[i] < np.inf:
            s_hi[i] += primal * ds_hi[i]
            z_hi[i] += dual * dz_hi[i]


@kernel
def forget_step(barrier):
    """No step."""
    barrier.ds_lo[:] = 0.0
    barrier.dz_lo[:] = 0.0
    barrier.ds_hi[:] = 0.0
    barrier.dz_hi[:] = 0.0
