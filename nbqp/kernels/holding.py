"""The end of the smoothed phase: sides that hold become equations, the others go, and a step is Newton's.

Arrays are those of one QP, or of eight, of which entries lane, lane + width, ... belong to one.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.barrier import sides
from nbqp.kernels.dense import copy
from nbqp.kernels.jit import kernel
from nbqp.kernels.residuals import (
    clear_absent_sides,
    measure,
    set_aims,
    update_products,
    worst_ratio,
)
from nbqp.kernels.smoothed import WITHIN, measure_point, take_step
from nbqp.kernels.state import copy_point

# Residuals at which the sides that hold are sought, and the ratio of slack and multiplier that tells
# which of them vanishes.
HOLD = 1e-1
CLEAR = 0.1


@kernel
def sides_are_clear(lo, hi, s_lo, z_lo, s_hi, z_hi, lane, width):
    """Whether either the slack or the multiplier of every side stands out as the one that vanishes."""
    for i in range(lane, len(lo), width):
        below, above = sides(lo[i], hi[i])
        if below and max(s_lo[i], z_lo[i]) * CLEAR < min(s_lo[i], z_lo[i]):
            return False
        if above and max(s_hi[i], z_hi[i]) * CLEAR < min(s_hi[i], z_hi[i]):
            return False
    return True


@kernel
def hold_sides(lo, hi, s_lo, z_lo, s_hi, z_hi, lane, width):
    """Turn the sides that hold into equations, and drop the others."""
    for i in range(lane, len(lo), width):
        below, above = sides(lo[i], hi[i])
        if below or above:
            upper = above and z_hi[i] > s_hi[i]
            lower = below and z_lo[i] > s_lo[i]
            side = hi[i] if upper else lo[i]
            lo[i] = side if lower or upper else -np.inf
            hi[i] = side if lower or upper else np.inf


@kernel
def finish_by_holding(ws, options):
    """Take a Newton step for the sides that hold from ws.it, a measured point of the smoothed phase.

    There is none where they are not clear. Returns whether it solves the QP: ws.best is that point then.
    Otherwise x, y and z of ws.it are as before, and its products are not. Slacks and multipliers of sides do
    not move, as there are none meanwhile. Overwritten: lo and hi of ws.norm, ws.saved, ws.system, and res,
    tol and mu of ws.work; ws.limits.steps is raised.
    """
    problem = ws.problem
    norm = ws.norm
    barrier = ws.barrier
    it = ws.it
    res = ws.work.res
    tol = ws.work.tol
    lo = problem.lo
    hi = problem.hi
    sides_of_rows = lo, hi, barrier.s_lo, barrier.z_lo, barrier.s_hi, barrier.z_hi
    if not sides_are_clear(*sides_of_rows, 0, 1):
        return False
    copy(lo, norm.lo)
    copy(hi, norm.hi)
    copy_point(it, ws.saved)
    hold_sides(*sides_of_rows, 0, 1)
    # Only errors within the tolerances will do.
    copy(tol, res)
    ws.limits.steps[0] += 1
    # Without sides a step is Newton's, in full.
    take_step(ws, 0.0, WITHIN, 0.0, 0.0)
    measure_point(ws, options, 0.0)
    copy(norm.lo, lo)
    copy(norm.hi, hi)
    # A multiplier of the wrong sign may be that of a side that is absent, where its gap would be infinite. It goes,
    # and leaves its force to the dual residual; of a side that there is the gap tells, which always counts.
    clear_absent_sides(lo, hi, it.z)
    update_products(ws.pattern, problem, it)
    measure(ws.pattern, problem, it, ws.shift, res)
    set_aims(ws.pattern, problem, it, options, tol)
    if ws.system.abort[0] == 0 and worst_ratio(res, tol, len(res)) <= 1.0:
        copy_point(it, ws.best)
        return True
    copy_point(ws.saved, it)
    return False
