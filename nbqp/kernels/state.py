"""The arrays a solve works on: the scaled problem, the iterate, the KKT system, workspaces.

Inequality rows and bounds obey the same rules, so they are stacked: the m = n_in + n values
v = (Cx, x) with sides lo <= v <= hi and multipliers z = (z, z_box). Only the linear algebra tells
them apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nbqp.kernels.dense import copy
from nbqp.kernels.jit import kernel
from nbqp.kernels.number import empty, zeros
from nbqp.kernels.struct import struct
from nbqp.kernels.structure import (
    EntriesReference,
    FactorReference,
    Flags,
    Floats,
    Ints,
    PatternReference,
    Sides,
)
from nbqp.kernels.symbolic import PANEL
from nbqp.kernels.vector import WIDTH


@struct
class Problem:
    """A QP in scaled units (see `scaling`): x = D x_scaled, and so on.

    `unit_*` turn scaled residuals into the user's: equality rows, stacked rows, stationarity.
    `cost[0]` is the factor on the objective.
    """

    H: Floats  # values on the pattern, as A and C
    g: Floats  # (n,)
    A: Floats
    b: Floats  # (n_eq,)
    C: Floats
    lo: Floats  # (m,)
    hi: Floats  # (m,)
    D: Floats  # (n,)
    E: Floats  # (n_eq,)
    F: Floats  # (n_in,)
    unit_e: Floats  # (n_eq,)
    unit: Floats  # (m,)
    unit_d: Floats  # (n,)
    cost: Floats  # (1,)


@struct
class Iterate:
    """A primal-dual point: x (n), y (n_eq), z (m), with the products that residuals need."""

    x: Floats
    y: Floats
    z: Floats
    Hx: Floats  # H x (n)
    dual: Floats  # H x + g + A'y + M'z (n)
    e: Floats  # A x - b (n_eq)
    v: Floats  # M x = (C x, x) (m)


@struct
class KeptPoint:
    """A primal-dual point that is kept for later: x (n), y (n_eq), z (m)."""

    x: Floats
    y: Floats
    z: Floats


@struct
class System:
    """The regularised KKT system, its factor, and the workspaces of its solution.

    [ H + rho   A'     M' ] [dx]   [r1]
    [ A       -mu_e       ] [dy] = [r2]        M = [C; I], rows with w = inf decoupled (dz = 0)
    [ M              -w   ] [dz]   [r3]
    """

    L: Floats  # values of the factor, and WIDTH more that vectors may read
    pivots: Floats  # (N,), N = n + n_eq + n_in
    factored: Floats  # (N,) diagonal, without that of H, of the matrix that has this factor
    stale: Flags  # which panels do not fit, while it is factorised
    expected: Floats  # (N,) signs of the pivots
    r1: Floats  # (n,)
    r2: Floats  # (n_eq,)
    r3: Floats  # (m,)
    dx: Floats  # (n,)
    dy: Floats  # (n_eq,)
    dz: Floats  # (m,)
    rho: Floats  # (1,)
    mu_e: Floats  # (n_eq,)
    w: Floats  # (m,)
    e1: Floats  # (n,) residuals, as e2 (n_eq) and e3 (m)
    e2: Floats
    e3: Floats
    permuted: Floats  # (N,) right-hand side and solution in pivot order
    gathered: Floats  # (N + WIDTH,) workspace of `triangular`; product and local: of `ldl`
    product: Floats
    local: Ints
    factorizations: Ints  # (1,) how many so far
    abort: Ints  # (1,) set from outside: 0 run on, otherwise stop


@struct
class Shift:
    """Shifts s = Mx - clip(Mx, lo, hi) of a point, scaled; the rest are workspaces of `closest`."""

    e: Floats  # (n_eq,)
    s: Floats  # (m,)
    t_e: Floats  # (n_eq,) rows times unit^2
    t: Floats  # (m,)
    pull: Floats  # (n,) M't


class Options(NamedTuple):
    """Scalars that steer a solve; see `nbqp.Settings`."""

    eps_abs: float
    eps_rel: float
    check_duality_gap: bool
    max_iter: int
    eps_primal_inf: float
    eps_dual_inf: float
    method: int
    closest: bool
    gap_rounding: float  # a gap of that share of its terms counts as closed


@struct
class Limits:
    """Counters and stops that the phases share; each an array of one."""

    steps: Ints  # factorisations of Newton steps so far
    max_steps: Ints
    outer: Ints  # outer (proximal) steps so far
    most_changed: Ints  # rows that may change sides in a Newton step, or it is the phase's last


@struct
class Work:
    """Further workspaces of the semismooth and the smoothed phase."""

    mu: Floats  # (m,) penalty of each stacked row
    active: Sides  # (m,) +1, -1, 0
    next_active: Sides  # (m,)
    trial: Floats  # (m,)
    violation: Floats  # (n_eq + m,)
    y_ref: Floats  # (n_eq,)
    z_ref: Floats  # (m,)
    res: Floats  # (3,) primal, dual, gap
    best_score: Floats  # (1,)
    tol: Floats  # (3,)
    lowest: Floats  # (3,) each residual's lowest of the smoothed phase


@struct
class Barrier:
    """Slacks and multipliers of both sides of each stacked row (m), and their Newton steps."""

    s_lo: Floats
    z_lo: Floats
    s_hi: Floats
    z_hi: Floats
    ds_lo: Floats
    dz_lo: Floats
    ds_hi: Floats
    dz_hi: Floats
    W_lo: Floats  # 1 / (s / z + mu)
    W_hi: Floats
    q_lo: Floats  # right-hand side of the side's row, its slack eliminated
    q_hi: Floats
    c_lo: Floats  # target: what s z is to change by
    c_hi: Floats


@struct
class Workspace:
    """All that the phases of one solve work on."""

    pattern: PatternReference
    factor: FactorReference
    entries: EntriesReference
    problem: Problem
    norm: Problem  # see `new_norm_problem`
    it: Iterate
    best: KeptPoint  # the best iterate so far
    centre: KeptPoint  # of the proximal terms
    start: KeptPoint  # the user's
    saved: Iterate  # while another phase tries, or further unknowns of these sizes
    step: Iterate  # x, y, z and products of a direction
    barrier: Barrier
    shift: Shift
    system: System
    work: Work
    limits: Limits


@kernel
def new_workspace(like, pattern, factor, entries, abort):
    """`Workspace` of a pattern's sizes, of one QP or of eight: its numbers are of the kind of `like`.

    abort (1) is watched, not modified.
    """
    problem = new_problem(like, pattern)
    return Workspace(
        pattern,
        factor,
        entries,
        problem,
        new_norm_problem(like, pattern, problem),
        new_iterate(like, pattern),
        new_kept_point(like, pattern),
        new_kept_point(like, pattern),
        new_kept_point(like, pattern),
        new_iterate(like, pattern),
        new_iterate(like, pattern),
        new_barrier(like, pattern.n_in + pattern.n),
        new_shift(like, pattern),
        new_system(like, pattern, factor, abort),
        new_work(like, pattern),
        Limits(
            np.zeros(1, dtype=np.int64),
            np.zeros(1, dtype=np.int64),
            np.zeros(1, dtype=np.int64),
            np.full(1, pattern.n_in + pattern.n, dtype=np.int64),
        ),
    )


@kernel
def new_problem(like, pattern):
    """Uninitialised `Problem` of a pattern's sizes."""
    n_in = pattern.n_in
    n_eq = pattern.n_eq
    n = pattern.n
    m = n_in + n
    return Problem(
        empty(like, len(pattern.Hi)),
        empty(like, n),
        empty(like, len(pattern.Ai)),
        empty(like, n_eq),
        empty(like, len(pattern.Ci)),
        empty(like, m),
        empty(like, m),
        empty(like, n),
        empty(like, n_eq),
        empty(like, n_in),
        empty(like, n_eq),
        empty(like, m),
        empty(like, n),
        empty(like, 1),
    )


