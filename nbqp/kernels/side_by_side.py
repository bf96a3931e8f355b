"""Eight QPs of a batch side by side, each in a lane of vectors: the smoothed phase and its end.

Steps are those of `smoothed`, on vectors, after those of `warm_lanes` where there are warm starts. Where the
sides that hold stand out, the last one is Newton's for these sides: the QP is given them as equations, and loses
the others. What does not end so is left to `proxqp`. A lane whose QP has ended takes up the next one, which has
been started together with others.

No QP feels its neighbours: what `solve_lanes_range` makes of it is the same, bit for bit, whoever
they are.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.dense import copy
from nbqp.kernels.feasible import LEAST_LOOSE, TIGHTER
from nbqp.kernels.holding import HOLD, hold_sides, sides_are_clear
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.lane_problem import (
    NONE,
    Batch,
    ask_for_nothing,
    put_sample,
    put_start,
    share_rows,
    sides_of_lanes,
    worst_lane_ratio,
    write_lane,
    write_start,
)
from nbqp.kernels.lanes import move, move_iterate
from nbqp.kernels.number import lanes_of, zeros
from nbqp.kernels.proxqp import AIM, aim_at
from nbqp.kernels.smoothed import WITHIN, measure_point, take_step
from nbqp.kernels.starting import BALANCE, OUTWARD, regularise, restart_smoothed, start_smoothed
from nbqp.kernels.state import new_workspace
from nbqp.kernels.status import CONVERGED, NOT_RUN
from nbqp.kernels.struct import struct
from nbqp.kernels.structure import (
    DataReference,
    EntriesReference,
    FactorReference,
    Flags,
    Floats,
    Ints,
    OutputReference,
    PatternReference,
    PointReference,
    ScalingReference,
    shares_matrices,
)
from nbqp.kernels.vector import WIDTH, load, splat, store
from nbqp.kernels.warm_lanes import try_warm_starts

# Steps after which a QP is left to `proxqp`, or after more than so many in which no residual has improved
# on its lowest by a tenth.
MOST_STEPS = 30
PATIENCE = 8


@struct
class Lanes:
    """What is known of the QP in each lane (WIDTH), and a copy of what a last step may spoil."""

    sample: Ints  # NONE where there is no QP
    idle: Ints  # steps without progress
    holding: Flags  # whether it has its active sides as equations
    loose: Floats  # multiple of the tolerances below which these are sought
    total: Floats  # what `measure_point` has returned
    count: Floats
    kept_total: Floats
    kept_count: Floats
    kept_res: Floats  # vectors, as the next
    kept_tol: Floats


@struct
class Queue:
    """QPs that have been started, the last of which enters a lane first."""

    sample: Ints  # (WIDTH,)
    near: Floats  # (WIDTH,) 1 where it starts at the user's point, else 0: a vector that selects
    total: Floats  # (WIDTH,) what `measure_point` has returned
    count: Floats
    length: Ints  # (1,)
    following: Ints  # (1,) the first sample that has not been looked at


@kernel
def _new_queue(begin):
    return Queue(
        np.full(WIDTH, NONE),
        np.zeros(WIDTH),
        np.zeros(WIDTH),
        np.zeros(WIDTH),
        np.zeros(1, dtype=np.int64),
        np.full(1, begin),
    )


@kernel
def _new_lanes():
    vector = splat(0.0)
    return Lanes(
        np.full(WIDTH, NONE),
        np.zeros(WIDTH, dtype=np.int64),
        np.zeros(WIDTH, dtype=np.bool_),
        np.zeros(WIDTH),
        np.zeros(WIDTH),
        np.zeros(WIDTH),
        np.zeros(WIDTH),
        np.zeros(WIDTH),
        zeros(vector, 3),
        zeros(vector, 3),
    )


@kernel
def _move_qp(waiting, lane, wide, into, with_rows):
    """Move a QP that has been started, its point and what has been measured of it, to another lane."""
    problem = waiting.problem
    target = wide.problem
    move(problem.H, lane, target.H, into)
    if with_rows:
        move(problem.A, lane, target.A, into)
        move(problem.C, lane, target.C, into)
    move(problem.g, lane, target.g, into)
    move(problem.b, lane, target.b, into)
    move(problem.lo, lane, target.lo, into)
    move(problem.hi, lane, target.hi, into)
    move(problem.lo, lane, wide.norm.lo, into)
    move(problem.hi, lane, wide.norm.hi, into)
    move(problem.D, lane, target.D, into)
    move(problem.E, lane, target.E, into)
    move(problem.F, lane, target.F, into)
    move(problem.unit_e, lane, target.unit_e, into)
    move(problem.unit, lane, target.unit, into)
    move(problem.unit_d, lane, target.unit_d, into)
    move(problem.cost, lane, target.cost, into)
    move_iterate(waiting.it, lane, wide.it, into)
    move(waiting.barrier.s_lo, lane, wide.barrier.s_lo, into)
    move(waiting.barrier.z_lo, lane, wide.barrier.z_lo, into)
    move(waiting.barrier.s_hi, lane, wide.barrier.s_hi, into)
    move(waiting.barrier.z_hi, lane, wide.barrier.z_hi, into)
    # Steps that start at 0: what a lane held before may be infinite, and 0 times that is no number.
    move(waiting.barrier.ds_lo, lane, wide.barrier.ds_lo, into)
    move(waiting.barrier.dz_lo, lane, wide.barrier.dz_lo, into)
    move(waiting.barrier.ds_hi, lane, wide.barrier.ds_hi, into)
    move(waiting.barrier.dz_hi, lane, wide.barrier.dz_hi, into)
    move(waiting.system.rho, lane, wide.system.rho, into)
    move(waiting.system.mu_e, lane, wide.system.mu_e, into)
    move(waiting.work.mu, lane, wide.work.mu, into)
    move(waiting.work.res, lane, wide.work.res, into)
    move(waiting.work.tol, lane, wide.work.tol, into)
    move(waiting.work.lowest, lane, wide.work.lowest, into)


@kernel
def _hold_active_sides(wide, lane, lanes):
    """Turn the sides that hold into equations and drop the others; what the next step changes is kept.

    The QP's own sides are those of wide.norm.
    """
    hold_sides(*sides_of_lanes(wide.problem, wide.barrier), lane, WIDTH)
    move_iterate(wide.it, lane, wide.saved, lane)
    move(wide.work.res, lane, lanes.kept_res, lane)
    move(wide.work.tol, lane, lanes.kept_tol, lane)
    # Only errors within the tolerances will do.
    move(wide.work.tol, lane, wide.work.res, lane)
    lanes.kept_total[lane] = lanes.total[lane]
    lanes.kept_count[lane] = lanes.count[lane]
    # Without sides a step is Newton's, in full.
    lanes.count[lane] = 0.0
    lanes.holding[lane] = True


@kernel
def _go_back(wide, lane, lanes):
    """Undo `_hold_active_sides` and the step since; the next attempt is at a tighter tolerance.

    Slacks and multipliers of sides have not moved, and rho and mu are not worse for having been adapted.
    """
    move(wide.norm.lo, lane, wide.problem.lo, lane)
    move(wide.norm.hi, lane, wide.problem.hi, lane)
    move_iterate(wide.saved, lane, wide.it, lane)
    move(lanes.kept_res, lane, wide.work.res, lane)
    move(lanes.kept_tol, lane, wide.work.tol, lane)
    lanes.total[lane] = lanes.kept_total[lane]
    lanes.count[lane] = lanes.kept_count[lane]
    lanes.loose[lane] = max(LEAST_LOOSE, TIGHTER * lanes.loose[lane])


@kernel
def _note_progress(wide, lane, lanes):
    """Update for how many steps no residual of a lane has improved on its lowest."""
    res = lanes_of(wide.work.res)
    lowest = lanes_of(wide.work.lowest)
    lanes.idle[lane] += 1
    for i in range(lane, len(res), WIDTH):
        if res[i] < 0.9 * lowest[i]:
            lowest[i] = res[i]
            lanes.idle[lane] = 0


@kernel
def _judge(ws, wide, lane, lanes, batch, abort):
    """After a step: what becomes of the QP in a lane, which may leave it."""
    out = batch.out
    k = lanes.sample[lane]
    out.iter[k] += 1
    out.factorizations[k] += 1
    worst = 0.0
    if lanes.holding[lane]:
        if write_lane(wide, lane, ws, batch, k) <= 1.0:
            out.status[k] = CONVERGED
            lanes.sample[lane] = NONE
            return
        lanes.holding[lane] = False
        _go_back(wide, lane, lanes)
    else:
        _note_progress(wide, lane, lanes)
        worst = worst_lane_ratio(wide.work.res, wide.work.tol, lane)
        if worst <= lanes.loose[lane] and sides_are_clear(
            *sides_of_lanes(wide.problem, wide.barrier), lane, WIDTH
        ):
            _hold_active_sides(wide, lane, lanes)
    stuck = lanes.idle[lane] > PATIENCE or out.iter[k] >= MOST_STEPS or not worst < np.inf
    if stuck or abort[0] != 0:
        # What there is, should the time be over before another kernel takes it up.
        write_lane(wide, lane, ws, batch, k)
        lanes.sample[lane] = NONE


@kernel
def _measure(wide, options, total, count):
    """`measure_point`, into arrays of eight."""
    sum_sz, number = measure_point(wide, options, 0.0)
    store(total, 0, sum_sz)
    store(count, 0, number)


@kernel
def _start_near(waiting, queue):
    """Start those of the queue that are near the user's points, which `saved` has, there instead."""
    some = False
    for lane in range(queue.length[0]):
        if queue.near[lane] > 0.0:
            some = True
            move(waiting.saved.x, lane, waiting.it.x, lane)
            move(waiting.saved.y, lane, waiting.it.y, lane)
            move(waiting.saved.z, lane, waiting.it.z, lane)
    if some:
        restart_smoothed(waiting, load(queue.near, 0) > 0.0)


