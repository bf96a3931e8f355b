"""The QP as given: its phases, from nothing or from a warm start."""

from __future__ import annotations

from nbqp.kernels.barrier import round_multipliers
from nbqp.kernels.holding import HOLD, finish_by_holding
from nbqp.kernels.jit import kernel
from nbqp.kernels.number import where
from nbqp.kernels.residuals import (
    measure,
    set_aims,
    set_tolerances,
    update_products,
    within,
    worst_ratio,
)
from nbqp.kernels.semismooth import run_semismooth
from nbqp.kernels.smoothed import HAND_OVER, NO_SHARE, WITHIN, run_smoothed
from nbqp.kernels.starting import BALANCE, OUTWARD, regularise, restart_smoothed, start_smoothed
from nbqp.kernels.state import copy_point
from nbqp.kernels.status import (
    ABORTED,
    CONVERGED,
    DUAL_INFEASIBLE,
    OUT_OF_STEPS,
    PRIMAL_INFEASIBLE,
    STALLED,
)

AUTO = 0
SEMISMOOTH = 1
SMOOTHED = 2

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
# Above HAND_OVER, the step for the sides that hold is tried again at residuals smaller by this factor, about that
# of a smoothed step near the end.
HOLD_TIGHTER = 0.09
# The ratio of a multiplier and its slack, one of which has to vanish: derivatives rest on which, so that
# it has to be clear, unless no steps are left.
SEPARATION = 1e-2
# A start whose residuals are so many times those of the point 0 is none.
FAR_START = 1e3
# Semismooth steps from a warm start, while no more rows than that, or this share of them, want to change
# sides: they would change a few at a time, in an LP one by one.
WARM_STEPS = 25
WARM_LP_STEPS = 6
WARM_CHANGED = 8
WARM_CHANGED_SHARE = 0.06
# Smoothed steps from it, which change all at once; after these the solve starts afresh.
WARM_SMOOTHED_STEPS = 30


@kernel
def forget(it):
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
    """Alternate: smoothed steps to a loose tolerance, attempts to finish, and tighter again.

    First by the step for the sides that hold, from HAND_OVER on by semismooth steps, too.

    The smoothed phase has been started.
    """
    it = ws.it
    saved = ws.saved
    system = ws.system
    work = ws.work
    limits = ws.limits
    max_steps = limits.max_steps[0]
    hand_over = max(LEAST_LOOSE, HAND_OVER / options.eps_abs)
    loose = max(LEAST_LOOSE, HOLD / options.eps_abs)
    share = WITHIN
    while True:
        code = run_smoothed(ws, options, loose, 0.0, share)
        if code == ABORTED or code == PRIMAL_INFEASIBLE or code == DUAL_INFEASIBLE:
            return code
        # No step more than are allowed, that for the sides included.
        if code == CONVERGED and limits.steps[0] < max_steps and finish_by_holding(ws, options):
            return code
        if code == STALLED and share == WITHIN:
            share = NO_SHARE
            continue
        if code == CONVERGED and loose > hand_over:
            loose = max(hand_over, HOLD_TIGHTER * loose)
            continue
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
        share = NO_SHARE
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
        restart_smoothed(ws, True)
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
def drop_slack_multipliers(problem, it):
    """Set multipliers smaller than their slacks to 0: derivatives take a row that has one for active."""
    lo = problem.lo
    hi = problem.hi
    v = it.v
    z = it.z
    for i in range(len(z)):
        upper = (z[i] > 0.0) & (hi[i] - v[i] > z[i])
        lower = (z[i] < 0.0) & (v[i] - lo[i] > -z[i])
        z[i] = where(upper | lower, 0.0, z[i])


@kernel
def solve_feasible(ws, options, warm):
    """The phases that the method asks for; ws.it is 0, or a start if `warm`. Returns a code."""
    if warm:
        drop_slack_multipliers(ws.problem, ws.it)
        score = _score(ws, options, ws.it)
        if score <= 1.0:
            copy_point(ws.it, ws.best)
            return CONVERGED
        forget(ws.step)
        # One that is far worse than none leads nowhere.
        if score < FAR_START * _score(ws, options, ws.step):
            code = _solve_warm(ws, options)
            if code != STALLED and code != OUT_OF_STEPS:
                return code
        forget(ws.it)
    if options.method == SEMISMOOTH:
        return run_semismooth(ws, options, COLD_MU, COLD_RHO)
    regularise(ws)
    start_smoothed(ws, OUTWARD, BALANCE)
    return _smoothed_then_semismooth(ws, options)
