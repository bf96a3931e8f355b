"""What rounding leaves of the dual residual and the gap, mended in the user's units.

The phases work on scaled data, and stop where their residuals are rounding. A bound's multiplier of
1e8, scaled back, misses the dual residual by 1e-8 and more: it is set anew, to cancel what the other
terms come to. And where the terms of the gap reach 1e12, their rounding alone exceeds a tolerance of
1e-6, while the other residuals have room to spare. As

    gap = x'Hx + g'x + b'y + sum z_i side_i,        d gap / dx_j = s_j = 2 (Hx)_j + g_j,

adding -gap / s_j to a variable closes it, and adds no more than the j-th columns of H, A and C times
that, 1e-8 or less with terms of that size, to the other residuals. A gap too large for one variable is
first spread over all of them. Gaps that are more than rounding are left: those are a phase's work.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.csc import add_transposed_product
from nbqp.kernels.dense import axpy, dot, largest
from nbqp.kernels.jit import exact, kernel
from nbqp.kernels.residuals import exact_residuals, set_exact_dual

# Gaps are closed up to this share of their terms: the rounding of multipliers, times x, summed.
ROUNDED = 1e-10
# The share of what the other residuals may still grow by that a change may use.
ROOM = 0.5
# Spacing of doubles next to 1.
EPSILON = 2.3e-16
# The gap's tolerance has to be this many times what rounding of the changed variable leaves of it.
FINE = 10.0
# Changes, each of which is followed by exact residuals.
CHANGES = 4


@exact
def _balance_bounds(pattern, qp, x, y, z, z_box):
    """Have the multipliers of bounds, where not 0, cancel the dual residual as well as they can."""
    total = np.empty(pattern.n)
    error = np.empty(pattern.n)
    set_exact_dual(pattern, qp, x, y, z, z_box, total, error)
    for j in range(pattern.n):
        balanced = z_box[j] - (total[j] + error[j])
        if balanced * z_box[j] > 0.0:
            z_box[j] = balanced


@kernel
def _set_slopes(pattern, qp, x, z_box, slopes):
    """Fill slopes (n), 0 where x_j is at a bound, so that it stays there.

    Returns the size of x'Hx and g'x.
    """
    slopes[:] = 0.0
    add_transposed_product(pattern.Hp, pattern.Hi, qp.H, x, slopes)
    size = 0.0
    for j in range(pattern.n):
        size += abs(slopes[j] * x[j]) + abs(qp.g[j] * x[j])
        free = z_box[j] == 0.0 and qp.lb[j] < x[j] < qp.ub[j]
        slopes[j] = 2.0 * slopes[j] + qp.g[j] if free else 0.0
    return size


@kernel
def _change_one(pattern, qp, x, slopes, res, tol):
    """Close the gap by the variable that disturbs the other residuals least, if any will do."""
    chosen = -1
    lowest = ROOM
    for j in range(pattern.n):
        slope = slopes[j]
        if slope == 0.0 or not FINE * EPSILON * abs(x[j] * slope) <= tol[2]:
            continue
        change = abs(res[2] / slope)
        rows = 1.0
        rows = max(rows, largest(qp.A[pattern.Ap[j] : pattern.Ap[j + 1]]))
        rows = max(rows, largest(qp.C[pattern.Cp[j] : pattern.Cp[j + 1]]))
        columns = largest(qp.H[pattern.Hp[j] : pattern.Hp[j + 1]])
        cost = max(rows * change / (tol[0] - res[0]), columns * change / (tol[1] - res[1]))
        if cost < lowest:
            lowest = cost
            chosen = j
    if chosen >= 0:
        x[chosen] -= res[2] / slopes[chosen]
    return chosen >= 0


@kernel
def _close_gap(pattern, qp, x, y, z, z_box, s_e, s_i, s_box, res, tol):
    """Bring the gap below tol[2] by changes of x, the other residuals staying within theirs."""
    slopes = np.empty(pattern.n)
    for _ in range(CHANGES):
        if not (res[0] < tol[0] and res[1] < tol[1] and abs(res[2]) > tol[2]):
            break
        size = _set_slopes(pattern, qp, x, z_box, slopes)
        if abs(res[2]) > ROUNDED * size:
            break
        if not _change_one(pattern, qp, x, slopes, res, tol):
            total = dot(slopes, slopes)
            if total == 0.0:
                break
            axpy(x, -res[2] / total, slopes)
        exact_residuals(pattern, qp, x, y, z, z_box, s_e, s_i, s_box, res)


@kernel
def mend(pattern, qp, x, y, z, z_box, s_e, s_i, s_box, res, tol):
    """Bring the dual residual and the gap of a feasible point within their tolerances, if rounding is all.

    All in the user's units; `qp` the user's data, s_e, s_i, s_box the shifts of its sides; res (3)
    is kept up to date. Beside it x and z_box are modified.
    """
    if res[0] < tol[0] and (res[1] > tol[1] or abs(res[2]) > tol[2]):
        _balance_bounds(pattern, qp, x, y, z, z_box)
        exact_residuals(pattern, qp, x, y, z, z_box, s_e, s_i, s_box, res)
        _close_gap(pattern, qp, x, y, z, z_box, s_e, s_i, s_box, res, tol)