@kernel
def _fill(ws, waiting, queue, batch, end):
    """Scale the next QPs, up to eight, start the smoothed phase of all, and measure their first points.

    Those that are near the user's points start there.
    """
    while queue.length[0] < WIDTH and queue.following[0] < end:
        k = queue.following[0]
        queue.following[0] += 1
        if batch.out.status[k] != NOT_RUN:
            continue
        place = queue.length[0]
        put_sample(ws, batch, k, waiting, place)
        queue.sample[place] = k
        queue.near[place] = 1.0 if batch.near[k] else 0.0
        if batch.near[k]:
            put_start(ws, batch, k, waiting.saved, place)
        queue.length[0] += 1
    if queue.length[0] > 0:
        regularise(waiting)
        start_smoothed(waiting, OUTWARD, BALANCE)
        if waiting.system.abort[0] != 0:
            # They have no first points.
            queue.length[0] = 0
            return
        _start_near(waiting, queue)
        _measure(waiting, batch.aim, queue.total, queue.count)
        waiting.work.lowest[:] = np.inf


@kernel
def _occupy(queue, place, lanes, lane, loose, out):
    """Note of a QP of the queue that it is in a lane."""
    k = queue.sample[place]
    lanes.sample[lane] = k
    lanes.total[lane] = queue.total[place]
    lanes.count[lane] = queue.count[place]
    lanes.idle[lane] = 0
    lanes.holding[lane] = False
    lanes.loose[lane] = loose
    out.factorizations[k] += 1