@kernel
def new_iterate(like, pattern):
    """`Iterate` of zeros."""
    n_eq = pattern.n_eq
    n = pattern.n
    m = pattern.n_in + n
    return Iterate(
        zeros(like, n),
        zeros(like, n_eq),
        zeros(like, m),
        zeros(like, n),
        zeros(like, n),
        zeros(like, n_eq),
        zeros(like, m),
    )


@kernel
def new_kept_point(like, pattern):
    """`KeptPoint` of zeros."""
    m = pattern.n_in + pattern.n
    return KeptPoint(zeros(like, pattern.n), zeros(like, pattern.n_eq), zeros(like, m))


@kernel
def new_system(like, pattern, factor, abort):
    """`System` of a pattern's sizes, with the expected signs of its pivots; abort (1) is watched."""
    n_in = pattern.n_in
    val_ptr = factor.val_ptr
    perm = factor.perm
    n = pattern.n
    n_eq = pattern.n_eq
    m = n_in + n
    N = n + n_eq + n_in
    expected = np.empty(N)
    for k in range(N):
        expected[k] = 1.0 if perm[k] < n else -1.0
    # Factorising sets the rest.
    L = empty(like, val_ptr[len(val_ptr) - 1] + WIDTH)
    L[len(L) - WIDTH :] = 0.0
    return System(
        L,
        zeros(like, N),
        np.full(N, np.nan),
        np.zeros(len(val_ptr) - 1, dtype=np.bool_),
        expected,
        zeros(like, n),
        zeros(like, n_eq),
        zeros(like, m),
        zeros(like, n),
        zeros(like, n_eq),
        zeros(like, m),
        zeros(like, 1),
        zeros(like, n_eq),
        zeros(like, m),
        zeros(like, n),
        zeros(like, n_eq),
        zeros(like, m),
        zeros(like, N),
        zeros(like, N + WIDTH),
        # Mostly too large, as the next: what no panel needs is never touched, and takes no memory.
        empty(like, (N + PANEL) * PANEL),
        np.empty(3 * N, dtype=np.int64),
        np.zeros(1, dtype=np.int64),
        abort,
    )


