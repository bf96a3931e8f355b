"""One solve, from the user's data to the user's solution; and a range of a batch."""

from __future__ import annotations

import numpy as np

from nbqp.kernels.barrier import round_multipliers
from nbqp.kernels.certificates import proven_dual_infeasible, proven_primal_infeasible
from nbqp.kernels.closest import largest_pull, run_closest, unscale_shift
from nbqp.kernels.dense import largest
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.residuals import (
    clear_absent_sides,
    exact_residuals,
    measure,
    set_aims,
    set_tolerances,
    update_products,
    within,
    worst_ratio,
)
from nbqp.kernels.rounding import mend
from nbqp.kernels.scaling import copy_scaling, scale_point, scale_problem, unscale_point
from nbqp.kernels.semismooth import run_semismooth
from nbqp.kernels.smoothed import HAND_OVER, run_smoothed
from nbqp.kernels.starting import regularise, restart_smoothed, start_smoothed
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
)

AUTO = 0
SEMISMOOTH = 1
SMOOTHED = 2

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
# Penalties of a semismooth phase that starts cold, ...
COLD_MU = 1e-3
COLD_RHO = 1e-6
# ... from the user's warm start, where small ones keep what it knows of the active set, ...
WARM_MU = 1e-7
WARM_RHO = 1e-8
# ... and of one that starts next to the solution, where the smoothed phase ended.
NEAR_MU = 1e-5
NEAR_RHO = 1e-8
# Newton steps of the semismooth phase after the smoothed one: where the active set is known, a few do.
# Otherwise smoothed steps to residuals smaller by this factor, down to this share of the tolerances,
# tell more of it. After its last attempt it may take longer.
FINISH_STEPS = 4
TIGHTER = 1e-2
LEAST_LOOSE = 1e-3
LAST_STEPS = 60
# The ratio of a multiplier and its slack, one of which has to vanish: derivatives rest on which, so that
# it has to be clear, unless no steps are left.
SEPARATION = 1e-2
# Newton steps that a warm start may take, while no more rows than that, or this share of them, want to
# change sides: the semismooth phase would change them a few at a time, in an LP one by one, the smoothed
# one, which is next, all at once. Where neither does, the solve starts afresh.
WARM_STEPS = 25
WARM_LP_STEPS = 6
WARM_SMOOTHED_STEPS = 30
WARM_CHANGED = 8
WARM_CHANGED_SHARE = 0.06
# Newton steps that the closest feasible QP may take before the QP is tried as given.
CLOSEST_STEPS = 300


@kernel
def _forget(it):
    """The cold start."""
    it.x[:] = 0.0
    it.y[:] = 0.0
    it.z[:] = 0.0


@kernel
def _round_to_sides(ws, options, separation):
    """Set multipliers smaller than their slacks to 0 in ws.it, where the smoothed phase ended.

    separation: the largest ratio of the two that tells them apart. Returns whether that solves the QP;
    ws.best is then that point.
    """
    it = ws.it
    res = ws.work.res
    tol = ws.work.tol
    if round_multipliers(ws.problem, ws.barrier, it) > separation:
        return False
    update_products(ws.pattern, ws.problem, it)
    measure(ws.pattern, ws.problem, it, ws.shift, res)
    set_aims(ws.pattern, ws.problem, it, options, tol)
    if not within(res, tol, options):
        return False
    copy_point(it, ws.best)
    return True


