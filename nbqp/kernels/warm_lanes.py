"""Warm starts of a batch, eight at a time: Newton's step for the sides that hold at the user's points.

What that step makes of a side tells again whether it holds: where its row is beyond it, or its multiplier has the
sign that it should have. So sides are exchanged all at once, until none changes (the primal-dual active set
method of Hintermueller, Ito and Kunisch, 2003). QPs that want to change many, or no fewer than before, are left
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
from nbqp.kernels.lane_problem import put_problem, write_lane
from nbqp.kernels.lanes import put
from nbqp.kernels.number import lanes_of, where, zeros
from nbqp.kernels.proxqp import starts_cold
from nbqp.kernels.residuals import clear_absent_sides, measure, set_aims, update_products
from nbqp.kernels.scaling import find_scaling, scale_point, scale_problem
from nbqp.kernels.smoothed import WITHIN, measure_point, take_step
from nbqp.kernels.starting import regularise
from nbqp.kernels.state import copy_point
from nbqp.kernels.status import CONVERGED, NOT_RUN
from nbqp.kernels.structure import sample, sample_data
from nbqp.kernels.vector import WIDTH, splat

# Steps after which a QP is left to the smoothed phase.
STEPS = 4
NONE = -1


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
def _measure_own_sides(wide, options):
    """Residuals and aims of wide.it, whose products are up to date, about the QPs' own sides."""
    copy(wide.norm.lo, wide.problem.lo)
    copy(wide.norm.hi, wide.problem.hi)
    measure(wide.pattern, wide.problem, wide.it, wide.shift, wide.work.res)
    set_aims(wide.pattern, wide.problem, wide.it, options, wide.work.tol)


@kernel
def _worst_ratio(wide, lane):
    """The largest residual of a lane, relative to its aim."""
    res = lanes_of(wide.work.res)
    tol = lanes_of(wide.work.tol)
    worst = 0.0
    for i in range(lane, len(res), WIDTH):
        ratio = res[i] / tol[i]
        worst = ratio if not ratio <= worst else worst
    return worst


@kernel
def put_start(ws, warm, k, it, lane):
    """Copy the warm start of sample k, whose scales ws.problem has, to a lane of an iterate; ws.it is overwritten."""
    x, y = sample(warm.x, k), sample(warm.y, k)
    z, z_box = sample(warm.z, k), sample(warm.z_box, k)
    scale_point(ws.pattern, ws.problem, x, y, z, z_box, ws.it)
    clear_absent_sides(ws.problem, ws.it.z)
    put(ws.it.x, it.x, lane)
    put(ws.it.y, it.y, lane)
    put(ws.it.z, it.z, lane)


@kernel
def _leave_solved(ws, wide, data, options, members, out):
    """Write the points that solve their QPs, and have these leave."""
    for lane in range(WIDTH):
        k = members[lane]
        if (
            k != NONE
            and _worst_ratio(wide, lane) <= 1.0
            and write_lane(wide, lane, ws, data, options, k, out) <= 1.0
        ):
            out.status[k] = CONVERGED
            members[lane] = NONE


@kernel
def _hold(wide, held, changed, members, first):
    """Turn the sides that hold into equations; QPs in which too many change leave. Returns how many stay."""
    problem = wide.problem
    barrier = wide.barrier
    lo, hi = lanes_of(problem.lo), lanes_of(problem.hi)
    s_lo, z_lo = lanes_of(barrier.s_lo), lanes_of(barrier.z_lo)
    s_hi, z_hi = lanes_of(barrier.s_hi), lanes_of(barrier.z_hi)
    most = max(WARM_CHANGED, int(WARM_CHANGED_SHARE * len(problem.lo)))
    staying = 0
    for lane in range(WIDTH):
        if members[lane] == NONE:
            continue
        hold_sides(lo, hi, s_lo, z_lo, s_hi, z_hi, lane, WIDTH)
        if not first:
            count = _count_changes(held, problem.lo, lane)
            if count > most or count >= changed[lane]:
                members[lane] = NONE
                continue
            changed[lane] = count
        staying += 1
    copy(problem.lo, held)
    return staying


@kernel
def _fill(ws, wide, data, scaling, warm, begin, end, own_rows, members, out):
    """Scale the next samples that have a warm start, up to eight, into lanes; returns the first one left."""
    k = begin
    lane = 0
    while lane < WIDTH and k < end:
        if out.status[k] == NOT_RUN and not starts_cold(warm, k):
            qp = sample_data(data, k)
            find_scaling(ws.pattern, scaling, k, qp.H, qp.A, qp.C, ws.system.abort, ws.problem)
            scale_problem(ws.pattern, qp, ws.problem, own_rows)
            put_problem(ws.problem, wide.problem, lane, own_rows)
            put_start(ws, warm, k, wide.step, lane)
            members[lane] = k
            lane += 1
        k += 1
    return k


@kernel
def _dismiss_far_starts(wide, members, cold_scores, near):
    """Have QPs leave whose starts are far worse than 0, and lead nowhere; set `near` of the others."""
    for lane in range(WIDTH):
        k = members[lane]
        if k == NONE:
            continue
        near[k] = _worst_ratio(wide, lane) < FAR_START * cold_scores[lane]
        if not near[k]:
            members[lane] = NONE


@kernel
def try_warm_starts(ws, wide, data, scaling, warm, aim, options, begin, end, own_rows, near, out):
    """Solve those of the samples begin..end-1 that a few steps from their warm starts solve.

    The others stay NOT_RUN, with the steps so far in out.iter. Overwritten: near (batch), whether a sample
    has a warm start that is one; ws and wide, but for the rows that samples share.
    """
    system = wide.system
    work = wide.work
    members = np.full(WIDTH, NONE)
    changed = np.empty(WIDTH, dtype=np.int64)
    cold_scores = np.empty(WIDTH)
    held = zeros(splat(0.0), len(wide.problem.lo))
    near[begin:end] = False
    following = begin
    while following < end:
        members[:] = NONE
        following = _fill(ws, wide, data, scaling, warm, following, end, own_rows, members, out)
        copy(wide.problem.lo, wide.norm.lo)
        copy(wide.problem.hi, wide.norm.hi)
        changed[:] = len(held)
        regularise(wide)
        forget_step(wide.barrier)
        forget(wide.it)
        update_products(wide.pattern, wide.problem, wide.it)
        _measure_own_sides(wide, aim)
        for lane in range(WIDTH):
            cold_scores[lane] = _worst_ratio(wide, lane)
        copy_point(wide.step, wide.it)
        update_products(wide.pattern, wide.problem, wide.it)
        drop_slack_multipliers(wide.problem, wide.it)
        update_products(wide.pattern, wide.problem, wide.it)
        _measure_own_sides(wide, aim)
        _leave_solved(ws, wide, data, options, members, out)
        _dismiss_far_starts(wide, members, cold_scores, near)
        for step in range(STEPS):
            _set_sides(wide)
            if _hold(wide, held, changed, members, step == 0) == 0:
                break
            # Only errors within the aims will do; what fills lanes without a QP is done with at once.
            copy(work.tol, work.res)
            res = lanes_of(work.res)
            for lane in range(WIDTH):
                k = members[lane]
                if k == NONE:
                    res[lane::WIDTH] = np.inf
                else:
                    out.iter[k] += 1
                    out.factorizations[k] += 1
            take_step(wide, 0.0, WITHIN, splat(0.0), splat(0.0))
            if system.abort[0] != 0:
                return
            measure_point(wide, aim, 0.0)
            _measure_own_sides(wide, aim)
            _leave_solved(ws, wide, data, options, members, out)
