"""One solve, from the user's data to the user's solution; and a range of a batch."""

from __future__ import annotations

import numpy as np

from nbqp.kernels.certificates import proven_dual_infeasible, proven_primal_infeasible
from nbqp.kernels.closest import largest_pull, run_closest, unscale_shift
from nbqp.kernels.dense import largest
from nbqp.kernels.feasible import (
    AUTO,
    COLD_MU,
    COLD_RHO,
    LAST_STEPS,
    NEAR_MU,
    NEAR_RHO,
    SEMISMOOTH,
    forget,
    solve_feasible,
)
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.residuals import (
    clear_absent_sides,
    exact_residuals,
    set_tolerances,
    update_products,
    worst_ratio,
)
from nbqp.kernels.rounding import mend
from nbqp.kernels.scaling import find_scaling, scale_point, scale_problem, unscale_point
from nbqp.kernels.semismooth import run_semismooth
from nbqp.kernels.state import Options, copy_point, new_workspace
from nbqp.kernels.status import (
    ABORTED,
    CONVERGED,
    DUAL_INFEASIBLE,
    NOT_RUN,
    OUT_OF_STEPS,
    PRIMAL_INFEASIBLE,
    SOLVED_CLOSEST_PRIMAL_FEASIBLE,
    STALLED,
)
from nbqp.kernels.structure import (
    EntriesReference,
    FactorReference,
    PatternReference,
    sample,
    sample_data,
    shares_matrices,
)

# The phases aim below the tolerance, so that the final check, which rounds differently, passes.
AIM = 0.8
# Where it does not, they aim lower, by this factor and down to here.
TIGHTEN = 0.1
LAST_AIM = 0.01
# A gap of that share of its largest term is rounding: it is closed at the end, or polished away.
GAP_ROUNDING = 4e-15
# What polishes a point: the same with lower aims, a cold start, and at last the best point so far.
LOWER_AIM = 0
UNSOLVED = 1
COLD = 2
LAST = 3
# Newton steps that the closest feasible QP may take before the QP is tried as given.
CLOSEST_STEPS = 300


@kernel
def _solve_closest(ws, options, cold):
    """The closest feasible QP, from ws.it unless that is a cold start; returns a code."""
    limits = ws.limits
    max_steps = limits.max_steps[0]
    limits.max_steps[0] = min(max_steps, limits.steps[0] + CLOSEST_STEPS)
    code = run_closest(ws, options, cold and options.method != SEMISMOOTH)
    limits.max_steps[0] = max_steps
    it = ws.it
    # One that has overflowed is no better than the start.
    if largest(it.x) < np.inf and largest(it.y) < np.inf and largest(it.z) < np.inf:
        copy_point(it, ws.best)
    return code


@kernel
def _prove(ws, qp, options, code, k, out):
    """Write the certificate that a phase left in ws.step, in the user's units, its largest entry 1.

    Returns `code` where the user's data prove it as well; otherwise the certificate is zero.
    """
    x = out.certificate_x[k]
    y = out.certificate_y[k]
    z = out.certificate_z[k]
    z_box = out.certificate_z_box[k]
    unscale_point(ws.pattern, ws.problem, ws.step, x, y, z, z_box)
    if code == PRIMAL_INFEASIBLE:
        x[:] = 0.0
        size = max(largest(y), largest(z), largest(z_box))
        y /= size
        z /= size
        proven = proven_primal_infeasible(ws.pattern, qp, y, z, z_box, options)
    else:
        y[:] = 0.0
        z[:] = 0.0
        z_box[:] = 0.0
        x /= largest(x)
        proven = proven_dual_infeasible(ws.pattern, qp, x, options)
    if proven:
        return code
    x[:] = 0.0
    y[:] = 0.0
    z[:] = 0.0
    z_box[:] = 0.0
    return STALLED


@kernel
def aim_at(options, factor, gap_rounding):
    """The options with other tolerances."""
    return Options(
        factor * options.eps_abs,
        factor * options.eps_rel,
        options.check_duality_gap,
        options.max_iter,
        options.eps_primal_inf,
        options.eps_dual_inf,
        options.method,
        options.closest,
        gap_rounding,
    )


@kernel
def starts_cold(warm, k):
    """Whether there is no warm start for sample k."""
    return len(warm.x) == 0 or np.isnan(sample(warm.x, k)[0])


