"""The linear system of the derivatives: the active set of a solution, and solves with its KKT matrix.

Where null vectors of the matrix matter, the answer is the one of least norm: of an adjoint from a
kernel where its system is consistent, of other adjoints and of directions from `nbqp.least_norm`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nbqp.analysis import FACTORISATION, analyse_qp
from nbqp.execution import shared_or_own_scaling, takes_lanes
from nbqp.kernels.active import (
    BOTH,
    LOWER,
    NEAR_LOWER,
    NEAR_UPPER,
    UPPER,
    VIOLATED_LOWER,
    VIOLATED_UPPER,
    active_sides,
)
from nbqp.kernels.adjoint import OPEN, SINGULAR, SKIPPED, solve_kkt_range
from nbqp.kernels.adjoint_lanes import solve_kkt_lanes_range
from nbqp.kernels.consistent_adjoint import solve_consistent_range
from nbqp.kernels.structure import Floats, Ints, Point, Shifts, kernel_array
from nbqp.kernels.vector import WIDTH
from nbqp.least_norm import LARGEST_DENSE, LeastNormSystem
from nbqp.problem import QP
from nbqp.threads import split_range_watched, thread_count
from nbqp.watch import Watch

__all__ = [
    "SIDES",
    "ActiveSet",
    "Adjoint",
    "Point",
    "Shifts",
    "active_tolerance",
    "find_active_set",
    "side_shares",
    "solve_adjoint",
    "solve_direction",
    "without_failed",
]

ACTIVE = 10.0
"""A row within this multiple of the solution's accuracy of its side counts as on it."""

SOLVES = 6
"""So many derivatives of a sample take as long as its solution, about."""

REFLECTION = 2e-9
"""Seconds that least squares take, relative to the cube of the unknowns, rather too many."""

SIDES = tuple(range(VIOLATED_LOWER, VIOLATED_UPPER + 1))
"""All that a row can do, ascending: `side_shares(SIDES)` is a table with the index side - SIDES[0]."""
_HALF = np.where(np.equal(SIDES, BOTH), 0.5, 0.0)
_LOW = np.where(np.isin(SIDES, (LOWER, NEAR_LOWER, VIOLATED_LOWER)), 1.0, _HALF)
_HIGH = np.where(np.isin(SIDES, (UPPER, NEAR_UPPER, VIOLATED_UPPER)), 1.0, _HALF)

Bools = npt.NDArray[np.bool_]


class ActiveSet(NamedTuple):
    """Which side each row holds on to: side (batch, n_in), side_box (batch, n), int64."""

    side: Ints
    side_box: Ints


class Adjoint(NamedTuple):
    """A solution of the adjoint system: b1, b2 (of y, z, z_box) as a `Point`, and b4 (batch, n)."""

    b: Point
    b4: Floats


def active_tolerance(eps_abs: float, pri_res: Floats) -> Floats:
    """Distance (batch,) at which a row counts as on its side, from the accuracy of the solutions."""
    # NaN counts as nothing.
    reached: Floats = np.fmax(eps_abs, pri_res)
    with np.errstate(over="ignore"):  # of a sample that failed, which has no active rows
        return ACTIVE * reached


def without_failed(failed: Bools, parts: Iterable[Floats]) -> tuple[Floats, ...]:
    """The parts (batch, .) with zeros for the samples that failed (batch,).

    What a failed sample holds may be NaN, which must not enter products with its zero adjoint.
    """
    if not failed.any():
        return tuple(parts)
    return tuple(np.where(failed[:, None], 0.0, part) for part in parts)


def find_active_set(qp: QP, point: Point, shifts: Shifts, tolerance: Floats) -> ActiveSet:
    """The sides that hold at the points (batch, .) with these shifts, within `tolerance` (batch,)."""
    active = ActiveSet(
        np.zeros((qp.batch, qp.n_in), dtype=np.int64), np.zeros((qp.batch, qp.n), dtype=np.int64)
    )
    point = Point(*map(kernel_array, point))
    shifts = Shifts(*map(kernel_array, shifts))
    active_sides(qp.pattern(), qp.data(), point, shifts, tolerance, *active)
    return active


def side_shares(side: npt.ArrayLike) -> tuple[Floats, Floats]:
    """How much of a row's right-hand side is its lower and its upper side: 1, 0, or half each."""
    index = np.subtract(side, SIDES[0])
    return _LOW[index], _HIGH[index]


