"""The nine data of a QP, validated and in the solver's form.

min 1/2 x'Hx + g'x   s.t.   Ax = b,   l <= Cx <= u,   lb <= x <= ub
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import scipy.sparse

from nbqp.arrays import real
from nbqp.errors import DataError, PatternError, ShapeError, SymmetryError
from nbqp.kernels.structure import Data, Floats, Pattern
from nbqp.kernels.symmetry import symmetrise
from nbqp.kernels.validity import settle
from nbqp.memory import NUMBER, VECTORS, require_memory
from nbqp.sparse import Sparse
from nbqp.sparse_matrix import SparseMatrix, with_symmetric_pattern
from nbqp.stored_pattern import StoredPattern

Vector: TypeAlias = "npt.ArrayLike | None"
Found = TypeVar("Found")
Matrix: TypeAlias = Any  # dense array-like, scipy.sparse matrix or array, or None
Form: TypeAlias = Literal["scalar", "shared", "batched"] | StoredPattern | Sparse | None
"""How a datum was given: as a number, without or with a batch axis, sparse, or not at all."""

NAMES = ("H", "g", "A", "b", "C", "l", "u", "lb", "ub")
"""Of the nine data, of which these are matrices and vectors."""
MATRICES = ("H", "A", "C")
VECTOR_NAMES = ("g", "b", "l", "u", "lb", "ub")
ROUNDINGS = 16.0
"""Units of rounding, of its own type, that the two halves of a symmetric H may differ by."""


def _dtype(H: Matrix) -> np.dtype[Any]:
    """Of the numbers as NumPy has them: other packages have dtypes of their own."""
    found = getattr(H, "dtype", None)
    if isinstance(found, np.dtype):
        return found
    return real("H", H.values if isinstance(H, Sparse) else H).dtype


def _vector(name: str, value: Vector, size: int, default: float, batch: bool) -> Floats:
    """A datum as (1 or batch, size); None stands for the default, a scalar for all entries."""
    if value is None:
        return np.full((1, size), default)
    given = real(name, value)
    require_memory(name, NUMBER * given.size)
    # A copy: what the user does to the array later is no business of a solution's residuals.
    array = np.array(given, dtype=np.float64, order="C")
    if array.ndim == 0:
        return np.full((1, size), float(array))
    ranks = (1, 2) if batch else (1,)
    if array.ndim not in ranks or array.shape[-1] != size:
        expected = f"({size},)" + (f" or (batch, {size})" if batch else "")
        raise ShapeError(f"{name}: expected shape {expected}, got {np.shape(value)}.")
    return array[None] if array.ndim == 1 else array


def _form(name: str, value: Any) -> Form:
    """How a datum was given."""
    if value is None or isinstance(value, Sparse):
        return value
    if scipy.sparse.issparse(value):
        return StoredPattern(value)
    rank = np.ndim(value)
    if rank == (3 if name in "HAC" else 2):
        return "batched"
    return "scalar" if rank == 0 else "shared"


class Findings:
    """What follows from the matrices of a QP alone, found once for all QPs that share them."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type[Findings], tuple[()]]:
        # A copy, in another process perhaps, finds it anew.
        return Findings, ()

    def find(
        self, name: str, make: Callable[[], Found], complete: Callable[[], bool] = lambda: True
    ) -> Found:
        """What `make` returns the first time, kept unless it is not complete then.

        Threads that ask for it at once may each call `make`.
        """
        if name in self._known:
            known: Found = self._known[name]
            return known
        made = make()
        found: Found = self._known.setdefault(name, made) if complete() else made
        return found


