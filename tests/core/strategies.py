"""QPs built backwards from a chosen solution; `infeasible` has those whose rows contradict.

Choose the matrices, the active sides and (x, y, z, z_box); then ``g = -Hx - A'y - C'z - z_box``
and the bounds follow. Rows M = (A; C; I) are drawn in a well-scaled frame and then scaled by
row and column factors, in which the planted point is exact again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests.core.oracles import Array, Data, Mask, Point, objective, stack_rows

Kind = Literal["strictly_convex", "low_rank", "lp", "lp_nonunique"]
KINDS: tuple[Kind, ...] = ("strictly_convex", "low_rank", "lp", "lp_nonunique")


@dataclass(frozen=True)
class Problem:
    """A QP with a planted solution; ``solution.s_*`` are the planted shifts."""

    name: str
    data: Data
    solution: Point
    sparse: bool = False

    @property
    def args(self) -> dict[str, Any]:
        """Arguments for ``nbqp.solve_qp``: NumPy, or csc_array for H, A, C if sparse."""
        return self.data.args(self.sparse)

    @cached_property
    def _active(self) -> tuple[Array, Mask]:
        """Normalised rows that hold at the planted point, and whether strictly."""
        d = self.data.full()
        rows = stack_rows(d, self.solution)
        value = rows.M @ self.solution.x - rows.s
        tight = np.abs(value - np.where(rows.lam > 0, rows.upper, rows.lower)) < 1e-9
        tight |= np.abs(value - rows.upper) < 1e-9
        on = rows.present & tight
        M = rows.M * _column_scale(rows.M)
        norm = np.maximum(np.linalg.norm(M, axis=1, keepdims=True), 1e-300)
        strict = rows.equal | (rows.lam != 0) | (rows.s != 0)
        return (M / norm)[on], strict[on]

    @property
    def unique_x(self) -> bool:
        """Whether H and the strictly active rows determine x."""
        M, strict = self._active
        d = self.data.full()
        scale = _column_scale(np.vstack([d.A, d.C, np.eye(d.n)]))
        H = d.H * scale * scale[:, None]
        return _rank(np.vstack([H / max(np.abs(H).max(), 1e-300), M[strict]])) == d.n

    @property
    def unique_multipliers(self) -> bool:
        """Whether the active rows are independent."""
        M, _ = self._active
        return _rank(M) == len(M)

    @property
    def regular(self) -> bool:
        """Whether the solution map is differentiable, strict complementarity included."""
        _, strict = self._active
        return bool(strict.all()) and self.unique_x and self.unique_multipliers


def _column_scale(M: Array) -> Array:
    return 1.0 / np.maximum(np.abs(M).max(axis=0, initial=0.0), 1e-300)


def _rank(M: Array) -> int:
    size = np.linalg.svd(M, compute_uv=False) if M.size else np.zeros(0)
    return int((size > 1e-9 * size.max(initial=0.0)).sum())


def random_rows(rng: np.random.Generator, m: int, n: int, density: float) -> Array:
    """Normal entries at a density, no row empty, unit norm."""
    M = rng.standard_normal((m, n)) * (rng.random((m, n)) < density)
    M[np.arange(m), rng.integers(0, n, m)] += rng.choice([-1.0, 1.0], m)
    return M / np.maximum(np.linalg.norm(M, axis=1, keepdims=True), 1e-2)


def random_psd(rng: np.random.Generator, n: int, density: float, rank: int | None = None) -> Array:
    """Symmetric positive semidefinite matrix of a rank at most, definite when ``rank`` is None."""
    if rank == 0:
        return np.zeros((n, n))
    F = random_rows(rng, n if rank is None else rank, n, density)
    H = F.T @ F + (0.0 if rank is not None else np.diag(rng.uniform(0.1, 1.0, n)))
    return 0.5 * (H + H.T)


def random_hessian(rng: np.random.Generator, kind: Kind, n: int, density: float) -> Array:
    """H of a kind of problem: regular, of rank n // 2, or 0."""
    return random_psd(rng, n, density, {"strictly_convex": None, "low_rank": n // 2}.get(kind, 0))


def quasi_definite(
    rng: np.random.Generator, n: int, m: int, density: float = 0.3
) -> tuple[Array, NDArray[np.int64]]:
    """Symmetrically permuted quasi-definite [[P, M'], [M, -D]] and the signs of its pivots."""
    P, M = random_psd(rng, n, density), random_rows(rng, m, n, density)
    K = np.block([[P, M.T], [M, -np.diag(rng.uniform(0.01, 1.0, m))]])
    perm = rng.permutation(n + m)
    signs = np.repeat(np.array([1, -1]), [n, m])
    return K[np.ix_(perm, perm)], signs[perm]


def independent_rows(M: Array, order: NDArray[np.intp], count: int, base: Array) -> list[int]:
    """First ``count`` rows of M in an order that keep a fair distance from each other's span."""
    Q = np.linalg.qr(base.T)[0].T if len(base) else np.zeros((0, M.shape[1]))
    Q = np.vstack([Q, np.zeros((max(count, 0), M.shape[1]))])
    used, chosen = len(base), []
    for k in order:
        if len(chosen) >= count:
            break
        row = M[k] / np.linalg.norm(M[k])
        for _ in range(2):
            row = row - Q[:used].T @ (Q[:used] @ row)
        if np.linalg.norm(row) > 0.05:
            Q[used] = row / np.linalg.norm(row)
            used += 1
            chosen.append(int(k))
    return chosen


@dataclass
class Plan:
    """Roles of the rows M = (A; C; I), before scaling."""

    M: Array
    ne: int
    ni: int
    equal: Mask
    side: NDArray[np.int64]
    """+1 upper, -1 lower side active or violated, 0 inactive."""
    lam: Array
    s: Array
    low: Mask
    upp: Mask
    """Which sides are finite."""

    @classmethod
    def empty(cls, rng: np.random.Generator, A: Array, C: Array, bounds: float) -> Plan:
        """All rows inactive; bounds exist with a probability."""
        n, ne, ni = A.shape[1], len(A), len(C)
        m = ne + ni + n
        equal = np.arange(m) < ne
        kind = rng.choice(4, size=m, p=[0.35, 0.3, 0.3, 0.05])  # both, upper, lower, none
        exists = np.concatenate([np.ones(ne + ni, bool), rng.random(n) < bounds])
        low, upp = exists & np.isin(kind, [0, 2]) | equal, exists & np.isin(kind, [0, 1]) | equal
        lam = np.where(equal, rng.standard_normal(m), 0.0)
        M = np.vstack([A, C, np.eye(n)])
        return cls(M, ne, ni, equal, np.zeros(m, int), lam, np.zeros(m), low, upp)

    def activate(
        self,
        rng: np.random.Generator,
        rows: Sequence[int] | NDArray[np.intp],
        margin: float,
        sides: Iterable[int] | None = None,
    ) -> None:
        """Make rows active, with multipliers of at least ``margin``.

        sides: 1 (upper) or -1 for each row; None for both in turn.
        """
        turns = itertools.cycle((1, -1)) if sides is None else sides
        for k, side in zip(rows, turns, strict=False):
            self.side[k] = side
            self.lam[k] = self.side[k] * (margin + rng.exponential())
            self.upp[k] |= self.side[k] > 0
            self.low[k] |= self.side[k] < 0

    def fix(self, rng: np.random.Generator, rows: NDArray[np.intp]) -> None:
        """Let both sides of rows coincide."""
        self.equal[rows] = self.low[rows] = self.upp[rows] = True
        self.lam[rows] = rng.standard_normal(len(rows))

    def finish(
        self, rng: np.random.Generator, H: Array, x: Array, decades: float, margin: float
    ) -> tuple[Data, Point]:
        """Scale, and compute g and the sides."""
        n, ne, ni, m = len(x), self.ne, self.ni, len(self.M)
        D = 10.0 ** rng.uniform(-decades, decades, n)
        E = np.concatenate([10.0 ** rng.uniform(-decades, decades, ne + ni), 1.0 / D])
        M = E[:, None] * self.M * D
        M[ne + ni :] = np.eye(n)
        H, x, lam, s = H * D * D[:, None], x / D, self.lam / E, self.s / E
        g = -(H @ x) - M.T @ lam
        value = M @ x - s
        slack = E * (margin + rng.exponential(size=(2, m)))
        lower = np.where(self.side < 0, value, value - slack[0])
        upper = np.where(self.side > 0, value, value + slack[1])
        lower = np.where(self.low, np.where(self.equal, value, lower), -np.inf)
        upper = np.where(self.upp, np.where(self.equal, value, upper), np.inf)
        i = slice(ne, ne + ni)
        has_box = bool(self.low[ne + ni :].any() or self.upp[ne + ni :].any())
        data = Data(
            H=H if H.any() else None,
            g=g,
            A=M[:ne] if ne else None,
            b=value[:ne] if ne else None,
            C=M[i] if ni else None,
            l=lower[i] if ni else None,
            u=upper[i] if ni else None,
            lb=lower[ne + ni :] if has_box else None,
            ub=upper[ne + ni :] if has_box else None,
        )
        parts = [v[k] for v in (lam, s) for k in (slice(ne), i, slice(ne + ni, m))]
        return data, Point(x, *parts, objective(data, x))


def random_qp(
    rng: np.random.Generator,
    *,
    kind: Kind = "strictly_convex",
    n: int = 8,
    n_eq: int = 2,
    n_in: int = 6,
    density: float = 1.0,
    bounds: float = 0.7,
    active: float | None = None,
    degenerate: bool = False,
    redundant: int = 0,
    duplicates: int = 0,
    equal_rows: int = 0,
    fixed: int = 0,
    scaling: float = 0.0,
    margin: float = 0.1,
    sparse: bool = False,
    name: str = "",
) -> Problem:
    """Feasible QP with a planted solution.

    Parameters
    ----------
    kind
        ``"strictly_convex"``; ``"low_rank"`` (H of rank n // 2); ``"lp"`` (a unique vertex: rows
        and bounds are activated until x is determined, so bounds may be added);
        ``"lp_nonunique"`` (a vertex with zero multipliers, or a face).
    n, n_eq, n_in
        Sizes, before redundant and duplicate rows are added.
    bounds
        Fraction of the variables that have bounds.
    active
        Fraction of the possible independent active rows that are active; None draws it.
    degenerate
        Add weakly active rows (t = 0 = z) and dependent active ones (too many for a vertex).
    redundant, duplicates
        Equality rows that combine others; inequality rows repeated, the multiplier shared.
    equal_rows, fixed
        Number of rows with l = u and of variables with lb = ub.
    scaling
        Decades, up and down, of row and column factors.
    margin
        Least slack and least multiplier, before scaling.
    sparse
        Whether ``Problem.args`` holds csc arrays.
    """
    n_eq = min(n_eq, max(n - 1, 0))
    H = random_hessian(rng, kind, n, density)
    A = random_rows(rng, n_eq, n, density)
    A = A[independent_rows(A, np.arange(n_eq), n_eq, A[:0])]
    C = random_rows(rng, n_in, n, density)
    plan = Plan.empty(rng, A, C, bounds)
    ne = plan.ne

    free = np.concatenate([ne + np.arange(n_in), ne + n_in + np.flatnonzero(plan.low[ne + n_in :])])
    equal_rows, fixed = min(equal_rows, n_in), min(fixed, n)
    room = n - ne
    pool = np.concatenate([rng.permutation(n_in)[:equal_rows], n_in + rng.permutation(n)[:fixed]])
    equal = independent_rows(plan.M, (ne + pool).astype(int), room, A)
    plan.fix(rng, np.array(equal, int))
    room -= len(equal)
    base = plan.M[plan.equal]

    share = rng.random() if active is None else active
    order = rng.permutation(np.setdiff1d(free, equal))
    if kind == "lp":
        share = 1.0
        order = np.concatenate([order, ne + n_in + rng.permutation(n)])
    elif kind == "lp_nonunique":
        share = min(share, 0.7)
    rows = independent_rows(plan.M, order, round(share * room), base)
    plan.activate(rng, rows, margin)
    if degenerate:
        _degenerate(rng, plan, rows, margin)
    _append(rng, plan, redundant, duplicates)
    data, point = plan.finish(rng, H, rng.standard_normal(n), scaling, margin)
    return Problem(name or kind, data, point, sparse)


def _degenerate(rng: np.random.Generator, plan: Plan, rows: list[int], margin: float) -> None:
    """Weaken a third of the active rows, and make further rows hold, some with multipliers."""
    for k in rows[: len(rows) // 3]:
        plan.lam[k] = 0.0
    idle = np.flatnonzero((plan.low | plan.upp) & ~plan.equal & (plan.side == 0))
    more = rng.permutation(idle)[: 1 + len(idle) // 3]
    plan.activate(rng, [int(k) for k in more], margin)
    plan.lam[more[::2]] = 0.0


def _append(rng: np.random.Generator, plan: Plan, redundant: int, duplicates: int) -> None:
    """Insert combinations of equality rows after A, and repeated inequality rows after C."""
    ne, ni = plan.ne, plan.ni
    redundant, duplicates = redundant * (ne > 0), duplicates * (ni > 0)
    active = ne + np.flatnonzero(plan.side[ne : ne + ni])
    source = rng.choice(active if len(active) else ne + np.arange(max(ni, 1)), duplicates)
    mix = rng.standard_normal((redundant, ne)) @ plan.M[:ne]
    mix /= np.maximum(np.linalg.norm(mix, axis=1, keepdims=True), 1e-2)
    for k in np.unique(source):
        copies = 1 + int((source == k).sum())
        plan.lam[k] /= copies
    index = np.concatenate(
        [np.arange(ne), np.zeros(redundant, int), np.arange(ne, ne + ni), source,
         np.arange(ne + ni, len(plan.M))]
    ).astype(int)  # fmt: skip
    for field in ("M", "equal", "side", "lam", "s", "low", "upp"):
        setattr(plan, field, getattr(plan, field)[index].copy())
    plan.M[ne : ne + redundant] = mix
    plan.lam[ne : ne + redundant] = rng.standard_normal(redundant)
    plan.ne, plan.ni = ne + redundant, ni + duplicates


def random_mixture(rng: np.random.Generator, count: int = 1000) -> Iterator[Problem]:
    """QPs and LPs of varied shape: n to 200, dense and sparse, degenerate and badly scaled too.

    Each problem is drawn from a generator of its own, so that the k-th is the same whatever
    was done with those before.
    """
    for k, child in enumerate(rng.spawn(count)):
        n = round(10 ** child.uniform(0.0, np.log10(200)))
        sparse = bool(child.random() < 0.5)
        kind = child.choice(np.array(KINDS), p=[0.4, 0.2, 0.25, 0.15])
        flags = child.random(8)
        options: dict[str, Any] = {
            "kind": str(kind),
            "n": n,
            "n_eq": 0 if flags[0] < 0.2 else int(child.integers(0, n // 2 + 1)),
            "n_in": 0 if flags[1] < 0.15 else int(child.integers(0, 2 * n + 1)),
            "density": float(child.uniform(0.02, 0.3)) if sparse else 1.0,
            "bounds": 0.0 if flags[2] < 0.25 else float(child.uniform(0.2, 1.0)),
            "degenerate": bool(flags[3] < 0.25),
            "redundant": int(child.integers(1, 4)) if flags[4] < 0.15 else 0,
            "duplicates": int(child.integers(1, 4)) if flags[5] < 0.15 else 0,
            "equal_rows": int(child.integers(1, 4)) if flags[6] < 0.15 else 0,
            "fixed": int(child.integers(1, 4)) if flags[7] < 0.15 else 0,
            "scaling": float(child.choice([0.0, 0.0, 0.0, 1.0, 2.0])),
            "sparse": sparse,
        }
        yield random_qp(child, name=f"{k}-{kind}-n{n}", **options)


def differentiable_qps(rng: np.random.Generator, count: int) -> Iterator[Problem]:
    """Problems for finite differences, n = 8, the three kinds in turn.

    The solution map is differentiable, and two equalities, upper and lower sides of rows of C, and
    upper and lower sides of bounds are active, all with multipliers of at least 0.1. The inverse of
    the KKT matrix has a norm below 30, so that small steps keep the active set.
    """
    found = 0
    while found < count:
        kind = KINDS[found % 3]
        problem = random_qp(rng, kind=kind, n=8, n_eq=2, n_in=7, margin=0.1, name=f"{found}-{kind}")
        point = problem.solution
        both = all(z.min() < 0.0 < z.max() for z in (point.z, point.z_box))
        if both and problem.regular and _sensitivity(problem) < 30.0:
            found += 1
            yield problem


def _sensitivity(problem: Problem) -> float:
    """Norm of the inverse of the KKT matrix."""
    d = problem.data.full()
    rows = stack_rows(d, problem.solution)
    M = rows.M[rows.equal | (rows.lam != 0.0)]
    K = np.block([[d.H, M.T], [M, np.zeros((len(M), len(M)))]])
    return float(np.linalg.norm(np.linalg.inv(K), 2))
