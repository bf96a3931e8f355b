"""Slacks and multipliers of the smoothed phase: two for each side of each stacked row."""

from __future__ import annotations

import numpy as np

from nbqp.kernels.jit import kernel
from nbqp.kernels.number import maximum, minimum, where


@kernel
def sides(lo, hi):
    """Whether a row has a lower and an upper side of the barrier: finite ones that do not coincide."""
    return (lo > -np.inf) & (lo < hi), (hi < np.inf) & (lo < hi)


@kernel
def net_multipliers(problem, barrier, it):
    """Set it.z to z_hi - z_lo, as far as there are these sides, on rows with lo < hi."""
    z = it.z
    lo = problem.lo
    hi = problem.hi
    z_hi = barrier.z_hi
    z_lo = barrier.z_lo
    for i in range(len(z)):
        below, above = sides(lo[i], hi[i])
        net = where(above, z_hi[i], 0.0) - where(below, z_lo[i], 0.0)
        z[i] = where(lo[i] < hi[i], net, z[i])


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
        below, above = sides(lo[i], hi[i])
        upper = where(above & (z_hi[i] > s_hi[i]), z_hi[i], 0.0)
        lower = where(below & (z_lo[i] > s_lo[i]), z_lo[i], 0.0)
        ratio = minimum(z_hi[i], s_hi[i]) / maximum(z_hi[i], s_hi[i])
        worst = maximum(worst, where(above, ratio, 0.0))
        ratio = minimum(z_lo[i], s_lo[i]) / maximum(z_lo[i], s_lo[i])
        worst = maximum(worst, where(below, ratio, 0.0))
        z[i] = where(lo[i] < hi[i], upper - lower, z[i])
    return worst


@kernel
def set_row_weights(problem, barrier, mu, w):
    """W of each side and w of each row; rows with lo = hi have w = mu, free ones w = inf."""
    lo = problem.lo
    hi = problem.hi
    W_lo = barrier.W_lo
    W_hi = barrier.W_hi
    s_lo = barrier.s_lo
    z_lo = barrier.z_lo
    s_hi = barrier.s_hi
    z_hi = barrier.z_hi
    for i in range(len(w)):
        below, above = sides(lo[i], hi[i])
        W_lo[i] = where(below, z_lo[i] / (s_lo[i] + mu[i] * z_lo[i]), 0.0)
        W_hi[i] = where(above, z_hi[i] / (s_hi[i] + mu[i] * z_hi[i]), 0.0)
        W = W_lo[i] + W_hi[i]
        w[i] = where(lo[i] == hi[i], mu[i], where(W > 0.0, 1.0 / W, np.inf))


@kernel
def _to_boundary(side, value, change):
    """The step at which a value gets to 0, at most 1."""
    return where(side & (change < 0.0), -value / change, 1.0)


@kernel
def step_lengths(problem, barrier, separate):
    """Primal and dual step to the boundary, at most 1; equal unless `separate`."""
    lo = problem.lo
    hi = problem.hi
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
    for i in range(len(lo)):
        below, above = sides(lo[i], hi[i])
        primal = minimum(primal, _to_boundary(below, s_lo[i], ds_lo[i]))
        primal = minimum(primal, _to_boundary(above, s_hi[i], ds_hi[i]))
        dual = minimum(dual, _to_boundary(below, z_lo[i], dz_lo[i]))
        dual = minimum(dual, _to_boundary(above, z_hi[i], dz_hi[i]))
    if not separate:
        primal = minimum(primal, dual)
        dual = primal
    return primal, dual


@kernel
def complementarity(problem, barrier, primal, dual):
    """Sum of s z over all sides after steps of the given lengths, and how many sides there are."""
    lo = problem.lo
    hi = problem.hi
    s_lo = barrier.s_lo
    z_lo = barrier.z_lo
    s_hi = barrier.s_hi
    z_hi = barrier.z_hi
    ds_lo = barrier.ds_lo
    dz_lo = barrier.dz_lo
    ds_hi = barrier.ds_hi
    dz_hi = barrier.dz_hi
    total = 0.0
    count = 0.0
    for i in range(len(lo)):
        below, above = sides(lo[i], hi[i])
        product = (s_lo[i] + primal * ds_lo[i]) * (z_lo[i] + dual * dz_lo[i])
        total += where(below, product, 0.0)
        product = (s_hi[i] + primal * ds_hi[i]) * (z_hi[i] + dual * dz_hi[i])
        total += where(above, product, 0.0)
        count += where(below, 1.0, 0.0) + where(above, 1.0, 0.0)
    return total, count


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
def step_barrier(problem, barrier, it, dz, primal, dual, failed):
    """Steps of the given lengths: slacks, multipliers of sides, and it.z of rows with lo = hi.

    Where the direction has failed there is no step, and none is remembered: it may be NaN.
    """
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
        below, above = sides(lo[i], hi[i])
        ds_lo[i] = where(failed, 0.0, ds_lo[i])
        dz_lo[i] = where(failed, 0.0, dz_lo[i])
        ds_hi[i] = where(failed, 0.0, ds_hi[i])
        dz_hi[i] = where(failed, 0.0, dz_hi[i])
        z[i] += where(failed | (lo[i] < hi[i]), 0.0, dual * dz[i])
        s_lo[i] += where(below, primal * ds_lo[i], 0.0)
        z_lo[i] += where(below, dual * dz_lo[i], 0.0)
        s_hi[i] += where(above, primal * ds_hi[i], 0.0)
        z_hi[i] += where(above, dual * dz_hi[i], 0.0)


@kernel
def forget_step(barrier):
    """No step."""
    barrier.ds_lo[:] = 0.0
    barrier.dz_lo[:] = 0.0
    barrier.ds_hi[:] = 0.0
    barrier.dz_hi[:] = 0.0
