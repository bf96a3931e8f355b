"""Exact line search on the proximal augmented Lagrangian (PROX-QP, section IV.B).

Along x + t dx the merit function is convex and piecewise quadratic. Its derivative

    f(t) = a + t q + sum_i dv_i (p_i + t dv_i - clip(p_i + t dv_i)) / mu_i,    p = v + mu z_k,

is piecewise linear and increasing; `a + t q` gathers the quadratic and the equality terms. Newton's
method on f, kept inside a bracket, ends on the piece that holds the root after a few steps.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.jit import kernel

MAX_ITER = 60


@kernel
def _derivative(t, a, q, p, dv, mu, lo, hi):
    """f(t) and the slope of its piece."""
    value = a + t * q
    slope = q
    for i in range(len(p)):
        if dv[i] != 0.0:
            at = p[i] + t * dv[i]
            if at > hi[i]:
                value += dv[i] * (at - hi[i]) / mu[i]
                slope += dv[i] * dv[i] / mu[i]
            elif at < lo[i]:
                value += dv[i] * (at - lo[i]) / mu[i]
                slope += dv[i] * dv[i] / mu[i]
    return value, slope


@kernel
def exact_step(a, q, p, dv, mu, lo, hi):
    """The root t > 0 of f, or the largest step tried if f never rises to 0.

    p, dv, mu, lo, hi (m): see above, not modified. f(0) < 0 is expected; otherwise 0 comes back.
    """
    low = 0.0
    high = np.inf
    f0, slope = _derivative(0.0, a, q, p, dv, mu, lo, hi)
    if not f0 < 0.0:
        return 0.0
    t = 1.0
    for _ in range(MAX_ITER):
        value, slope = _derivative(t, a, q, p, dv, mu, lo, hi)
        if abs(value) <= -1e-14 * f0:
            return t
        if value < 0.0:
            low = t
        else:
            high = t
        step = t - value / slope if slope > 0.0 else np.inf
        if not (low < step < high):
            if high == np.inf:
                step = 10.0 * t
                if step > 1e12:
                    return t
            else:
                step = 0.5 * (low + high)
        if abs(step - t) <= 1e-15 * t:
            return step
        t = step
    return t