@kernel
def _smoothed_then_semismooth(ws, options):
    """Alternate: smoothed steps to a loose tolerance, an attempt to finish, and tighter again.

    The smoothed phase has been started.
    """
    it = ws.it
    saved = ws.saved
    system = ws.system
    work = ws.work
    limits = ws.limits
    max_steps = limits.max_steps[0]
    loose = max(LEAST_LOOSE, HAND_OVER / options.eps_abs)
    while True:
        code = run_smoothed(ws, options, loose, 0.0)
        if code == ABORTED or code == PRIMAL_INFEASIBLE or code == DUAL_INFEASIBLE:
            return code
        copy_point(it, saved)
        rho = system.rho[0]
        mu = work.mu[0]
        last = code != CONVERGED or loose == LEAST_LOOSE
        steps = LAST_STEPS if last else FINISH_STEPS
        limits.max_steps[0] = min(max_steps, limits.steps[0] + steps)
        copy_point(ws.best, it)
        finish = run_semismooth(ws, options, NEAR_MU, NEAR_RHO)
        limits.max_steps[0] = max_steps
        if finish == CONVERGED:
            # Where the smoothed phase ended residuals may be smaller, but no multiplier is 0; no phase
            # that compares its points with this one follows.
            copy_point(it, ws.best)
        if finish == CONVERGED or finish == ABORTED:
            return finish
        copy_point(saved, it)
        if loose <= 1.0 and _round_to_sides(ws, options, 1.0 if last else SEPARATION):
            return CONVERGED
        if last:
            return finish
        system.rho[0] = rho
        system.mu_e[:] = mu
        work.mu[:] = mu
        # On the way down it stops at 1.
        loose = max(1.0 if loose > 1.0 else LEAST_LOOSE, TIGHTER * loose)


@kernel
def _solve_warm(ws, options):
    """Semismooth steps from ws.it, then smoothed ones from its neighbourhood; a few of either."""
    limits = ws.limits
    max_steps = limits.max_steps[0]
    copy_point(ws.it, ws.start)
    steps = WARM_LP_STEPS if len(ws.problem.H) == 0 else WARM_STEPS
    if options.method == SEMISMOOTH:
        steps = LAST_STEPS
    limits.max_steps[0] = min(max_steps, limits.steps[0] + steps)
    if options.method != SEMISMOOTH:
        limits.most_changed[0] = max(WARM_CHANGED, int(WARM_CHANGED_SHARE * len(ws.it.z)))
    code = run_semismooth(ws, options, WARM_MU, WARM_RHO)
    limits.most_changed[0] = len(ws.it.z)
    if (code == STALLED or code == OUT_OF_STEPS) and options.method != SEMISMOOTH:
        copy_point(ws.start, ws.it)
        limits.max_steps[0] = min(max_steps, limits.steps[0] + WARM_SMOOTHED_STEPS)
        regularise(ws)
        restart_smoothed(ws)
        code = _smoothed_then_semismooth(ws, options)
    limits.max_steps[0] = max_steps
    return code


@kernel
def _score(ws, options, point):
    """The largest residual of a point, which belongs to no shifts, relative to its tolerance."""
    res = ws.work.res
    tol = ws.work.tol
    update_products(ws.pattern, ws.problem, point)
    measure(ws.pattern, ws.problem, point, ws.shift, res)
    set_tolerances(ws.pattern, ws.problem, point, options, tol)
    # Without the gap, any feasible point with fitting multipliers would do.
    return worst_ratio(res, tol, len(res))


@kernel
def _drop_slack_multipliers(problem, it):
    """Set multipliers smaller than their slacks to 0: derivatives take a row that has one for active."""
    lo = problem.lo
    hi = problem.hi
    v = it.v
    z = it.z
    for i in range(len(z)):
        if hi[i] - v[i] > z[i] > 0.0 or v[i] - lo[i] > -z[i] > 0.0:
            z[i] = 0.0


@kernel
def _solve_feasible(ws, options, warm):
    """The phases that the method asks for; ws.it is 0, or a start if `warm`. Returns a code."""
    if warm:
        _drop_slack_multipliers(ws.problem, ws.it)
        score = _score(ws, options, ws.it)
        if score <= 1.0:
            copy_point(ws.it, ws.best)
            return CONVERGED
        _forget(ws.step)
        # A start that is worse than none is none.
        if score < _score(ws, options, ws.step):
            code = _solve_warm(ws, options)
            if code != STALLED and code != OUT_OF_STEPS:
                return code
        _forget(ws.it)
    if options.method == SEMISMOOTH:
        return run_semismooth(ws, options, COLD_MU, COLD_RHO)
    regularise(ws)
    start_smoothed(ws)
    return _smoothed_then_semismooth(ws, options)