def solve_adjoint(
    qp: QP, active: ActiveSet, r: Point, r_s: Shifts, closest: Bools, skip: Bools
) -> Adjoint:
    """Solve the adjoint system of every sample (see `nbqp.derivative`).

    There may be several right-hand sides of each sample, count of them, for one factorisation.

    Parameters
    ----------
    qp
        Its H, A and C are used.
    active
        From `find_active_set`.
    r, r_s
        -dL/d(x, y, z, z_box) and -dL/d(s_e, s_i, s_box), each (batch * count, .), those of a sample
        after one another; so is what returns.
    closest
        Samples (batch,) with shifts.
    skip
        Samples (batch,) to leave at zero.
    """
    active = ActiveSet(*(kernel_array(part, np.int64) for part in active))
    r = Point(*(kernel_array(part) for part in r))
    r_s = Shifts(*(kernel_array(part) for part in r_s))
    watch = Watch()
    found, code = _solve_regular(qp, active, r, r_s, closest, skip, watch, adjoint=True)
    if (code == SINGULAR).any():
        _solve_consistent(qp, active, r, r_s, watch, found, code)
    for row in np.flatnonzero(code == SINGULAR).tolist():
        system = _least_norm_system(qp, active, row // code.shape[1])
        b, found.b4[row] = system.solve_adjoint(_row(r, row), _row(r_s, row))
        for target, part in zip(found.b, b, strict=True):
            target[row] = part
    return found


def solve_direction(
    qp: QP, active: ActiveSet, r: Point, r_4: Floats, closest: Bools, skip: Bools
) -> tuple[Point, Shifts]:
    """Solve for the directional derivative of every sample: d(x, y, z, z_box), d(s_e, s_i, s_box).

    Parameters
    ----------
    qp, active, closest, skip
        As in `solve_adjoint`.
    r
        Minus the change of the residuals of stationarity and of the rows, (batch, .).
    r_4
        -(dA's_e + dC's_i), (batch, n).
    """
    sizes = (qp.n_eq, qp.n_in, qp.n)
    no_loss, ds = (Shifts(*(np.zeros((qp.batch, size)) for size in sizes)) for _ in range(2))
    active = ActiveSet(*(kernel_array(part, np.int64) for part in active))
    r = Point(*(kernel_array(part) for part in r))
    found, code = _solve_regular(qp, active, r, no_loss, closest, skip, Watch(), adjoint=False)
    for k in np.flatnonzero(code == SINGULAR).tolist():
        system = _least_norm_system(qp, active, k)
        point, shifts = system.solve_direction(_row(r, k), r_4[k])
        for target, part in zip((*found.b, *ds), (*point, *shifts), strict=True):
            target[k] = part
    return found.b, ds


def _solve_regular(
    qp: QP,
    active: ActiveSet,
    r: Point,
    r_s: Shifts,
    closest: Bools,
    skip: Bools,
    watch: Watch,
    adjoint: bool,
) -> tuple[Adjoint, Ints]:
    """The solutions that the factor of the KKT matrix gives; SINGULAR (batch, count) where it has none.

    The matrix is symmetric: its solution is (dx, dlambda) where the right-hand side is a direction's.
    """
    closest = kernel_array(closest, np.bool_)
    # np.zeros_like takes five times as long.
    found = Adjoint(Point(*(np.zeros(part.shape) for part in r)), np.zeros(r.x.shape))
    # A batch may be empty.
    code = np.full((qp.batch, len(r.x) // max(qp.batch, 1)), OPEN, dtype=np.int64)
    code[skip] = SKIPPED
    analysis, data, scaling = analyse_qp(qp, watch), qp.data(), shared_or_own_scaling(qp, watch)
    lanes, abort = takes_lanes(qp, analysis), watch.abort
    common = *analysis, data, scaling, *active, r, r_s, closest

    def run(begin: int, end: int) -> None:
        if lanes:
            solve_kkt_lanes_range(*common, abort, begin, end, found.b, code)
        if not lanes or np.any(code[begin:end] == OPEN):
            solve_kkt_range(*common, adjoint, abort, begin, end, *found, code)

    kernel = solve_kkt_lanes_range if lanes else solve_kkt_range
    seconds = (FACTORISATION * qp.batch + len(r.x)) * analysis.step_time
    work = len(code) * code.shape[1] * analysis.solve_time / SOLVES
    count = thread_count(qp.batch, None, work, WIDTH if lanes else 1)
    split_range_watched(run, qp.batch, count, watch, seconds, kernel)
    return found, code


def _solve_consistent(
    qp: QP, active: ActiveSet, r: Point, r_s: Shifts, watch: Watch, found: Adjoint, code: Ints
) -> None:
    """Solve for the right-hand sides whose code is SINGULAR where their systems are consistent."""
    pattern, data, abort = qp.pattern(), qp.data(), watch.abort

    def run(begin: int, end: int) -> None:
        solve_consistent_range(
            pattern, data, *active, r, r_s, LARGEST_DENSE, abort, begin, end, *found, code
        )

    unknowns = min(3 * qp.n + 2 * (qp.n_eq + qp.n_in), LARGEST_DENSE)
    seconds = np.count_nonzero(code == SINGULAR) * REFLECTION * float(unknowns) ** 3
    threads, kernel = thread_count(qp.batch, None, seconds), solve_consistent_range
    split_range_watched(run, qp.batch, threads, watch, seconds, kernel)


def _least_norm_system(qp: QP, active: ActiveSet, k: int) -> LeastNormSystem:
    H, A, C = (matrix.sample(k) for matrix in (qp.H, qp.A, qp.C))
    return LeastNormSystem(H, A, C, active.side[k], active.side_box[k])


def _row(parts: Point | Shifts, k: int) -> tuple[Floats, ...]:
    return tuple(part[k] for part in parts)
