"""Warm starts of a batch, eight at a time: Newton's step for the sides that hold at the user's points.

What that step makes of a side tells again whether it holds: where its row is beyond it, or its multiplier has the
sign that it should have. So sides are exchanged all at once, until none changes (the primal-dual active set
method of Hintermüller, Ito and Kunisch, 2003). QPs that want to change many, or no fewer than before, are left
to the smoothed phase, which changes all at once, from the neighbourhood of these points.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.barrier import forget_step, sides
from nbqp.kernels.dense import copy
from nbqp.kernels.feasible import (
    FAR_START,
    WARM_CHANGED,
    WARM_CHANGED_SHARE,
    drop_slack_multipliers,
    forget,
)
from nbqp.kernels.holding import hold_sides
from nbqp.kernels.jit import kernel
from nbqp.kernels.lane_problem import (
    NONE,
    ask_for_nothing,
    put_sample,
    put_start,
    sides_of_lanes,
    worst_lane_ratio,
    write_lane,
)
from nbqp.kernels.number import lanes_of, where, zeros
from nbqp.kernels.proxqp import starts_cold
from nbqp.kernels.residuals import measure, set_aims, update_products
from nbqp.kernels.smoothed import WITHIN, measure_point, take_step
from nbqp.kernels.starting import regularise
from nbqp.kernels.state import copy_point
from nbqp.kernels.status import CONVERGED, NOT_RUN
from nbqp.kernels.vector import WIDTH, splat

# Steps after which a QP is left to the smoothed phase.
STEPS = 4


@kernel
def _fill(ws, wide, batch, begin, end, members):
    """Put the next samples that have a warm start, up to eight, into lanes, their points into wide.step.

    members (WIDTH): overwritten by their numbers. Returns the first sample left.
    """
    members[:] = NONE
    k = begin
    lane = 0
    while lane < WIDTH and k < end:
        if batch.out.status[k] == NOT_RUN and not starts_cold(batch.warm, k):
            put_sample(ws, batch, k, wide, lane)
            put_start(ws, batch, k, wide.step, lane)
            members[lane] = k
            lane += 1
        k += 1
    copy(wide.problem.lo, wide.norm.lo)
    copy(wide.problem.hi, wide.norm.hi)
    return k


@kernel
def _measure_own_sides(wide, batch):
    """Residuals and aims of wide.it, whose products are up to date, about the QPs' own sides."""
    copy(wide.norm.lo, wide.problem.lo)
    copy(wide.norm.hi, wide.problem.hi)
    measure(wide.pattern, wide.problem, wide.it, wide.shift, wide.work.res)
    set_aims(wide.pattern, wide.problem, wide.it, batch.aim, wide.work.tol)


@kernel
def _leave_solved(ws, wide, batch, members):
    """Write the points that solve their QPs, and have these leave."""
    for lane in range(WIDTH):
        k = members[lane]
        if (
            k != NONE
            and worst_lane_ratio(wide.work.res, wide.work.tol, lane) <= 1.0
            and write_lane(wide, lane, ws, batch, k) <= 1.0
        ):
            batch.out.status[k] = CONVERGED
            members[lane] = NONE


@kernel
def _measure_starts(ws, wide, batch, members):
    """Set wide.it to the starts; QPs leave that these solve, or whose starts are far worse than 0.

    batch.near is set for the others.
    """
    cold_scores = np.empty(WIDTH)
    forget(wide.it)
    update_products(wide.pattern, wide.problem, wide.it)
    _measure_own_sides(wide, batch)
    for lane in range(WIDTH):
        cold_scores[lane] = worst_lane_ratio(wide.work.res, wide.work.tol, lane)
    copy_point(wide.step, wide.it)
    # Slacks first, then the forces of the multipliers that are left.
    update_products(wide.pattern, wide.problem, wide.it)
    drop_slack_multipliers(wide.problem, wide.it)
    update_products(wide.pattern, wide.problem, wide.it)
    _measure_own_sides(wide, batch)
    _leave_solved(ws, wide, batch, members)
    for lane in range(WIDTH):
        k = members[lane]
        if k != NONE:
            batch.near[k] = (
                worst_lane_ratio(wide.work.res, wide.work.tol, lane) < FAR_START * cold_scores[lane]
            )
            members[lane] = k if batch.near[k] else NONE