@kernel
def load_start(ws, warm, k):
    """Set x, y and z of ws.it to sample k of the warm start, whose QP ws.problem is."""
    x, y = sample(warm.x, k), sample(warm.y, k)
    z, z_box = sample(warm.z, k), sample(warm.z_box, k)
    scale_point(ws.pattern, ws.problem, x, y, z, z_box, ws.it)
    clear_absent_sides(ws.problem.lo, ws.problem.hi, ws.it.z)


@kernel
def _set_start(ws, warm, k):
    """Set ws.it to sample k of the warm start, or to 0 where there is none; returns which."""
    it = ws.it
    cold = starts_cold(warm, k)
    if cold:
        forget(it)
    else:
        load_start(ws, warm, k)
    # Whatever fails before its first iterate has been measured returns its own start.
    update_products(ws.pattern, ws.problem, it)
    copy_point(it, ws.best)
    return cold


@kernel
def _run_phases(ws, options, cold):
    """The phases that the options ask for, from ws.it, which is 0 if `cold`; returns a code."""
    code = STALLED
    if options.closest:
        code = _solve_closest(ws, options, cold)
        if not cold and (code == STALLED or code == OUT_OF_STEPS):
            forget(ws.it)
            code = _solve_closest(ws, options, True)
        if code != SOLVED_CLOSEST_PRIMAL_FEASIBLE:
            # No point is measured about shifts that may not be the smallest ones.
            ws.shift.e[:] = 0.0
            ws.shift.s[:] = 0.0
    if not options.closest or code == STALLED or code == OUT_OF_STEPS:
        ws.work.best_score[0] = np.inf
        if options.closest:
            forget(ws.it)
        code = solve_feasible(ws, options, not (cold or options.closest))
        if options.closest and code == PRIMAL_INFEASIBLE:
            # Known to be infeasible, but the closest feasible QP was not found.
            code = STALLED
    return code


@kernel
def _check(ws, qp, options, k, out):
    """Write ws.best as the point of sample k, and its exact residuals; ws.it becomes that point.

    Returns the largest of these that count, relative to its tolerance.
    """
    pattern = ws.pattern
    it = ws.it
    tol = ws.work.tol
    x = out.x[k]
    y = out.y[k]
    z = out.z[k]
    z_box = out.z_box[k]
    res = out.residuals[k]
    copy_point(ws.best, it)
    # Where the gap does not count, nothing else would tell; without them the dual residual does.
    clear_absent_sides(ws.problem.lo, ws.problem.hi, it.z)
    update_products(pattern, ws.problem, it)
    unscale_point(pattern, ws.problem, it, x, y, z, z_box)
    s_e = out.s_e[k]
    s_i = out.s_i[k]
    s_box = out.s_box[k]
    exact_residuals(pattern, qp, x, y, z, z_box, s_e, s_i, s_box, res)
    set_tolerances(pattern, ws.problem, it, options, tol)
    counted = 3 if options.check_duality_gap else 2
    if worst_ratio(res, tol, counted) > 1.0:
        mend(pattern, qp, x, y, z, z_box, s_e, s_i, s_box, res, tol)
        # The tolerances are those of the terms at this point: multipliers that were too large are gone.
        scale_point(pattern, ws.problem, x, y, z, z_box, it)
        update_products(pattern, ws.problem, it)
        set_tolerances(pattern, ws.problem, it, options, tol)
    return worst_ratio(res, tol, counted)


@kernel
def _solves_unshifted(ws, qp, options, k, out):
    """Whether the shifts in `out` are within the tolerance, and so is the point without them.

    These shifts are then set to 0.
    """
    s_e = out.s_e[k]
    s_i = out.s_i[k]
    s_box = out.s_box[k]
    if max(largest(s_e), largest(s_i), largest(s_box)) > options.eps_abs:
        return False
    s_e[:] = 0.0
    s_i[:] = 0.0
    s_box[:] = 0.0
    if _check(ws, qp, options, k, out) <= 1.0:
        return True
    unscale_shift(ws.pattern, ws.problem, ws.shift, s_e, s_i, s_box)
    return False


