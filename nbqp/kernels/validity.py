"""Whether the values of QPs are ones that a solve can start from."""

from __future__ import annotations

import numpy as np

from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.structure import sample

INFINITE_BOUND = 1e18
"""A bound of at least this magnitude is infinite."""


@kernel
def _all_finite(values):
    for k in range(len(values)):
        row = values[k]
        for i in range(len(row)):
            if not abs(row[i]) < np.inf:
                return False
    return True


@kernel
def _make_infinite(sides):
    """Replace the values from INFINITE_BOUND on."""
    for k in range(len(sides)):
        row = sides[k]
        for i in range(len(row)):
            if abs(row[i]) >= INFINITE_BOUND:
                row[i] = np.copysign(np.inf, row[i])


@kernel
def _all_between(low, high):
    """Whether low <= high everywhere, with something in between."""
    empty = len(low) == 0 or len(high) == 0
    for k in range(0 if empty else max(len(low), len(high))):
        lower = sample(low, k)
        upper = sample(high, k)
        for i in range(len(lower)):
            # Not so for NaN either.
            if not (lower[i] <= upper[i] and lower[i] < np.inf and upper[i] > -np.inf):
                return False
    return True


@entry
def settle(data):
    """Make sides of a magnitude from INFINITE_BOUND on infinite; returns whether all values are good.

    data: `Data`, of which l, u, lb and ub may be modified.
    """
    _make_infinite(data.l)
    _make_infinite(data.u)
    _make_infinite(data.lb)
    _make_infinite(data.ub)
    return (
        _all_finite(data.H)
        and _all_finite(data.g)
        and _all_finite(data.A)
        and _all_finite(data.b)
        and _all_finite(data.C)
        and _all_between(data.l, data.u)
        and _all_between(data.lb, data.ub)
    )
