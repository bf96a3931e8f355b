"""Derivatives of the solution: one linear solve with the KKT matrix of the active set.

M = (A; C; I) with the multipliers lambda = (y, z, z_box), J the active rows, V the equalities, the rows
whose sides coincide and those with a shift, and K the KKT matrix of H and M_J. Adjoint (`vjp`):

    K (b1, w) = -(dL/dx + M_V' dL/ds_V, dL/dlambda_J),   b4 = M_V^+ w_V,   b2_V = M_V b4 + dL/ds_V,
    b2 = w on the other active rows, 0 on inactive ones,

    dL/dg = b1                             dL/dH = 1/2 (b1 x' + x b1')
    dL/dM = lambda b1' + b2 x' + s b4'     dL/d(side) = -b2

(Where there is no shift and V's rows are independent, b2_V is w_V.) Direction (`jvp`), with ds = 0 outside V:

    H dx + M_J' dlambda_J = -(dH x + dg + dM' lambda)
    M_J dx - ds           = d(side) - dM x
    M_V' ds               = -dM_V' s

of which the first two are a solve with K where V has independent rows without shifts: then ds = 0.

Rows that hold weakly (on their side with multiplier 0) count as active. Where both sides of a row
coincide, each gets half of the gradient. Where K has null vectors that matter the derivative is the
least-norm element (see `nbqp.least_norm`). Source: Bambade, Schramm, Taylor, Carpentier 2024, system
(2), reduced.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse

from nbqp.arrays import numbers
from nbqp.batch import BatchSolution
from nbqp.errors import DataError, SettingsError, ShapeError, UnsolvedError
from nbqp.kernels.adjoint import sample_products
from nbqp.kernels.structure import Floats, Ints, Point, Shifts
from nbqp.kkt_system import (
    ActiveSet,
    Adjoint,
    active_tolerance,
    find_active_set,
    side_shares,
    solve_adjoint,
    solve_direction,
    without_failed,
)
from nbqp.memory import NUMBER, require_memory
from nbqp.problem import QP
from nbqp.solution import Solution, Status
from nbqp.sparse import Sparse
from nbqp.stored_pattern import StoredPattern
from nbqp.threads import run_apart_if_large
from nbqp.watch import Watch

OnFailure = Literal["raise", "nan", "zero"]
OUTER_PRODUCTS = 3
"""Arrays of the size of the gradients of the matrices that exist at a time."""
DIFFERENTIABLE = (Status.SOLVED, Status.SOLVED_CLOSEST_PRIMAL_FEASIBLE)
"""The statuses that come with a derivative."""


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Gradients of a loss with respect to the nine data, each in the form its datum was given in.

    float64, and None for absent data. A datum that a batch shares gets the sum over the batch.

    Attributes
    ----------
    dL_dH, dL_dA, dL_dC
        Arrays of the shape of dense data. For scipy.sparse data matrices of their class (CSC for
        formats other than CSC, CSR and COO) with the entries that these had when the QP was made,
        in their order, each the derivative with respect to that entry of the matrix; a `Sparse` for a
        `Sparse`. Index arrays are shared by all gradients of the QP and read-only: `copy()` before a change of pattern.
    dL_dg, dL_db, dL_dl, dL_du, dL_dlb, dL_dub
        Arrays of the shape of the data; a number for a number.
    """

    dL_dH: Any
    dL_dg: Any
    dL_dA: Any
    dL_db: Any
    dL_dC: Any
    dL_dl: Any
    dL_du: Any
    dL_dlb: Any
    dL_dub: Any


@dataclasses.dataclass(frozen=True)
class Tangents:
    """Directional derivatives of the solution, each float64 and shaped as its part of the solution.

    Attributes
    ----------
    dx, dy, dz, dz_box
        Of the point and its multipliers, 0 on inactive rows.
    ds_e, ds_i, ds_box
        Of the shifts.
    """

    dx: Floats
    dy: Floats
    dz: Floats
    dz_box: Floats
    ds_e: Floats
    ds_i: Floats
    ds_box: Floats


def _require_finite(name: str, array: Any) -> None:
    if not np.isfinite(array).all():
        raise DataError(f"{name}: expected finite entries, got NaN or infinite ones.")


