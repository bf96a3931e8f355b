"""Quadratic programs from .mat files, and how far a primal-dual point is from solving one."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.io
import scipy.sparse

Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Sparse: TypeAlias = Any
"""A scipy.sparse.csc_matrix."""

NO_SIDE = 1e18
"""Sides of that size are absent: the files write 1e20, some of them rounded."""


class Residuals(NamedTuple):
    """Primal and dual residual and duality gap, absolute, in the maximum norm.

    gap_size: sum of the magnitudes of the gap's terms, which its rounding grows with.
    """

    primal: float
    dual: float
    gap: float
    gap_size: float


@dataclasses.dataclass(frozen=True)
class Program:
    """min 1/2 x'Px + q'x   s.t.   l <= Ax <= u.

    P (n, n) is symmetric with both triangles stored; A (rows + n, n) ends in the identity, whose
    sides are the bounds of x. Absent sides are infinite. A multiplier y > 0 holds on to the upper
    side, y < 0 to the lower one:

        Px + q + A'y = 0
    """

    name: str
    P: Sparse
    q: Floats
    A: Sparse
    l: Floats
    u: Floats

    @property
    def n(self) -> int:
        """Number of variables."""
        return len(self.q)

    @property
    def rows(self) -> int:
        """Number of rows of A above the identity."""
        return len(self.l) - self.n

    @property
    def equal(self) -> Mask:
        """Which rows of A, the identity's included, are equations."""
        equal: Mask = self.l == self.u
        return equal

    @property
    def bounded(self) -> Mask:
        """Which rows of A, the identity's included, have a side."""
        return np.isfinite(self.l) | np.isfinite(self.u)

    def residuals(self, x: Floats, y: Floats) -> Residuals:
        """Judge x (n,) and y (rows + n,); multipliers that hold on to absent sides are dropped.

        primal  max(l - Ax, Ax - u, 0)
        dual    |Px + q + A'y|
        gap     |x'Px + q'x + u'y_+ - l'y_-|

        Sums are of extended precision where the machine has it: those of doubles, with terms of 1e12,
        are off by more than what is judged.
        """
        y = np.where(np.isfinite(np.where(y > 0, self.u, self.l)), y, 0.0)
        side = np.where(y > 0, self.u, np.where(y < 0, self.l, 0.0))
        Ax, gradient = _product(self.A, x), _product(self.P, x) + self.q
        violation = np.maximum(self.l - Ax, Ax - self.u)
        terms = np.concatenate([x * gradient, y * side.astype(np.longdouble)])
        return Residuals(
            primal=float(np.max(violation, initial=0.0)),
            dual=float(np.max(np.abs(gradient + _product(self.A.T, y)))),
            gap=float(abs(terms.sum())),
            gap_size=float(np.abs(terms).sum()),
        )


def _product(M: Sparse, x: Floats) -> npt.NDArray[np.longdouble]:
    """M x in extended precision."""
    entries = M.tocoo()
    out = np.zeros(M.shape[0], dtype=np.longdouble)
    np.add.at(out, entries.row, entries.data.astype(np.longdouble) * x[entries.col])
    return out


def load_program(path: Path) -> Program:
    """Read P q A l u of a .mat file; the lower triangle of P may be missing.

    Raises
    ------
    ValueError
        The last rows of A are not the identity, or P is neither symmetric nor triangular.
    """
    data = scipy.io.loadmat(path)
    P, A = (scipy.sparse.csc_matrix(data[name], dtype=np.float64) for name in "PA")
    q, l, u = (np.asarray(data[name], dtype=np.float64).ravel() for name in ("q", "l", "u"))
    n = len(q)
    if (A[A.shape[0] - n :] != scipy.sparse.eye(n)).nnz:
        raise ValueError(f"{path}: expected the last {n} rows of A to be the identity.")
    if (P != P.T).nnz:
        if scipy.sparse.tril(P, -1).nnz:
            raise ValueError(f"{path}: expected P symmetric or upper triangular.")
        P = (P + scipy.sparse.triu(P, 1).T).tocsc()
    l[l <= -NO_SIDE] = -np.inf
    u[u >= NO_SIDE] = np.inf
    for matrix in (P, A):
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
    return Program(path.stem, P, q, A, l, u)


def small_program() -> Program:
    """An equation, a row with one side and bounds of every kind: to warm a solver up."""
    P = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
    rows = np.array([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0]])
    inf = np.inf
    return Program(
        "small",
        scipy.sparse.csc_matrix(P),
        np.array([1.0, -1.0, 0.5]),
        scipy.sparse.csc_matrix(np.vstack([rows, np.eye(3)])),
        np.array([1.0, -inf, 0.0, -inf, -inf]),
        np.array([1.0, 2.0, 1.0, inf, 3.0]),
    )


def select_programs(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The .mat files of a folder whose names, without suffix, match one of the patterns.

    Raises
    ------
    FileNotFoundError
        There is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of .mat files, found none.")
    names = {path.stem: path for path in sorted(folder.glob("*.mat"))}
    patterns = list(patterns)
    found = [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    if not found:
        raise FileNotFoundError(f"{folder}: no .mat file matches {', '.join(patterns)}.")
    return [names[name] for name in found]