@kernel
def _finish(ws, qp, options, code, k, out):
    """Write sample k, which ended with `code`, and check it on the user's data; returns its code.

    A solution that just misses its tolerances is polished: from itself with lower aims, then from
    a cold start, which is also tried where no solution was found: steps of the other family often
    finish what the first one could not. It is one loop, since every call of the phase is compiled anew.
    """
    pattern = ws.pattern
    s_e = out.s_e[k]
    s_i = out.s_i[k]
    s_box = out.s_box[k]
    unscale_shift(pattern, ws.problem, ws.shift, s_e, s_i, s_box)
    if code == SOLVED_CLOSEST_PRIMAL_FEASIBLE and _solves_unshifted(ws, qp, options, k, out):
        code = CONVERGED
    aim = AIM
    mu = NEAR_MU
    rho = NEAR_RHO
    steps = LAST_STEPS
    lowest = np.inf
    attempt = LAST
    if code == CONVERGED:
        attempt = LOWER_AIM
    elif code == STALLED or code == OUT_OF_STEPS:
        attempt = UNSOLVED
    while True:
        score = _check(ws, qp, options, k, out)
        if score <= lowest:
            lowest = score
            copy_point(ws.best, ws.saved)
        if score <= 1.0 or attempt == LAST:
            break
        if attempt == LOWER_AIM and aim > LAST_AIM:
            # The phases' own residuals are rounded more than those of the check: once more, below.
            aim *= TIGHTEN
            copy_point(ws.saved, ws.it)
        elif attempt != COLD and options.method == AUTO:
            # Near this point none will do: its multipliers are too large, mostly, and not unique.
            attempt = COLD
            aim = AIM
            mu = COLD_MU
            rho = COLD_RHO
            steps = options.max_iter
            forget(ws.it)
        else:
            attempt = LAST
            copy_point(ws.saved, ws.best)
            continue
        ws.limits.max_steps[0] = min(options.max_iter, ws.limits.steps[0] + steps)
        ws.work.best_score[0] = np.inf
        # What was rounding is polished away, if it can be.
        rounding = 0.0 if code == CONVERGED else options.gap_rounding
        found = run_semismooth(ws, aim_at(options, aim, rounding), mu, rho)
        if found == ABORTED or (code != CONVERGED and found != CONVERGED):
            code = found
        if options.closest and code == PRIMAL_INFEASIBLE:
            # Known to be infeasible, but the closest feasible QP was not found.
            code = STALLED
        if code == PRIMAL_INFEASIBLE or code == DUAL_INFEASIBLE or code == ABORTED:
            break
    solved = lowest <= 1.0
    if code == SOLVED_CLOSEST_PRIMAL_FEASIBLE:
        pull = largest_pull(pattern, qp, s_e, s_i, s_box, ws.it.x)
        return code if solved and pull <= ws.work.tol[0] else STALLED
    if solved:
        return CONVERGED
    if code == CONVERGED:
        return STALLED
    if code == PRIMAL_INFEASIBLE or code == DUAL_INFEASIBLE:
        return _prove(ws, qp, options, code, k, out)
    if code == OUT_OF_STEPS and max(ws.limits.steps[0], ws.limits.outer[0]) < options.max_iter:
        # A phase's own limit, not the user's.
        return STALLED
    return code


@entry
def solve_range(
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
    """Solve the samples begin..end-1 of a batch.

    data: `Data`. scaling: `Scaling`; rows that it lacks are overwritten by those that are found.
    warm: x, y, z, z_box (batch or 1, .), or (0, .) for none; NaN in x[k, 0] for none of sample k.
    abort (1): stop when not 0. No other of these is modified. out: `Output`; rows begin..end-1 whose status is NOT_RUN are
    overwritten, and their counts continued.
    """
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    ws = new_workspace(0.0, pattern, factor, EntriesReference(*entries_values), abort)
    limits = ws.limits
    aim = aim_at(options, AIM, options.gap_rounding)
    scaled = False
    for k in range(begin, end):
        if out.status[k] != NOT_RUN or abort[0] != 0:
            continue
        qp = sample_data(data, k)
        find_scaling(pattern, scaling, k, qp, abort, ws.problem)
        scale_problem(pattern, qp, ws.problem, not (scaled and shares_matrices(scaling)))
        scaled = True
        limits.steps[0] = out.iter[k]
        limits.outer[0] = 0
        limits.max_steps[0] = options.max_iter
        ws.system.factorizations[0] = out.factorizations[k]
        ws.work.best_score[0] = np.inf
        ws.work.tol[:] = aim.eps_abs
        cold = _set_start(ws, warm, k)
        code = _run_phases(ws, aim, cold)
        out.status[k] = _finish(ws, qp, options, code, k, out)
        out.iter[k] = limits.steps[0]
        out.iter_ext[k] = limits.outer[0]
        out.factorizations[k] = ws.system.factorizations[0]