def warn_of_multipliers(closest: npt.NDArray[np.bool_], r: Point) -> None:
    """Warn of a loss on multipliers (r: its derivatives) of a QP that has no feasible point."""
    if closest.any() and any(np.any(part[closest]) for part in r[1:]):
        warnings.warn(
            "a loss on y, z or z_box of a closest feasible QP: its multipliers are not unique, the "
            "gradient is the least-norm one.",
            stacklevel=3,
        )


def _has_status(statuses: npt.NDArray[np.object_], status: Status) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (statuses == status).astype(np.bool_)
    return found


class Linearised:
    """A solution or a batch of them with leading batch axis, its active set and its failures."""

    def __init__(self, solution: Solution | BatchSolution, on_failure: OnFailure) -> None:
        if on_failure not in ("raise", "nan", "zero"):
            raise SettingsError(
                f'on_failure: expected "raise", "nan" or "zero", got {on_failure!r}.'
            )
        if not isinstance(solution, (Solution, BatchSolution)):
            raise SettingsError(
                f"solution: expected a Solution or a BatchSolution, got {type(solution).__name__}."
            )
        self.qp = solution.problem
        self.single = isinstance(solution, Solution)
        status = np.atleast_1d(np.array(solution.status, dtype=object))
        self.closest = _has_status(status, Status.SOLVED_CLOSEST_PRIMAL_FEASIBLE)
        self.failed = ~_has_status(status, Status.SOLVED) & ~self.closest
        if on_failure == "raise" and self.failed.any():
            k = int(np.flatnonzero(self.failed)[0])
            where = "" if self.single else f" for sample {k}"
            raise UnsolvedError(
                f"solution: expected the status SOLVED, got {status[k].name}{where}; "
                f"{int(self.failed.sum())} of {len(status)} failed."
            )
        self.fill = np.nan if on_failure == "nan" else 0.0
        point = (solution.x, solution.y, solution.z, solution.z_box)
        self.point = Point(*without_failed(self.failed, map(np.atleast_2d, point)))
        shifts = (solution.s_e, solution.s_i, solution.s_box)
        self.shifts = Shifts(*without_failed(self.failed, map(np.atleast_2d, shifts)))
        pri_res = np.atleast_1d(solution.info.pri_res)
        tolerance = active_tolerance(solution.settings.eps_abs, pri_res)
        self.active = find_active_set(self.qp, self.point, self.shifts, tolerance)

    def fill_failed(self, *parts: Floats) -> None:
        """Put NaN or 0, as `on_failure` asks for, into the rows of failed samples."""
        for part in parts:
            part[self.failed] = self.fill

    def cotangents(self, given: dict[str, npt.ArrayLike | None]) -> list[Floats]:
        """-dL of x, y, z, z_box, s_e, s_i, s_box as right-hand sides, zero where a sample failed."""
        parts = []
        for (name, value), like in zip(given.items(), (*self.point, *self.shifts), strict=True):
            shape = like.shape[1:] if self.single else like.shape
            array = np.zeros(shape) if value is None else numbers(name, value)
            if array.shape != shape:
                raise ShapeError(f"{name}: expected shape {shape}, got {array.shape}.")
            (part,) = without_failed(self.failed, [-array.reshape(like.shape)])
            _require_finite(name, part)
            parts.append(part)
        return parts


