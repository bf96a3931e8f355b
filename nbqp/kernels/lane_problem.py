"""QPs in lanes: scaled and put there, and their points written as results."""

from __future__ import annotations

from nbqp.kernels.jit import kernel
from nbqp.kernels.lanes import put, put_scales, spread, take, take_scales
from nbqp.kernels.residuals import exact_residuals, set_tolerances, worst_ratio
from nbqp.kernels.scaling import copy_scaling, scale_rows, unscale_point
from nbqp.kernels.structure import sample_data


@kernel
def put_problem(problem, wide, lane, with_rows):
    """Copy a scaled QP to a lane; with_rows: A and C as well."""
    put(problem.H, wide.H, lane)
    if with_rows:
        put(problem.A, wide.A, lane)
        put(problem.C, wide.C, lane)
    put(problem.g, wide.g, lane)
    put(problem.b, wide.b, lane)
    put(problem.lo, wide.lo, lane)
    put(problem.hi, wide.hi, lane)
    put(problem.unit_e, wide.unit_e, lane)
    put(problem.unit, wide.unit, lane)
    put(problem.unit_d, wide.unit_d, lane)
    put_scales(problem, wide, lane)


@kernel
def share_rows(ws, data, scaling, wide):
    """Scale A and C of all samples, which share them, and copy them to all lanes."""
    qp = sample_data(data, 0)
    copy_scaling(ws.pattern, scaling, 0, qp.H, qp.A, qp.C, ws.system.abort, ws.problem)
    scale_rows(ws.pattern, qp.A, qp.C, ws.problem)
    spread(ws.problem.A, wide.problem.A)
    spread(ws.problem.C, wide.problem.C)


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
def write_lane(wide, lane, ws, data, options, k, out):
    """Write the point in a lane as that of sample k; returns its largest residual, relative to its tolerance.

    The gap always counts: without it, a multiplier might hold on to the wrong side, or to an absent one.
    Overwritten: the point, vectors and scales of ws.
    """
    _take_point(wide, lane, ws)
    qp = sample_data(data, k)
    x = out.x[k]
    y = out.y[k]
    z = out.z[k]
    z_box = out.z_box[k]
    res = out.residuals[k]
    unscale_point(ws.pattern, ws.problem, ws.it, x, y, z, z_box)
    exact_residuals(ws.pattern, qp, x, y, z, z_box, out.s_e[k], out.s_i[k], out.s_box[k], res)
    set_tolerances(ws.pattern, ws.problem, ws.it, options, ws.work.tol)
    return worst_ratio(res, ws.work.tol, len(res))