@kernel
def _set_sides(wide):
    """Slacks and multipliers of the QPs' own sides, which are those of wide.norm, at wide.it, of either sign."""
    lo = wide.norm.lo
    hi = wide.norm.hi
    v = wide.it.v
    z = wide.it.z
    s_lo = wide.barrier.s_lo
    s_hi = wide.barrier.s_hi
    z_lo = wide.barrier.z_lo
    z_hi = wide.barrier.z_hi
    for i in range(len(z)):
        below, above = sides(lo[i], hi[i])
        s_lo[i] = where(below, v[i] - lo[i], 1.0)
        s_hi[i] = where(above, hi[i] - v[i], 1.0)
        z_lo[i] = where(below, -z[i], 0.0)
        z_hi[i] = where(above, z[i], 0.0)


@kernel
def _count_changes(held, lo, lane):
    """Rows of a lane that hold on to something else than before: what they have as lo tells."""
    before = lanes_of(held)
    now = lanes_of(lo)
    count = 0
    for i in range(lane, len(now), WIDTH):
        count += before[i] != now[i]
    return count


@kernel
def _hold(wide, held, changed, members, first):
    """Turn the sides that hold at wide.it into equations; QPs in which too many change leave.

    held: lo of the last time, overwritten; changed (WIDTH): how many rows changed then, overwritten, unless this
    is the `first` time. Returns how many QPs stay.
    """
    _set_sides(wide)
    lo = wide.problem.lo
    most = max(WARM_CHANGED, int(WARM_CHANGED_SHARE * len(lo)))
    staying = 0
    for lane in range(WIDTH):
        if members[lane] == NONE:
            continue
        hold_sides(*sides_of_lanes(wide.problem, wide.barrier), lane, WIDTH)
        if not first:
            count = _count_changes(held, lo, lane)
            if count > most or count >= changed[lane]:
                members[lane] = NONE
                continue
            changed[lane] = count
        staying += 1
    copy(lo, held)
    return staying


@kernel
def _step(wide, batch, members):
    """Newton's step for the sides that are held, from wide.it, and what it leaves about the QPs' own sides."""
    # Only errors within the aims will do.
    copy(wide.work.tol, wide.work.res)
    for lane in range(WIDTH):
        k = members[lane]
        if k == NONE:
            ask_for_nothing(wide, lane)
        else:
            batch.out.iter[k] += 1
            batch.out.factorizations[k] += 1
    take_step(wide, 0.0, WITHIN, splat(0.0), splat(0.0))
    measure_point(wide, batch.aim, 0.0)
    _measure_own_sides(wide, batch)


@kernel
def try_warm_starts(ws, wide, batch, begin, end):
    """Solve those of the samples begin..end-1 that a few steps from their warm starts solve.

    The others stay NOT_RUN, with the steps so far in out.iter. Overwritten: batch.near, whether it is worth while to
    start at a sample's point; ws and wide, but for the rows that samples share.
    """
    members = np.empty(WIDTH, dtype=np.int64)
    changed = np.empty(WIDTH, dtype=np.int64)
    held = zeros(splat(0.0), len(wide.problem.lo))
    following = begin
    while following < end and wide.system.abort[0] == 0:
        following = _fill(ws, wide, batch, following, end, members)
        if members[0] == NONE:
            return
        regularise(wide)
        forget_step(wide.barrier)
        _measure_starts(ws, wide, batch, members)
        changed[:] = len(held)
        for step in range(STEPS):
            if _hold(wide, held, changed, members, step == 0) == 0:
                break
            _step(wide, batch, members)
            if wide.system.abort[0] != 0:
                return
            _leave_solved(ws, wide, batch, members)