class QP:
    """One QP, or a batch of QPs of one pattern, in the solver's form.

    Parameters
    ----------
    H, A, C
        Dense arrays, scipy.sparse matrices or `Sparse` of shapes (n, n), (n_eq, n), (n_in, n), or None.
        H is symmetric to within the rounding of its dtype; its symmetric part is used.
    g, b, l, u, lb, ub
        Vectors; bounds may be scalars, and None where absent.
    batch
        Whether dense arguments may carry a leading batch axis. Then bad values in one sample of a
        batched argument mark the sample in `invalid` instead of raising.

    Attributes
    ----------
    n, n_eq, n_in : int
        Variables, rows of A, rows of C.
    batch : int
        Samples; 1 where no datum has a batch axis.
    is_batch : bool
        Whether data may have a batch axis, even if none has.
    H, A, C : SparseMatrix
        Copies; an absent H has no entries, an absent A or C no rows.
    g, b, l, u, lb, ub : (1 or batch, size) float64
        Copies; an absent side, or one of at least 1e18 in magnitude, is infinite.
    forms : dict of str to Form
        How each of the nine data was given, by name: "scalar", "shared" (no batch axis), "batched",
        its `StoredPattern` where it is a scipy.sparse matrix, itself where it is a `Sparse`, None where it
        is absent.
    found : Findings
        Of H, A and C: the analysis of their pattern and, where they have no batch axis, their scaling and
        whether H is semidefinite.
    invalid : (batch,) bool
        Samples with NaN, infinite entries, crossed bounds or an H that is not symmetric.

    Raises
    ------
    ShapeError, DataError, SymmetryError, TooLargeError
        The first line names the argument, what was expected and what came.
    """

    g: Floats
    b: Floats
    l: Floats
    u: Floats
    lb: Floats
    ub: Floats

    def __init__(
        self,
        H: Matrix = None,
        g: Vector = None,
        A: Matrix = None,
        b: Vector = None,
        C: Matrix = None,
        l: Vector = None,
        u: Vector = None,
        lb: Vector = None,
        ub: Vector = None,
        *,
        batch: bool = False,
    ) -> None:
        if g is None:
            raise ShapeError("g: expected a vector, got None.")
        shape = real("g", g).shape
        if len(shape) not in ((1, 2) if batch else (1,)):
            raise ShapeError(
                f"g: expected shape (n,){' or (batch, n)' if batch else ''}, got {shape}."
            )
        n = shape[-1]
        if n == 0:
            raise ShapeError("g: expected at least one entry, got none.")
        require_memory(f"g of {n} entries", VECTORS * NUMBER * n)
        self.n = n
        self.H = self._matrix("H", H, n, batch)
        self.A = self._matrix("A", A, n, batch)
        self.C = self._matrix("C", C, n, batch)
        if H is not None and self.H.shape[0] != n:
            raise ShapeError(f"H: expected shape ({n}, {n}), got {self.H.shape}.")
        given = {"H": H, "g": g, "A": A, "b": b, "C": C, "l": l, "u": u, "lb": lb, "ub": ub}
        self.n_eq = self.A.shape[0]
        self.n_in = self.C.shape[0]
        self._require_partners(given)
        self._set_vectors(given, batch)
        self.batch = self._batch_size()
        self.is_batch = batch
        self.forms: dict[str, Form] = {name: _form(name, value) for name, value in given.items()}
        self.found = Findings()
        self.invalid = np.zeros(self.batch, dtype=np.bool_)
        if not settle(self.data()):
            self._find_bad_values(NAMES)
        if H is not None:
            self._symmetrise(_dtype(H))

    def with_vectors(self, vectors: Mapping[str, Vector]) -> QP:
        """The QP with other vectors; the matrices, which have no batch axis, are shared.

        Of a batch all six vectors are given, None where absent.

        Raises
        ------
        ShapeError, DataError
            As in the constructor.
        """
        self._require_partners({**self.forms, **vectors})
        problem = copy.copy(self)
        problem._set_vectors(vectors, self.is_batch)
        if self.is_batch:
            problem.batch = problem._batch_size()
            problem.invalid = np.zeros(problem.batch, dtype=np.bool_)
        problem.forms = {
            **self.forms,
            **{name: _form(name, value) for name, value in vectors.items()},
        }
        if not settle(problem.data()):
            problem._find_bad_values(vectors)
        return problem

    def repeated(self, batch: int) -> QP:
        """A batch of so many samples that share all data of this QP, which have no batch axis."""
        problem = copy.copy(self)
        problem.batch = batch
        problem.invalid = np.zeros(batch, dtype=np.bool_)
        return problem

    def entries(self, name: str) -> int:
        """How many entries H, A or C of a sample has, in the form that it was given in."""
        matrix, form = getattr(self, name), self.forms[name]
        stored = form is None or isinstance(form, (Sparse, StoredPattern))
        return len(matrix.i) if stored else math.prod(matrix.shape)

    def given_vectors(self) -> dict[str, Vector]:
        """The vectors of the QP, which is no batch, in the forms that they were given in."""
        given: dict[str, Vector] = {}
        for name in VECTOR_NAMES:
            form, values = self.forms[name], getattr(self, name)[0]
            # Of a scalar side of no rows no value is left, and none counts.
            scalar = values[0] if len(values) else 0.0
            given[name] = None if form is None else scalar if form == "scalar" else values
        return given

    def shares_matrices(self) -> bool:
        """Whether H, A and C are the same for all samples."""
        return len(self.H.values) == len(self.A.values) == len(self.C.values) == 1

    def has_batch_axis(self, name: str) -> bool:
        """Whether a datum was given with a batch axis."""
        form = self.forms[name]
        return form == "batched" or (isinstance(form, Sparse) and form.ndim == 3)

    def _require_partners(self, given: Mapping[str, Any]) -> None:
        """Raise `ShapeError` where a vector is given without its matrix, or b is missing."""
        if given["g"] is None:
            raise ShapeError("g: expected a vector, got None.")
        if given["A"] is not None and given["b"] is None:
            raise ShapeError(f"b: expected a vector of {self.n_eq}, as A is given, got None.")
        if given["A"] is None and given["b"] is not None:
            raise ShapeError("A: expected a matrix, as b is given, got None.")
        if given["C"] is None and (given["l"] is not None or given["u"] is not None):
            raise ShapeError("C: expected a matrix, as l or u is given, got None.")

    def _set_vectors(self, given: Mapping[str, Any], batch: bool) -> None:
        """Copy those of g, b, l, u, lb and ub that are given, in the kernels' form."""
        sizes = {"g": self.n, "b": self.n_eq}
        for name in sizes.keys() & given.keys():
            setattr(self, name, _vector(name, given[name], sizes[name], 0.0, batch))
        sides = {"l": self.n_in, "u": self.n_in, "lb": self.n, "ub": self.n}
        for name in sides.keys() & given.keys():
            absent = -np.inf if name.startswith("l") else np.inf
            setattr(self, name, _vector(name, given[name], sides[name], absent, batch))

    def _find_bad_values(self, names: Collection[str]) -> None:
        """Reject NaN, infinite entries and crossed bounds among the data of these names."""
        for name in ("H", "g", "A", "b", "C"):
            if name in names:
                array = getattr(self, name).values if name in "HAC" else getattr(self, name)
                self._reject((name,), "expected finite entries", [array], ~np.isfinite(array))
        for name, wrong in (("l", np.inf), ("u", -np.inf), ("lb", np.inf), ("ub", -np.inf)):
            if name in names:
                side = getattr(self, name)
                bad = np.isnan(side) | (side == wrong)
                self._reject((name,), f"expected numbers other than {wrong}", [side], bad)
        for lower, upper in (("l", "u"), ("lb", "ub")):
            if lower not in names and upper not in names:
                continue
            low, high = getattr(self, lower), getattr(self, upper)
            crossed = np.asarray(low > high)
            both = np.broadcast_arrays(low, high)
            self._reject((lower, upper), f"expected {lower} <= {upper}", both, crossed)

    def _reject(
        self,
        names: tuple[str, ...],
        expected: str,
        values: Sequence[Floats],
        bad: npt.NDArray[np.bool_],
    ) -> None:
        """Mark the samples with bad values in a batched datum; raise where it is not batched."""
        if not bad.any():
            return
        if any(map(self.has_batch_axis, names)):
            self.invalid |= bad.any(axis=1)
            return
        at = int(np.flatnonzero(bad[0])[0])
        got = " > ".join(str(value[0, at]) for value in values)
        raise DataError(f"{names[0]}: {expected}, got {got} in entry {at}.")

    @staticmethod
    def _matrix(name: str, value: Matrix, n: int, batch: bool) -> SparseMatrix:
        if value is None:
            return SparseMatrix.empty(n if name == "H" else 0, n)
        matrix = SparseMatrix.from_user(name, value, batch)
        if matrix.shape[1] != n:
            raise ShapeError(f"{name}: expected {n} columns, as g has, got {matrix.shape[1]}.")
        return matrix

    def _symmetrise(self, dtype: np.dtype[Any]) -> None:
        order = self.H.transpose_order()
        if order is None:
            self.H = with_symmetric_pattern(self.H)
            order = self.H.transpose_order()
        values = self.H.values
        size, skew = np.empty(len(values)), np.empty(len(values))
        symmetrise(order, values, size, skew)
        eps = np.finfo(dtype if dtype.kind == "f" else np.float64).eps
        skewed = skew > ROUNDINGS * eps * size
        if skewed.any() and not self.has_batch_axis("H"):
            raise SymmetryError(
                f"H: expected a symmetric matrix, got one with |H - H'| up to {skew[0]:.3g}."
            )
        if skewed.any():
            self.invalid |= skewed

    def _batch_size(self) -> int:
        sizes = {
            name: len(getattr(self, name).values if name in "HAC" else getattr(self, name))
            for name in NAMES
        }
        largest = 0 if 0 in sizes.values() else max(sizes.values())
        for name, size in sizes.items():
            if size not in (1, largest):
                raise ShapeError(
                    f"{name}: expected a batch of {largest}, as the other arguments, got {size}."
                )
        return largest

    def pattern(self) -> Pattern:
        """The sizes and patterns that kernels need."""
        H, A, C = self.H, self.A, self.C
        return Pattern(self.n, self.n_eq, self.n_in, H.p, H.i, A.p, A.i, C.p, C.i)

    def data(self) -> Data:
        """The values that kernels need, each (1 or batch, size)."""
        return Data(
            self.H.values,
            self.g,
            self.A.values,
            self.b,
            self.C.values,
            self.l,
            self.u,
            self.lb,
            self.ub,
        )

    def nbytes(self) -> int:
        """Bytes of all values."""
        return sum(values.nbytes for values in self.data())

    def require_pattern(self, name: str, other: QP) -> None:
        """Raise `PatternError` unless a matrix of `other` has this problem's size and pattern."""
        mine, its = getattr(self, name), getattr(other, name)
        if (
            mine.shape != its.shape
            or not np.array_equal(mine.p, its.p)
            or not np.array_equal(mine.i, its.i)
        ):
            raise PatternError(
                f"{name}: expected the pattern that the solver was made for "
                f"({mine.shape} with {len(mine.i)} entries), got another one "
                f"({its.shape} with {len(its.i)} entries)."
            )