@kernel
def _solve_closest(ws, options, cold):
    """The closest feasible QP, from ws.it unless that is a cold start; returns a code."""
    limits = ws.limits
    max_steps = limits.max_steps[0]
    limits.max_steps[0] = min(max_steps, limits.steps[0] + CLOSEST_STEPS)
    code = run_closest(ws, options, cold and options.method != SEMISMOOTH)
    limits.max_steps[0] = max_steps
    copy_point(ws.it, ws.best)
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
def _aim(options, factor, gap_rounding):
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
def _set_start(ws, warm, k):
    """Set ws.it to sample k of the warm start, or to 0 where there is none; returns which."""
    it = ws.it
    cold = len(warm.x) == 0 or np.isnan(sample(warm.x, k)[0])
    if cold:
        _forget(it)
    else:
        scale_point(
            ws.pattern,
            ws.problem,
            sample(warm.x, k),
            sample(warm.y, k),
            sample(warm.z, k),
            sample(warm.z_box, k),
            it,
        )
        clear_absent_sides(ws.problem, it.z)
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
            _forget(ws.it)
            code = _solve_closest(ws, options, True)
        if code != SOLVED_CLOSEST_PRIMAL_FEASIBLE:
            # No point is measured about shifts that may not be the smallest ones.
            ws.shift.e[:] = 0.0
            ws.shift.s[:] = 0.0
    if not options.closest or code == STALLED or code == OUT_OF_STEPS:
        ws.work.best_score[0] = np.inf
        if options.closest:
            _forget(ws.it)
        code = _solve_feasible(ws, options, not (cold or options.closest))
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
            _forget(ws.it)
        else:
            attempt = LAST
            copy_point(ws.saved, ws.best)
            continue
        ws.limits.max_steps[0] = min(options.max_iter, ws.limits.steps[0] + steps)
        ws.work.best_score[0] = np.inf
        # What was rounding is polished away, if it can be.
        rounding = 0.0 if code == CONVERGED else options.gap_rounding
        found = run_semismooth(ws, _aim(options, aim, rounding), mu, rho)
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

    data: `Data`. scaling: D, E, F (1, .) shared by all samples, or (0, .) to equilibrate each.
    warm: x, y, z, z_box (batch or 1, .), or (0, .) for none; NaN in x[k, 0] for none of sample k.
    abort (1): stop when not 0. None of these is modified. out: `Output`; rows begin..end-1 whose status is NOT_RUN are overwritten.
    """
    pattern = PatternReference(*pattern_values)
    ws = new_workspace(
        pattern, FactorReference(*factor_values), EntriesReference(*entries_values), abort
    )
    limits = ws.limits
    aim = _aim(options, AIM, options.gap_rounding)
    for k in range(begin, end):
        if out.status[k] != NOT_RUN or abort[0] != 0:
            continue
        qp = sample_data(data, k)
        copy_scaling(pattern, scaling, qp.H, qp.A, qp.C, ws.problem)
        scale_problem(pattern, qp, ws.problem)
        limits.steps[0] = 0
        limits.outer[0] = 0
        limits.max_steps[0] = options.max_iter
        ws.system.factorizations[0] = 0
        ws.work.best_score[0] = np.inf
        ws.work.tol[:] = aim.eps_abs
        cold = _set_start(ws, warm, k)
        code = _run_phases(ws, aim, cold)
        out.status[k] = _finish(ws, qp, options, code, k, out)
        out.iter[k] = limits.steps[0]
        out.iter_ext[k] = limits.outer[0]
        out.factorizations[k] = ws.system.factorizations[0]
