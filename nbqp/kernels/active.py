"""Which rows of a QP hold at a solution, and on which side: derivatives rest on that alone."""

from __future__ import annotations

import numpy as np

from nbqp.kernels.csc import add_product
from nbqp.kernels.dense import largest
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.structure import sample

# What an inequality row or a bound does at a solution: it holds on to a side, it is inactive, with
# one side nearer than the other, both its sides coincide, or both are infinite.
LOWER = -1
UPPER = 1
NEAR_LOWER = -2
NEAR_UPPER = 2
BOTH = 3
ABSENT = 0
# A row of a closest feasible QP whose side is shifted.
VIOLATED_LOWER = -4
VIOLATED_UPPER = 4

# Of a sample whose largest shift is near the tolerance for sides, shifts above this share of the largest
# one are shifts too; otherwise those above the tolerance, below which the accuracy of x makes some.
SHIFTED = 0.1

# A multiplier below this share of the distance to its side counts as none.
NEGLIGIBLE_SHARE = 1e-6


@kernel
def _side(value, low, high, z, s, tolerance, shifted):
    """The side that a row holds on to: Pi_1 = 1{[t]_- + z >= 0}, t = v - side.

    At a solution t or z is 0. Unless z is next to nothing beside it, that is t, however large a loose
    tolerance or the units have left it; without z, the nearer side counts where |t| is within `tolerance`.
    value: of the row, less its shift s, which is one above `shifted`.
    """
    if low == high:
        return BOTH
    if low == -np.inf and high == np.inf:
        return ABSENT
    if s > shifted:
        return VIOLATED_UPPER
    if s < -shifted:
        return VIOLATED_LOWER
    to_low = value - low
    to_high = high - value
    if z > 0.0 and z >= NEGLIGIBLE_SHARE * to_high:
        return UPPER
    if z < 0.0 and -z >= NEGLIGIBLE_SHARE * to_low:
        return LOWER
    if to_high < to_low:
        return UPPER if tolerance >= to_high else NEAR_UPPER
    return LOWER if tolerance >= to_low else NEAR_LOWER


@entry
def active_sides(pattern, data, point, shifts, tolerance, side, side_box):
    """Sides of all samples: side (batch, n_in), side_box (batch, n), int64, are overwritten.

    data: `Data`; point: `Point`; shifts: `Shifts` of the samples; tolerance (batch): not modified.

    A row that is weakly active (t = 0 = z, up to tolerance[k]) counts as active.
    """
    n_in = pattern.n_in
    value = np.empty(n_in)
    for k in range(len(side_box)):
        C = sample(data.C, k)
        x = point.x[k]
        size = max(largest(shifts.s_e[k]), largest(shifts.s_i[k]), largest(shifts.s_box[k]))
        shifted = min(tolerance[k], SHIFTED * size)
        for i in range(n_in):
            value[i] = -shifts.s_i[k, i]
        add_product(pattern.Cp, pattern.Ci, C, x, value)
        l = sample(data.l, k)
        u = sample(data.u, k)
        lb = sample(data.lb, k)
        ub = sample(data.ub, k)
        for i in range(n_in):
            s = shifts.s_i[k, i]
            side[k, i] = _side(value[i], l[i], u[i], point.z[k, i], s, tolerance[k], shifted)
        for j in range(pattern.n):
            s = shifts.s_box[k, j]
            side_box[k, j] = _side(
                x[j] - s, lb[j], ub[j], point.z_box[k, j], s, tolerance[k], shifted
            )


@kernel
def may_shift(side):
    """Whether the row belongs to V (see `adjoint`): its sides coincide, or one is shifted."""
    return side == BOTH or side == VIOLATED_LOWER or side == VIOLATED_UPPER


@kernel
def is_active(side):
    """Whether the row is an equation of the system of derivatives."""
    return side == LOWER or side == UPPER or may_shift(side)
