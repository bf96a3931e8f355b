"""What is wrong with a result: from the data alone, in extended precision, and beside other solvers.

Nothing here calls nbqp; statuses are compared by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.core.oracles import Array, Data, Point, PointLike
from tests.core.references import SOLVERS
from tests.fuzz.cases import Case

Long = NDArray[np.longdouble]

SLACK = 1.0 + 1e-6
"""The solver sums the sizes of terms, to which eps_rel refers, in doubles and in scaled units."""
ROUNDING = np.longdouble(1e-18)
"""Of a sum in extended precision, relative to its largest term."""
DOUBLES = 1e-15
"""Rounding of a sum of products in doubles, relative to the sum of their magnitudes."""
CURVATURE, LEAST_DIAGONAL = 1e-10, 1e-3
"""H is refused unless H + CURVATURE D is definite, D_ii = max(|H_ii|, LEAST_DIAGONAL max|H|)."""
EPS_INFEASIBLE = 1e-10
REFERENCE_EPS = 1e-9


@dataclass(frozen=True)
class ExtendedRows:
    """M = (A; C; I) with its sides, in extended precision."""

    data: Data

    @cached_property
    def M(self) -> Long:
        d = self.data
        return np.vstack([d.A, d.C, np.eye(d.n)]).astype(np.longdouble)

    @cached_property
    def sides(self) -> tuple[Long, Long]:
        d = self.data
        lower, upper = np.concatenate([d.b, d.l, d.lb]), np.concatenate([d.b, d.u, d.ub])
        return lower.astype(np.longdouble), upper.astype(np.longdouble)

    def violation(self, x: Long, shift: Long | float = 0.0) -> Long:
        """How far each row is beyond its sides, 0 within."""
        lower, upper = self.sides
        value = self.M @ x - shift
        return np.maximum(np.maximum(lower - value, value - upper), 0.0)

    def held(self, multipliers: Long) -> Long:
        """The side that each multiplier holds on to, 0 for none."""
        lower, upper = self.sides
        return np.where(multipliers > 0.0, upper, np.where(multipliers < 0.0, lower, 0.0))


def _long(*parts: Any) -> Long:
    return np.concatenate([np.asarray(part) for part in parts]).astype(np.longdouble)


def _largest(*arrays: Long) -> np.longdouble:
    return max(np.abs(a).max(initial=np.longdouble(0.0)) for a in arrays)


@dataclass(frozen=True)
class Measured:
    """Residuals of a point (primal, dual, gap), the sizes of their terms, and of all their products."""

    residuals: tuple[np.longdouble, ...]
    sizes: tuple[np.longdouble, ...]
    products: tuple[np.longdouble, ...]

    def _ratio(self, parts: Sequence[np.longdouble], eps_abs: float, eps_rel: float) -> float:
        rounded = zip(parts, self.sizes, self.products, strict=True)
        return float(
            max(
                part / (eps_abs + eps_rel * size + ROUNDING * products)
                for part, size, products in rounded
            )
        )

    def excess(self, eps_abs: float, eps_rel: float) -> float:
        """Largest residual relative to its tolerance."""
        return self._ratio(self.residuals, eps_abs, eps_rel)

    def attainable(self, eps_abs: float, eps_rel: float) -> bool:
        """Whether the tolerances are above what rounding a point and its products to doubles costs."""
        rounded = [DOUBLES * size for size in self.products]
        return self._ratio(rounded, eps_abs, eps_rel) < 1.0


def measure(data: Data, point: PointLike) -> Measured:
    """max violation;  |Hx + g + M'lam|;  |x'Hx + g'x + lam'(held side + s)|. Shifts s move the sides."""
    rows = ExtendedRows(data)
    x, lam = _long(point.x), _long(point.y, point.z, point.z_box)
    names = ("s_e", "s_i", "s_box")
    parts = [getattr(point, name, None) for name in names]
    s = _long(*parts) if parts[0] is not None else np.zeros(len(lam), np.longdouble)
    H, g = data.H.astype(np.longdouble), data.g.astype(np.longdouble)
    held, n_eq = rows.held(lam), len(data.b)
    zero = np.longdouble(0.0)
    if not np.isfinite(held).all():
        return Measured(3 * (np.longdouble(np.inf),), 3 * (zero,), 3 * (zero,))
    Hx, Mx, forces = H @ x, rows.M @ x, rows.M.T @ lam
    sizes = (
        _largest(Mx, held, s, data.b.astype(np.longdouble)),
        _largest(Hx, g, forces),
        max(
            abs(x @ Hx), abs(g @ x), abs(lam[:n_eq] @ held[:n_eq]), np.abs(lam * held)[n_eq:].sum()
        ),
    )
    row_products = np.abs(rows.M) @ np.abs(x)
    column_products = np.abs(H) @ np.abs(x) + np.abs(g) + np.abs(rows.M).T @ np.abs(lam)
    products = (_largest(row_products), _largest(column_products), np.abs(x) @ column_products)
    dual = _largest(Hx + g + forces)
    gap = abs(x @ Hx + g @ x + lam @ (held + s))
    return Measured((_largest(rows.violation(x, s)), dual, gap), sizes, products)


def solution_faults(case: Case, found: Any, name: str) -> Iterator[str]:
    """Why a point is not what the status `name`, SOLVED or SOLVED_CLOSEST_PRIMAL_FEASIBLE, promises."""
    parts = [found.x, found.y, found.z, found.z_box, found.s_e, found.s_i, found.s_box]
    if not all(np.isfinite(part).all() for part in parts):
        yield f"{name} with entries that are not finite"
        return
    measured = measure(case.data, found)
    excess = measured.excess(case.eps_abs, case.eps_rel)
    if not excess <= SLACK:
        yield f"{name} with a residual of {excess:.3g} times its tolerance"
    s = _long(found.s_e, found.s_i, found.s_box)
    if name == "SOLVED":
        if s.any():
            yield "SOLVED with shifts"
        return
    rows = ExtendedRows(case.data)
    pull = _largest(rows.M.T @ s)
    if not pull <= SLACK * (case.eps_abs + case.eps_rel * measured.sizes[0]):
        yield f"shifts that are not the smallest: |M's| = {pull:.3g} of |s| = {_largest(s):.3g}"
    lower, upper = rows.sides
    astray = np.where((s > 0.0) & np.isinf(upper) | (s < 0.0) & np.isinf(lower), s, 0.0)
    if astray.any():
        yield "a shift of a side that does not exist"


def _exactly(M: Array, v: Array) -> Array:
    """M v in rational arithmetic, rounded at last: products may cancel by more than any format has."""
    rows = ([(a, b) for a, b in zip(row, v, strict=True) if a and b] for row in np.atleast_2d(M))
    return np.array(
        [float(sum((Fraction(a) * Fraction(b) for a, b in row), Fraction(0))) for row in rows]
    )


def primal_proof_faults(case: Case, proof: Any) -> Iterator[str]:
    """Why (y, z, z_box) is no Farkas certificate."""
    rows, lam = ExtendedRows(case.data), np.concatenate([proof.y, proof.z, proof.z_box])
    held = rows.held(lam).astype(float)
    if not (np.isfinite(lam).all() and np.isfinite(held).all()):
        yield "PRIMAL_INFEASIBLE with a multiplier on an infinite side"
        return
    support = float(_exactly(held, lam)[0])
    residual = float(np.abs(_exactly(rows.M.astype(float).T, lam)).max())
    if not (support < 0.0 and residual <= -SLACK * EPS_INFEASIBLE * support):
        yield f"PRIMAL_INFEASIBLE with |M'lam| = {residual:.3g}, support {support:.3g}"


def dual_proof_faults(case: Case, proof: Any) -> Iterator[str]:
    """Why x is no direction of unbounded descent."""
    rows, d, data = ExtendedRows(case.data), proof.x, case.data
    if not np.isfinite(d).all():
        yield "DUAL_INFEASIBLE with entries that are not finite"
        return
    lower, upper = rows.sides
    value = _exactly(rows.M.astype(float), d)
    leave = np.maximum(np.where(upper < np.inf, value, 0.0), np.where(lower > -np.inf, -value, 0.0))
    slope = float(_exactly(data.g, d)[0])
    curvature = float(np.abs(_exactly(data.H, d)).max())
    astray = float(np.maximum(leave, 0.0).max())
    limit = SLACK * EPS_INFEASIBLE
    if not (slope < 0.0 and curvature <= -limit * slope and astray <= limit * np.abs(d).max()):
        yield f"DUAL_INFEASIBLE with g'd = {slope:.3g}, |Hd| = {curvature:.3g}, astray {astray:.3g}"


@dataclass(frozen=True)
class Opinion:
    """Another point than ours, and its largest residual relative to the tolerances of the case."""

    name: str
    point: PointLike
    excess: float
    attainable: bool

    @classmethod
    def of(cls, case: Case, name: str, point: PointLike) -> Opinion:
        """A point, measured."""
        measured, eps = measure(case.data, point), (case.eps_abs, case.eps_rel)
        return cls(name, point, measured.excess(*eps), measured.attainable(*eps))

    @property
    def solves(self) -> bool:
        """Whether it is a solution, and tells that one in doubles exists."""
        return self.excess <= 1.0 and self.attainable


def opinions(case: Case) -> list[Opinion]:
    """Points of two solvers of other families (interior points; for an LP simplex), and the planted one."""
    d, found = case.data, []
    sided = np.isfinite(d.l) | np.isfinite(d.u)
    present = replace(d, C=d.C[sided], l=d.l[sided], u=d.u[sided])
    for solver in ("clarabel", "piqp" if d.H.any() else "highs"):
        try:
            x, y, z, z_box = SOLVERS[solver](present, min(REFERENCE_EPS, case.eps_abs))
        except (RuntimeError, ValueError, TypeError):
            continue
        parts = _long(x, y, z, z_box)
        if len(parts) == len(x) + len(y) + sided.sum() + d.n and np.isfinite(parts).all():
            all_z = np.zeros(len(sided))
            all_z[sided] = z
            point = Point(x, y, _held(all_z, d.l, d.u), _held(z_box, d.lb, d.ub))
            found.append(Opinion.of(case, solver, point))
    if case.point is not None:
        found.append(Opinion.of(case, "the planted point", case.point))
    return found


def _held(multipliers: Array, lower: Array, upper: Array) -> Array:
    """Multipliers without those on infinite sides."""
    side = np.where(multipliers > 0.0, upper, -lower)
    return np.where(side < np.inf, multipliers, 0.0)


def contradictions(case: Case, found: Any, name: str, others: list[Opinion]) -> Iterator[str]:
    """Where a result cannot be true beside the planted solution or another solver's point q.

    With tolerances eps of our point p, violations v_q and residuals r_q = Hq + g + M'lam_q,

        SOLVED             f(p) - f(q)  <=  eps_dual (|q - p|_1 + |p|_1) + eps_gap + |lam_p|_1 v_q
        PRIMAL_INFEASIBLE  v_q  >=  eps_abs (1 - eps |q|_1)
        DUAL_INFEASIBLE    1  <=  eps (|q|_1 + |lam_q|_1 / |g|) + |r_q| |d|_1 / -g'd
        SOLVED_CLOSEST_..  |s|^2  <=  eps_primal |q - p|_1 + |s|_1 (v_q + eps_primal)
    """
    for other in others:
        size = np.abs(_long(other.point.x)).sum()
        if name == "PRIMAL_INFEASIBLE":
            violation = _largest(ExtendedRows(case.data).violation(_long(other.point.x)))
            if violation * SLACK < case.eps_abs * (1.0 - EPS_INFEASIBLE * size):
                yield f"PRIMAL_INFEASIBLE, but {other.name} is feasible"
        elif name == "DUAL_INFEASIBLE" and other.excess <= 1.0:
            d, g = found.certificate.x, case.data.g
            lam = np.abs(_long(other.point.y, other.point.z, other.point.z_box)).sum()
            residual = measure(case.data, other.point).residuals[1]
            right = EPS_INFEASIBLE * (size + lam / np.abs(g).max())
            if (right + residual * np.abs(d).sum() / -(g @ d)) * SLACK < 1.0:
                yield f"DUAL_INFEASIBLE, but {other.name} is a solution"
        elif name == "SOLVED" and other.excess <= 1.0:
            above = _rise(case, found, other.point)
            if above is not None:
                yield f"a higher objective than {other.name}: {above}"
        elif name == "SOLVED_CLOSEST_PRIMAL_FEASIBLE":
            s, q = _long(found.s_e, found.s_i, found.s_box), _long(other.point.x)
            primal = case.eps_abs + case.eps_rel * measure(case.data, found).sizes[0]
            violation = _largest(ExtendedRows(case.data).violation(q)) + primal
            allowed = primal * np.abs(q - _long(found.x)).sum() + np.abs(s).sum() * violation
            if s @ s > SLACK * allowed:
                yield f"shifts {np.sqrt(float(s @ s)):.3g}, but {other.name} needs none so large"


def _rise(case: Case, p: PointLike, q: PointLike) -> str | None:
    """How far p is above q, where it is further than a solution may be."""
    rows, measured = ExtendedRows(case.data), measure(case.data, p)
    H, g = case.data.H.astype(np.longdouble), case.data.g.astype(np.longdouble)
    xp, xq, lam = _long(p.x), _long(q.x), np.abs(_long(p.y, p.z, p.z_box))
    _, dual, gap = (case.eps_abs + case.eps_rel * size for size in measured.sizes)
    allowed = dual * (np.abs(xq - xp).sum() + np.abs(xp).sum()) + gap
    allowed += lam.sum() * _largest(rows.violation(xq))
    fp, fq = (0.5 * x @ (H @ x) + g @ x for x in (xp, xq))
    if fp - fq <= SLACK * allowed + ROUNDING * measured.products[2]:
        return None
    return f"{float(fp):.9g} > {float(fq):.9g} + {float(allowed):.2g}"


def refusal_faults(data: Data, refused: bool) -> Iterator[str]:
    """Whether H was refused as not convex though it is, or taken though it is not."""
    size = np.abs(data.H).max(initial=0.0)
    if size == 0.0:
        if refused:
            yield "refused H = 0"
        return
    root = np.sqrt(np.maximum(np.abs(np.diag(data.H)) / size, LEAST_DIAGONAL))
    least = float(np.linalg.eigvalsh(data.H / size / root / root[:, None])[0])
    rounding = 1e-15 * len(data.H)
    if refused and least > -CURVATURE + rounding:
        yield f"refused an H whose least eigenvalue is {least:.3g} in units of its diagonal"
    if not refused and least < -CURVATURE - rounding:
        yield f"took an H whose least eigenvalue is {least:.3g} in units of its diagonal"