def vjp(
    solution: Solution | BatchSolution,
    *,
    dL_dx: npt.ArrayLike | None = None,
    dL_dy: npt.ArrayLike | None = None,
    dL_dz: npt.ArrayLike | None = None,
    dL_dz_box: npt.ArrayLike | None = None,
    dL_ds_e: npt.ArrayLike | None = None,
    dL_ds_i: npt.ArrayLike | None = None,
    dL_ds_box: npt.ArrayLike | None = None,
    on_failure: OnFailure = "raise",
) -> Gradients:
    """Gradients of a loss L(x, y, z, z_box, s_e, s_i, s_box) with respect to the data of the QP.

    With (b1, b2, b4) the solution of the adjoint system, lambda = (y, z, z_box) and M = (A; C; I):

        dL/dg = b1                             dL/dH = 1/2 (b1 x' + x b1')
        dL/dM = lambda b1' + b2 x' + s b4'     dL/d(side) = -b2

    Parameters
    ----------
    solution
        From `solve_qp`, `Solver.solve` or `solve_batch`.
    dL_dx, dL_dy, dL_dz, dL_dz_box, dL_ds_e, dL_ds_i, dL_ds_box
        Derivatives of the loss, shaped as the solution; None for zero.
    on_failure
        What to do about samples whose status is neither SOLVED nor SOLVED_CLOSEST_PRIMAL_FEASIBLE:
        "raise"; "nan": their gradients are NaN (and so are those of shared data); "zero": they do
        not contribute.

    Returns
    -------
    Gradients
        dL_dH (the gradient with respect to the symmetric part of H), dL_dg, ... dL_dub.

    Raises
    ------
    UnsolvedError
        A sample is not solved; names it and its status.
    ShapeError, DataError
        A cotangent does not fit the solution, or is not finite.
    SettingsError
        `solution` or `on_failure` is none of the above.
    TooLargeError
        The gradients would take more memory than there is.

    Warns
    -----
    UserWarning
        The loss depends on the multipliers of a closest feasible QP, which are not unique.

    Notes
    -----
    Where the derivative is not unique (an LP with a face of solutions, dependent active rows) it is
    the least-norm element of the conservative Jacobian; weakly active rows count as active.

    References
    ----------
    Bambade, Schramm, Taylor, Carpentier, *Leveraging augmented-Lagrangian techniques for
    differentiating over infeasible quadratic programs in machine learning*, ICLR 2024, system (2).

    Examples
    --------
    >>> import numpy as np, nbqp
    >>> sol = nbqp.solve_qp(np.eye(2), np.array([-1.0, 1.0]), lb=np.zeros(2))
    >>> grads = nbqp.vjp(sol, dL_dx=np.array([1.0, 1.0]))
    >>> grads.dL_dg, grads.dL_dlb
    (array([-1.,  0.]), array([0., 1.]))
    """
    at = Linearised(solution, on_failure)
    given = {
        "dL_dx": dL_dx,
        "dL_dy": dL_dy,
        "dL_dz": dL_dz,
        "dL_dz_box": dL_dz_box,
        "dL_ds_e": dL_ds_e,
        "dL_ds_i": dL_ds_i,
        "dL_ds_box": dL_ds_box,
    }
    parts = at.cotangents(given)
    r, r_s = Point(*parts[:4]), Shifts(*parts[4:])
    warn_of_multipliers(at.closest, r)
    adjoint = solve_adjoint(at.qp, at.active, r, r_s, at.closest, at.failed)
    at.fill_failed(*adjoint.b, adjoint.b4)
    entries = sum(len(getattr(at.qp, name).values) * at.qp.entries(name) for name in "HAC")
    size = OUTER_PRODUCTS * NUMBER * entries
    require_memory("gradients", size)
    return run_apart_if_large(
        lambda: outer_products(at.qp, at.active, at.point, at.shifts, adjoint), size, Watch()
    )


def products_on_pattern(
    pattern: StoredPattern, Y: Floats, P: Floats, Q: Floats, X: Floats, S: Floats, B: Floats
) -> Any:
    """Y'P + Q'X + S'B at the stored entries of a scipy.sparse datum."""
    rows, columns = pattern.entries
    values = np.empty(len(rows))
    sample_products(rows, columns, Y, P, Q, X, S, B, values)
    return pattern.with_values(values)


def products_at(
    rows: Ints,
    columns: Ints,
    factors: tuple[Floats, Floats, Floats],
    b1: Floats,
    x: Floats,
    b4: Floats,
) -> Floats:
    """Entries (..., rows and columns) of left b1' + b2 x' + s b4', of each sample; factors: left, b2, s."""
    left, b2, s = factors
    product: Floats = left[..., rows] * b1[..., columns]
    product += b2[..., rows] * x[..., columns]
    if s.any():
        product += s[..., rows] * b4[..., columns]
    return product


