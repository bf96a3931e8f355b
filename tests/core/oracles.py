"""A dense QP, its points and their residuals in plain NumPy, to which nbqp is compared.

Neither this nor `derivatives` imports nbqp. The problem is

    min 1/2 x'Hx + g'x   s.t.   Ax - s_e = b,   l <= Cx - s_i <= u,   lb <= x - s_box <= ub

with s = 0, or, where no feasible point exists, the s of least l2 norm for which one does. Signs:
``Hx + g + A'y + C'z + z_box = 0``; z > 0 belongs to an upper side, z < 0 to a lower one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

INFINITY = 1e18
"""A bound of this magnitude or more is infinite."""


@dataclass(frozen=True)
class Data:
    """The nine data of a QP, dense; None is absent."""

    H: Array | None = None
    g: Array | None = None
    A: Array | None = None
    b: Array | None = None
    C: Array | None = None
    l: Array | float | None = None
    u: Array | float | None = None
    lb: Array | float | None = None
    ub: Array | float | None = None

    @property
    def n(self) -> int:
        """Number of variables, from the first datum that tells."""
        for value, axis in ((self.g, 0), (self.H, 0), (self.A, 1), (self.C, 1)):
            if value is not None:
                return int(np.shape(value)[axis])
        return int(max(np.size(v) for v in (self.lb, self.ub) if v is not None))

    def full(self) -> Data:
        """All nine data as arrays; absent or huge bounds become infinite."""
        n = self.n
        A = np.zeros((0, n)) if self.A is None else np.asarray(self.A, float)
        C = np.zeros((0, n)) if self.C is None else np.asarray(self.C, float)
        return Data(
            np.zeros((n, n)) if self.H is None else np.asarray(self.H, float),
            np.zeros(n) if self.g is None else np.asarray(self.g, float),
            A,
            np.zeros(len(A)) if self.b is None else np.asarray(self.b, float),
            C,
            _side(self.l, len(C), -np.inf),
            _side(self.u, len(C), np.inf),
            _side(self.lb, n, -np.inf),
            _side(self.ub, n, np.inf),
        )

    def args(self, sparse: bool = False) -> dict[str, Any]:
        """Arguments for ``nbqp.solve_qp``; H, A, C as ``scipy.sparse.csc_array`` if sparse."""
        out: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        if sparse:
            for name in ("H", "A", "C"):
                out[name] = None if out[name] is None else sp.csc_array(out[name])
        return out


def _side(value: Array | float | None, size: int, default: float) -> Array:
    out = np.array(np.broadcast_to(default if value is None else value, (size,)), float)
    out[out >= INFINITY] = np.inf
    out[out <= -INFINITY] = -np.inf
    return out


class PointLike(Protocol):
    """What the oracles read of a solution; ``nbqp.Solution`` and `Point` both fit."""

    @property
    def x(self) -> Any: ...
    @property
    def y(self) -> Any: ...
    @property
    def z(self) -> Any: ...
    @property
    def z_box(self) -> Any: ...


@dataclass(frozen=True)
class Point:
    """A primal-dual point; shifts of None are zero."""

    x: Array
    y: Array
    z: Array
    z_box: Array
    s_e: Array | None = None
    s_i: Array | None = None
    s_box: Array | None = None
    objective: float = np.nan


def objective(data: Data, x: Array) -> float:
    """Value of 1/2 x'Hx + g'x."""
    d = data.full()
    return float(0.5 * x @ (d.H @ x) + d.g @ x)


class Residuals(NamedTuple):
    """Inf-norms of the primal and dual residuals and the absolute duality gap."""

    primal: float
    dual: float
    gap: float


def residuals(
    data: Data,
    x: Array,
    y: Array,
    z: Array,
    z_box: Array,
    s_e: Array | None = None,
    s_i: Array | None = None,
    s_box: Array | None = None,
) -> Residuals:
    """Evaluate the optimality conditions naively, on the data as given.

    Infinite sides are masked, never multiplied; a multiplier on an infinite side therefore does
    not show in the gap: see `wrong_side`.
    """
    d = data.full()
    point = Point(x, y, z, z_box, s_e, s_i, s_box)
    st = stack_rows(d, point)
    value = st.M @ x - st.s
    low, upp = np.isfinite(st.lower), np.isfinite(st.upper)
    violation = np.concatenate([[0.0], (st.lower - value)[low], (value - st.upper)[upp]])
    dual = d.H @ x + d.g + st.M.T @ st.lam
    bound = np.where(st.lam > 0, st.upper, st.lower)
    used = (st.lam != 0) & np.isfinite(bound)
    gap = x @ (d.H @ x) + d.g @ x + st.lam[used] @ (bound[used] + st.s[used])
    return Residuals(float(violation.max()), _norm(dual), abs(float(gap)))


def wrong_side(data: Data, z: Array, z_box: Array) -> float:
    """Largest multiplier on an infinite side; must be exactly 0."""
    d = data.full()
    lam = np.concatenate([z, z_box])
    lower, upper = np.concatenate([d.l, d.lb]), np.concatenate([d.u, d.ub])
    return _norm(lam[((lam > 0) & np.isinf(upper)) | ((lam < 0) & np.isinf(lower))])


def kkt_error(data: Data, point: PointLike) -> float:
    """Largest of the three residuals and of `wrong_side`."""
    args = [getattr(point, f.name, None) for f in fields(Point)[:7]]
    return max(*residuals(data, *args), wrong_side(data, point.z, point.z_box))


def _norm(v: Array) -> float:
    return float(np.abs(v).max(initial=0.0))


class Rows(NamedTuple):
    """All rows (equalities, inequalities, bounds) of M = (A; C; I) with their data."""

    M: Array
    lower: Array
    upper: Array
    lam: Array
    s: Array
    equal: Mask
    """Rows of A, and two-sided rows or bounds whose sides coincide."""
    present: Mask
    """Rows with a finite side; the others do not exist."""

    def split(self, v: Array, d: Data) -> tuple[Array, Array, Array]:
        ne, ni = len(d.b), len(d.l)
        return v[:ne], v[ne : ne + ni], v[ne + ni :]


def stack_rows(d: Data, point: PointLike | None = None) -> Rows:
    M = np.vstack([d.A, d.C, np.eye(d.n)])
    lower, upper = np.concatenate([d.b, d.l, d.lb]), np.concatenate([d.b, d.u, d.ub])
    sizes = (len(d.b), len(d.l), d.n)

    def cat(*names: str) -> Array:
        parts = [getattr(point, k, None) for k in names]
        parts = [np.zeros(m) if p is None else p for p, m in zip(parts, sizes, strict=True)]
        return np.concatenate(parts).astype(float)

    present = np.isfinite(lower) | np.isfinite(upper)
    lam, s = cat("y", "z", "z_box"), cat("s_e", "s_i", "s_box")
    return Rows(M, lower, upper, lam, s, lower == upper, present)