@kernel
def new_work(like, pattern):
    """`Work` of a pattern's sizes."""
    n_eq = pattern.n_eq
    m = pattern.n_in + pattern.n
    return Work(
        zeros(like, m),
        np.zeros(m, dtype=np.int8),
        np.zeros(m, dtype=np.int8),
        zeros(like, m),
        zeros(like, n_eq + m),
        zeros(like, n_eq),
        zeros(like, m),
        zeros(like, 3),
        zeros(like, 1),
        zeros(like, 3),
        zeros(like, 3),
    )


@kernel
def new_shift(like, pattern):
    """`Shift` of a pattern's sizes."""
    n_eq = pattern.n_eq
    m = pattern.n_in + pattern.n
    return Shift(
        zeros(like, n_eq), zeros(like, m), zeros(like, n_eq), zeros(like, m), zeros(like, pattern.n)
    )


@kernel
def new_norm_problem(like, pattern, problem):
    """The scaled problem with H, g, b, lo and hi of its own, uninitialised; the rest is shared."""
    m = pattern.n_in + pattern.n
    return Problem(
        empty(like, len(pattern.Hi)),
        empty(like, pattern.n),
        problem.A,
        empty(like, pattern.n_eq),
        problem.C,
        empty(like, m),
        empty(like, m),
        problem.D,
        problem.E,
        problem.F,
        problem.unit_e,
        problem.unit,
        problem.unit_d,
        problem.cost,
    )


@kernel
def new_barrier(like, m):
    """`Barrier` of m rows."""
    return Barrier(
        zeros(like, m),
        zeros(like, m),
        zeros(like, m),
        zeros(like, m),
        zeros(like, m),
        zeros(like, m),
        zeros(like, m),
        zeros(like, m),
        zeros(like, m),
        zeros(like, m),
        zeros(like, m),
        zeros(like, m),
        zeros(like, m),
        zeros(like, m),
    )


@kernel
def copy_point(source, target):
    """Copy x, y and z, and no products, from one `Iterate` or `KeptPoint` to another."""
    copy(source.x, target.x)
    copy(source.y, target.y)
    copy(source.z, target.z)