def vector_gradients(active: ActiveSet, b: Point) -> dict[str, Floats]:
    """The gradients of the vectors that belong to an adjoint, by name, each shaped as its part of b."""
    low, high = side_shares(active.side)
    low_box, high_box = side_shares(active.side_box)
    return {
        "g": b.x,
        "b": -b.y,
        "l": -low * b.z,
        "u": -high * b.z,
        "lb": -low_box * b.z_box,
        "ub": -high_box * b.z_box,
    }


def matrix_factors(
    point: Point, shifts: Shifts, b: Point
) -> dict[str, tuple[Floats, Floats, Floats]]:
    """(left, b2, s) of the gradients left b1' + b2 x' + s b4' of the matrices, by name."""
    return {
        "H": (0.5 * point.x, 0.5 * b.x, np.zeros_like(point.x)),
        "A": (point.y, b.y, shifts.s_e),
        "C": (point.z, b.z, shifts.s_i),
    }


def outer_products(
    qp: QP, active: ActiveSet, point: Point, shifts: Shifts, adjoint: Adjoint
) -> Gradients:
    """The gradients that belong to an adjoint, in the forms that the data were given in."""
    b, b4 = adjoint

    # A sum, even of one sample, is kept for what a batch shares: it makes 0 of -0.

    def vector(name: str, gradient: Floats) -> Any:
        form = qp.forms[name]
        if form is None:
            return None
        if form == "scalar":
            return gradient.sum()
        if form != "batched":
            return gradient.sum(axis=0)
        one_each = len(getattr(qp, name)) == qp.batch
        return gradient if one_each else gradient.sum(axis=0, keepdims=True)

    def matrix(name: str, left: Floats, b2: Floats, s: Floats) -> Any:
        form = qp.forms[name]
        if form is None:
            return None
        if isinstance(form, Sparse) and form.ndim == 3:
            rows, columns = form.pattern.entries
            values = products_at(rows, columns, (left, b2, s), b.x, point.x, b4)
            if form.shape[0] != qp.batch:
                values = values.sum(axis=0, keepdims=True)
            return Sparse(form.pattern, values)
        if isinstance(form, Sparse):
            found = products_on_pattern(form.pattern, left, b.x, b2, point.x, s, b4)
            return Sparse(form.pattern, found.data)
        if isinstance(form, StoredPattern):
            return products_on_pattern(form, left, b.x, b2, point.x, s, b4)
        one_each = form == "batched" and len(getattr(qp, name).values) == qp.batch
        if name == "H":
            # There is no s, and the second product is the first one transposed, which is exactly symmetric; a matrix
            # product of both would fuse multiplications and additions.
            half = left[:, :, None] * b.x[:, None, :] if one_each else left.T @ b.x
            total = half + half.swapaxes(-1, -2)
        elif one_each:
            total = np.stack((left, b2, s), axis=2) @ np.stack((b.x, point.x, b4), axis=1)
        else:
            total = left.T @ b.x + b2.T @ point.x + s.T @ b4
        return total[None] if form == "batched" and not one_each else total

    vectors, factors = vector_gradients(active, b), matrix_factors(point, shifts, b)
    gradients = {name: vector(name, gradient) for name, gradient in vectors.items()}
    gradients |= {name: matrix(name, *parts) for name, parts in factors.items()}
    return Gradients(**{f"dL_d{name}": gradient for name, gradient in gradients.items()})


