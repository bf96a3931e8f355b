"""Jacobians of a solution: an adjoint for every entry of a part of it, one factorisation for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, overload

import numpy as np

from nbqp.batch import BatchSolution
from nbqp.derivative import (
    Linearised,
    OnFailure,
    matrix_factors,
    products_at,
    vector_gradients,
    warn_of_multipliers,
)
from nbqp.errors import SettingsError
from nbqp.kernels.structure import Floats
from nbqp.kkt_system import ActiveSet, Point, Shifts, solve_adjoint
from nbqp.memory import NUMBER, require_memory
from nbqp.problem import NAMES, QP
from nbqp.solution import Solution
from nbqp.sparse import Sparse
from nbqp.stored_pattern import StoredPattern
from nbqp.threads import run_apart_if_large
from nbqp.watch import Watch

Part = Literal["x", "y", "z", "z_box", "s_e", "s_i", "s_box"]
Datum = Literal["H", "g", "A", "b", "C", "l", "u", "lb", "ub"]
Data: TypeAlias = "tuple[Datum, ...] | list[Datum]"
PARTS = (*Point._fields, *Shifts._fields)
SYSTEMS = 3
"""Arrays of the sizes of x, y, z and z_box for every row: right-hand sides and adjoints, shifts included."""
PRODUCTS = 4
"""Arrays of the size of a Jacobian of a matrix that exist at a time."""


@overload
def jacobian(
    solution: Solution | BatchSolution,
    *,
    wrt: Datum,
    of: Part = "x",
    on_failure: OnFailure = "raise",
) -> Floats: ...


@overload
def jacobian(
    solution: Solution | BatchSolution,
    *,
    wrt: Data,
    of: Part = "x",
    on_failure: OnFailure = "raise",
) -> dict[str, Floats]: ...


def jacobian(
    solution: Solution | BatchSolution,
    *,
    wrt: Datum | Data,
    of: Part = "x",
    on_failure: OnFailure = "raise",
) -> Floats | dict[str, Floats]:
    """Jacobian of a part of the solution with respect to data of the QP.

    Row i is the gradient of `vjp` for the loss v_i, v the part: with (b1, b2, b4) the solution of the
    adjoint system for it, lambda = (y, z, z_box) and M = (A; C; I),

        dv_i/dg = b1                             dv_i/dH = 1/2 (b1 x' + x b1')
        dv_i/dM = lambda b1' + b2 x' + s b4'     dv_i/d(side) = -b2

    The matrix of the system is factorised once for all rows.

    Parameters
    ----------
    solution
        From `solve_qp`, `Solver.solve` or `solve_batch`.
    wrt
        "H", "g", "A", "b", "C", "l", "u", "lb" or "ub", or several of them; each a datum of this QP.
    of
        "x", "y", "z", "z_box", "s_e", "s_i" or "s_box".
    on_failure
        What to do about samples whose status is neither SOLVED nor SOLVED_CLOSEST_PRIMAL_FEASIBLE:
        "raise", or make their Jacobians "nan" or "zero".

    Returns
    -------
    array or dict of str to array
        float64, for a single name the array, for several a dict of them: the size of the part, then
        the shape of the datum, () for a number. For a scipy.sparse datum or a `Sparse` (size of the part,
        nnz), the entries in the order of the datum's own (of CSC for formats other than CSC, CSR and COO). Of
        batches all this behind a batch axis, also for data that the samples share. With respect to
        H: to its symmetric part.

    Raises
    ------
    UnsolvedError
        A sample is not solved; names it and its status.
    SettingsError
        `solution`, `of` or `on_failure` is none of the above, or `wrt` names what is no datum of the QP.
    TooLargeError
        The Jacobian would take more memory than there is.

    Warns
    -----
    UserWarning
        The part is one of the multipliers of a closest feasible QP, which are not unique.

    Notes
    -----
    Those of `vjp` hold. Where the matrix of a sample is singular, an LP with a face of solutions, say, each
    row takes as long as a `vjp`.

    Examples
    --------
    >>> import numpy as np, nbqp
    >>> sol = nbqp.solve_qp(np.eye(2), np.zeros(2), A=np.ones((1, 2)), b=np.ones(1))
    >>> nbqp.jacobian(sol, of="x", wrt="b").round(6)
    array([[0.5],
           [0.5]])
    >>> jac = nbqp.jacobian(sol, of="y", wrt=("g", "A"))
    >>> jac["g"].shape, jac["A"].shape
    ((1, 2), (1, 1, 2))
    """
    at = Linearised(solution, on_failure)
    if of not in PARTS:
        raise SettingsError(f"of: expected one of {', '.join(PARTS)}, got {of!r}.")
    names = tuple(wrt) if isinstance(wrt, (list, tuple)) else (wrt,)
    given = [name for name in NAMES if at.qp.forms[name] is not None]
    for name in names:
        if not isinstance(name, str) or name not in given:
            raise SettingsError(f"wrt: expected data of this QP, {', '.join(given)}, got {name!r}.")
    parts = {**at.point._asdict(), **at.shifts._asdict()}
    batch, count = parts[of].shape
    size = _require_memory(at.qp, batch * count, names)
    r, r_s = _unit_right_sides(parts, of)
    warn_of_multipliers(np.repeat(at.closest, count), r)
    b, b4 = solve_adjoint(at.qp, at.active, r, r_s, at.closest, at.failed)
    *b2, b4 = (part.reshape(batch, count, part.shape[1]) for part in (*b, b4))
    at.fill_failed(*b2, b4)
    found = run_apart_if_large(lambda: _jacobians(at, Point(*b2), b4, names), size, Watch())
    if at.single:
        found = {name: array[0] for name, array in found.items()}
    return found[wrt] if isinstance(wrt, str) else found


def _require_memory(qp: QP, rows: int, names: Sequence[Datum]) -> int:
    """Raise `TooLargeError` where Jacobians with so many rows would take more memory than there is.

    Returns the size in bytes.
    """
    width = 2 * qp.n + qp.n_eq + qp.n_in
    products: int = sum(PRODUCTS * qp.entries(name) for name in names if name in "HAC")
    size: int = NUMBER * rows * (SYSTEMS * width + products)
    require_memory("Jacobian", size)
    return size


def _unit_right_sides(parts: dict[str, Floats], of: Part) -> tuple[Point, Shifts]:
    """-dL of every part (batch, .) for the losses that are the entries of one, (batch * entries, .)."""
    batch, count = parts[of].shape
    r = {name: np.zeros((batch, count, part.shape[1])) for name, part in parts.items()}
    r[of][:] = -np.eye(count)
    flat = [part.reshape(batch * count, part.shape[2]) for part in r.values()]
    split = len(Point._fields)
    return Point(*flat[:split]), Shifts(*flat[split:])


def _jacobians(at: Linearised, b: Point, b4: Floats, names: Sequence[Datum]) -> dict[str, Floats]:
    """With respect to each datum, (batch, entries, ...): the products of adjoints (batch, entries, .)."""
    # The solution is the same for all entries of a sample.
    active = ActiveSet(*(part[:, None] for part in at.active))
    point = Point(*(part[:, None] for part in at.point))
    shifts = Shifts(*(part[:, None] for part in at.shifts))
    vectors, factors = vector_gradients(active, b), matrix_factors(point, shifts, b)
    found: dict[str, Floats] = {}
    for name in names:
        form = at.qp.forms[name]
        if name in vectors:
            found[name] = vectors[name].sum(axis=2) if form == "scalar" else vectors[name]
            continue
        pattern = form.pattern if isinstance(form, Sparse) else form
        if isinstance(pattern, StoredPattern):
            rows, columns = pattern.entries
        else:
            rows, columns = np.indices(getattr(at.qp, name).shape, sparse=True)
        found[name] = products_at(rows, columns, factors[name], b.x, point.x, b4)
    return found