@kernel
def _start_in_place(ws, wide, queue, lanes, batch, end, loose):
    """Start the first QPs in the lanes themselves, and empty the queue."""
    _fill(ws, wide, queue, batch, end)
    copy(wide.problem.lo, wide.norm.lo)
    copy(wide.problem.hi, wide.norm.hi)
    for lane in range(queue.length[0]):
        _occupy(queue, lane, lanes, lane, loose, batch.out)
    queue.length[0] = 0


@kernel
def _enter(waiting, queue, wide, lane, lanes, loose, batch):
    """Move the last QP of the queue to a lane."""
    queue.length[0] -= 1
    place = queue.length[0]
    _move_qp(waiting, place, wide, lane, not shares_matrices(batch.scaling))
    _occupy(queue, place, lanes, lane, loose, batch.out)


@entry
def solve_lanes_range(
    pattern_values,
    factor_values,
    entries_values,
    data,
    scaling,
    warm,
    options,
    abort,
    begin,
    end,
    out,
):
    """Solve those of the samples begin..end-1 that a few steps from a warm start or the smoothed phase solve.

    Samples that are not solved stay NOT_RUN, with the steps so far in out.iter, for `proxqp.solve_range`,
    which takes the same arguments.
    """
    if begin == end:
        # An empty batch has no first sample, whose matrices all could share.
        return
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    ws = new_workspace(0.0, pattern, factor, entries, abort)
    wide = new_workspace(splat(0.0), pattern, factor, entries, abort)
    lanes = _new_lanes()
    queue = _new_queue(begin)
    batch = Batch(
        DataReference(*data),
        ScalingReference(*scaling),
        PointReference(*warm),
        np.zeros(len(out.status), dtype=np.bool_),
        options,
        aim_at(options, AIM, options.gap_rounding),
        OutputReference(*out),
    )
    loose = max(LEAST_LOOSE, HOLD / options.eps_abs)
    share_rows(ws, batch, wide)
    if len(warm.x) > 0:
        try_warm_starts(ws, wide, batch, begin, end)
    _start_in_place(ws, wide, queue, lanes, batch, end, loose)
    waiting = wide
    if queue.following[0] < end:
        waiting = new_workspace(splat(0.0), pattern, factor, entries, abort)
        share_rows(ws, batch, waiting)
    while True:
        used = 0
        for lane in range(WIDTH):
            if lanes.sample[lane] == NONE:
                if queue.length[0] == 0 and abort[0] == 0:
                    _fill(ws, waiting, queue, batch, end)
                if queue.length[0] > 0:
                    _enter(waiting, queue, wide, lane, lanes, loose, batch)
                else:
                    ask_for_nothing(wide, lane)
            used += lanes.sample[lane] != NONE
        if used == 0:
            break
        take_step(wide, 0.0, WITHIN, load(lanes.total, 0), load(lanes.count, 0))
        _measure(wide, batch.aim, lanes.total, lanes.count)
        for lane in range(WIDTH):
            if lanes.sample[lane] != NONE:
                _judge(ws, wide, lane, lanes, batch, abort)
    if abort[0] != 0:
        for k in range(begin, end):
            # Steps from a warm start were in vain, and no lane has taken it up.
            if out.status[k] == NOT_RUN and out.iter[k] > 0 and np.isnan(out.residuals[k, 0]):
                write_start(ws, batch, k)