def jvp(
    solution: Solution | BatchSolution,
    *,
    dH: Any = None,
    dg: npt.ArrayLike | None = None,
    dA: Any = None,
    db: npt.ArrayLike | None = None,
    dC: Any = None,
    dl: npt.ArrayLike | None = None,
    du: npt.ArrayLike | None = None,
    dlb: npt.ArrayLike | None = None,
    dub: npt.ArrayLike | None = None,
    on_failure: OnFailure = "raise",
) -> Tangents:
    """Derivative of the solution along a direction of the data.

    With lambda = (y, z, z_box), M = (A; C; I), J its active rows, V the equalities and the rows with a
    shift, it solves, ds = 0 outside V,

        H dx + M_J' dlambda_J = -(dH x + dg + dM' lambda)
        M_J dx - ds           = d(side) - dM x
        M_V' ds               = -dM_V' s

    Parameters
    ----------
    solution
        From `solve_qp`, `Solver.solve` or `solve_batch`.
    dH, dg, dA, db, dC, dl, du, dlb, dub
        The direction: shaped as the data, or with a batch axis more; matrices dense or
        scipy.sparse; of dH the symmetric part counts. None for zero. Infinite sides stay.
    on_failure
        As in `vjp`.

    Returns
    -------
    Tangents
        dx, dy, dz, dz_box, ds_e, ds_i, ds_box.

    Raises
    ------
    UnsolvedError, ShapeError, DataError, SettingsError
        As in `vjp`.

    References
    ----------
    As in `vjp`, section 3, of which this is the forward mode; also its notes hold.

    Examples
    --------
    >>> import numpy as np, nbqp
    >>> sol = nbqp.solve_qp(np.eye(2), np.array([-1.0, 1.0]), lb=np.zeros(2))
    >>> nbqp.jvp(sol, dg=np.ones(2), dlb=np.array([0.0, 2.0])).dx
    array([-1.,  2.])
    """
    at = Linearised(solution, on_failure)
    qp, active = at.qp, at.active
    x, y, z, _ = at.point

    def vector(name: str, value: npt.ArrayLike | None, size: int) -> Floats:
        array = np.zeros(size) if value is None else numbers(name, value)
        _require_finite(name, array)
        try:
            return np.broadcast_to(array, (qp.batch, size))
        except ValueError:
            raise ShapeError(
                f"{name}: expected shape ({size},) or ({qp.batch}, {size}), got {array.shape}."
            ) from None

    def times(name: str, value: Any, v: Floats, rows: int, transposed: bool = False) -> Floats:
        """M v, or M' v, for every sample."""
        if value is None:
            return np.zeros((qp.batch, qp.n if transposed else rows))
        sparse = scipy.sparse.issparse(value) or isinstance(value, Sparse)
        M = value if sparse else numbers(name, value)
        if M.shape not in ((rows, qp.n), (qp.batch, rows, qp.n)):
            raise ShapeError(
                f"{name}: expected shape ({rows}, {qp.n}) or ({qp.batch}, {rows}, {qp.n}), "
                f"got {M.shape}."
            )
        if isinstance(M, Sparse):
            _require_finite(name, M.values)
            matrices = map(M.pattern.with_values, np.atleast_2d(numbers(name, M.values)))
            samples = itertools.islice(itertools.cycle(matrices), qp.batch)
            parts = [
                (m.T if transposed else m) @ vector for m, vector in zip(samples, v, strict=True)
            ]
            return np.array(parts).reshape(qp.batch, -1)
        _require_finite(name, M.data if scipy.sparse.issparse(M) else M)
        if M.ndim == 3:
            product = np.einsum("kij,ki->kj" if transposed else "kij,kj->ki", M, v)
        else:
            product = (M.T @ v.T).T if transposed else (M @ v.T).T
        return np.asarray(product, dtype=np.float64)

    dHx = 0.5 * (times("dH", dH, x, qp.n) + times("dH", dH, x, qp.n, transposed=True))
    stationarity = (
        dHx
        + vector("dg", dg, qp.n)
        + times("dA", dA, y, qp.n_eq, transposed=True)
        + times("dC", dC, z, qp.n_in, transposed=True)
    )
    low, high = side_shares(active.side)
    low_box, high_box = side_shares(active.side_box)
    moved = low * vector("dl", dl, qp.n_in) + high * vector("du", du, qp.n_in)
    r = Point(
        -stationarity,
        vector("db", db, qp.n_eq) - times("dA", dA, x, qp.n_eq),
        moved - times("dC", dC, x, qp.n_in),
        low_box * vector("dlb", dlb, qp.n) + high_box * vector("dub", dub, qp.n),
    )
    s_e, s_i, _ = at.shifts
    r_4 = -times("dA", dA, s_e, qp.n_eq, transposed=True)
    r_4 -= times("dC", dC, s_i, qp.n_in, transposed=True)
    point, shifts = solve_direction(qp, active, r, r_4, at.closest, at.failed)
    parts = (*point, *shifts)
    at.fill_failed(*parts)
    return Tangents(*(part[0] if at.single else part for part in parts))
