"""The QPs of a batch in lanes: scaled and put there, started, and their points written as results."""

from __future__ import annotations

import numpy as np

from nbqp.kernels.dense import copy
from nbqp.kernels.jit import kernel
from nbqp.kernels.lanes import put, put_scales, spread, take, take_scales
from nbqp.kernels.number import lanes_of
from nbqp.kernels.proxqp import load_start
from nbqp.kernels.residuals import (
    clear_absent_sides,
    exact_residuals,
    set_tolerances,
    worst_ratio,
)
from nbqp.kernels.scaling import (
    copy_scaling,
    find_scaling,
    scale_problem,
    scale_rows,
    unscale_point,
)
from nbqp.kernels.state import Options
from nbqp.kernels.struct import struct
from nbqp.kernels.structure import (
    DataReference,
    Flags,
    OutputReference,
    PointReference,
    ScalingReference,
    sample,
    sample_data,
    shares_matrices,
)
from nbqp.kernels.vector import WIDTH

NONE = -1
"""In place of a sample's number: there is none."""


@struct
class Batch:
    """What there is to solve, and where the results go."""

    data: DataReference
    scaling: ScalingReference  # what it lacks is found and kept
    warm: PointReference
    near: Flags  # (batch,) whether a sample starts at its point of `warm`
    options: Options  # the user's
    aim: Options  # those of the phases, with tolerances a little lower
    out: OutputReference


@kernel
def share_rows(ws, batch, wide):
    """Scale A and C of all samples, if these share them, and copy them to all lanes; ws.problem is overwritten."""
    if not shares_matrices(batch.scaling):
        return
    qp = sample_data(batch.data, 0)
    copy_scaling(ws.pattern, batch.scaling, 0, qp, ws.system.abort, ws.problem)
    scale_rows(ws.pattern, qp.A, qp.C, ws.problem)
    spread(ws.problem.A, wide.problem.A)
    spread(ws.problem.C, wide.problem.C)


@kernel
def put_sample(ws, batch, k, wide, lane):
    """Scale sample k, which ws.problem then is, and copy it to a lane; A and C only where `share_rows` has not."""
    own_rows = not shares_matrices(batch.scaling)
    qp = sample_data(batch.data, k)
    problem = ws.problem
    target = wide.problem
    find_scaling(ws.pattern, batch.scaling, k, qp, ws.system.abort, problem)
    scale_problem(ws.pattern, qp, problem, own_rows)
    put(problem.H, target.H, lane)
    if own_rows:
        put(problem.A, target.A, lane)
        put(problem.C, target.C, lane)
    put(problem.g, target.g, lane)
    put(problem.b, target.b, lane)
    put(problem.lo, target.lo, lane)
    put(problem.hi, target.hi, lane)
    put(problem.unit_e, target.unit_e, lane)
    put(problem.unit, target.unit, lane)
    put(problem.unit_d, target.unit_d, lane)
    put_scales(problem, target, lane)


@kernel
def put_start(ws, batch, k, it, lane):
    """Copy the warm start of sample k, which ws.problem is, to a lane of an iterate; ws.it is overwritten."""
    load_start(ws, batch.warm, k)
    put(ws.it.x, it.x, lane)
    put(ws.it.y, it.y, lane)
    put(ws.it.z, it.z, lane)


@kernel
def sides_of_lanes(problem, barrier):
    """The sides of eight QPs, their slacks and multipliers, as `holding` takes them."""
    return (
        lanes_of(problem.lo),
        lanes_of(problem.hi),
        lanes_of(barrier.s_lo),
        lanes_of(barrier.z_lo),
        lanes_of(barrier.s_hi),
        lanes_of(barrier.z_hi),
    )


@kernel
def worst_lane_ratio(res, tol, lane):
    """`worst_ratio` of a lane: its largest residual, relative to its tolerance; infinity where one is NaN."""
    return worst_ratio(lanes_of(res)[lane::WIDTH], lanes_of(tol)[lane::WIDTH], len(res))


@kernel
def ask_for_nothing(wide, lane):
    """Have the directions of a lane without a QP refined no further."""
    res = lanes_of(wide.work.res)
    for i in range(lane, len(res), WIDTH):
        res[i] = np.inf


@kernel
def _take_point(wide, lane, ws):
    """Copy a point, its products and what its residuals are measured by, without the matrices."""
    problem = wide.problem
    target = ws.problem
    take(problem.g, lane, target.g)
    take(problem.b, lane, target.b)
    take(wide.norm.lo, lane, target.lo)
    take(wide.norm.hi, lane, target.hi)
    take(problem.unit_e, lane, target.unit_e)
    take(problem.unit, lane, target.unit)
    take(problem.unit_d, lane, target.unit_d)
    take_scales(problem, lane, target)
    take(wide.it.x, lane, ws.it.x)
    take(wide.it.y, lane, ws.it.y)
    take(wide.it.z, lane, ws.it.z)
    take(wide.it.Hx, lane, ws.it.Hx)
    take(wide.it.dual, lane, ws.it.dual)
    take(wide.it.e, lane, ws.it.e)
    take(wide.it.v, lane, ws.it.v)


@kernel
def write_lane(wide, lane, ws, batch, k):
    """Write the point in a lane as that of sample k; returns its largest residual, relative to its tolerance.

    The gap always counts: without it, a multiplier might hold on to the wrong side, or to an absent one.
    Overwritten: the point, vectors and scales of ws.
    """
    _take_point(wide, lane, ws)
    out = batch.out
    qp = sample_data(batch.data, k)
    x = out.x[k]
    y = out.y[k]
    z = out.z[k]
    z_box = out.z_box[k]
    res = out.residuals[k]
    unscale_point(ws.pattern, ws.problem, ws.it, x, y, z, z_box)
    exact_residuals(ws.pattern, qp, x, y, z, z_box, out.s_e[k], out.s_i[k], out.s_box[k], res)
    set_tolerances(ws.pattern, ws.problem, ws.it, batch.options, ws.work.tol)
    return worst_ratio(res, ws.work.tol, len(res))


@kernel
def write_start(ws, batch, k):
    """Write the warm start of sample k as its point, for one that was begun and has no other when time is over."""
    out = batch.out
    warm = batch.warm
    qp = sample_data(batch.data, k)
    x = out.x[k]
    y = out.y[k]
    z = out.z[k]
    z_box = out.z_box[k]
    copy(sample(warm.x, k), x)
    copy(sample(warm.y, k), y)
    copy(sample(warm.z, k), z)
    copy(sample(warm.z_box, k), z_box)
    clear_absent_sides(qp.l, qp.u, z)
    clear_absent_sides(qp.lb, qp.ub, z_box)
    s_e, s_i, s_box, res = out.s_e[k], out.s_i[k], out.s_box[k], out.residuals[k]
    exact_residuals(ws.pattern, qp, x, y, z, z_box, s_e, s_i, s_box, res)
