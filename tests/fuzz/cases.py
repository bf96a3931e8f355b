"""Random QPs and LPs for the fuzzer: families of problems, and what may be done to any of them.

Every case is drawn from a generator of its own, so that one number names it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np

from tests.core.infeasible import CONTRADICTIONS, random_infeasible_qp
from tests.core.oracles import INFINITY, Array, Data, Point
from tests.core.strategies import KINDS, random_qp

Generator = np.random.Generator

WILD = "wild units"
ONE_PHASE = "one phase alone"
APART = (WILD, ONE_PHASE)
"""Sorts of cases that have to be told the truth about, but need not be solved."""


class Truth(Enum):
    """What is known of a problem from how it was made."""

    SOLVABLE = "has a planted solution"
    INFEASIBLE = "has planted shifts"
    UNBOUNDED = "has a feasible point and a planted direction of descent"
    OPEN = "not known"


@dataclass(frozen=True)
class Case:
    """A problem, how it is to be solved, and what is known of it.

    data: full. point: the planted solution of a SOLVABLE one. apart: one of APART, where not
    every one has to be solved.
    """

    name: str
    data: Data
    truth: Truth = Truth.OPEN
    point: Point | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    sparse: bool = False
    apart: str = ""

    @property
    def eps_abs(self) -> float:
        """That of the settings, or the default."""
        return float(self.settings.get("eps_abs", 1e-8))

    @property
    def eps_rel(self) -> float:
        """That of the settings, or the default."""
        return float(self.settings.get("eps_rel", 0.0))


def draw_case(seed: int, index: int) -> Case:
    """Case number `index` of a campaign."""
    rng = np.random.default_rng([seed, index])
    names = tuple(FAMILIES)
    family = str(rng.choice(names, p=[FAMILIES[name][1] for name in names]))
    case = FAMILIES[family][0](rng)
    case = replace(case, data=case.data.full(), sparse=bool(rng.random() < 0.5))
    for decorate, share in DECORATIONS:
        if rng.random() < share:
            case = decorate(rng, case)
    # Units may have rounded the two halves apart, and the solver takes their mean.
    H = 0.5 * (case.data.H + case.data.H.T)
    return replace(case, data=replace(case.data, H=H), name=f"{family} {seed}:{index}")


def _size(rng: Generator) -> int:
    """Mostly small: those fail in as many ways, are solved faster, and shrink to a line."""
    most = rng.choice([12, 40, 100], p=[0.85, 0.135, 0.015])
    return int(rng.integers(1, most + 1))


def _shape(rng: Generator) -> dict[str, Any]:
    """Options that `random_qp` and `random_infeasible_qp` share."""
    n = _size(rng)
    return {
        "n": n,
        "n_eq": int(rng.integers(0, n + 1) * (rng.random() < 0.7)),
        "n_in": int(rng.integers(0, 2 * n + 1) * (rng.random() < 0.8)),
        "density": float(rng.choice([1.0, 0.5, 0.2])),
        "bounds": float(rng.choice([0.0, 0.5, 1.0])),
        "margin": float(rng.choice([0.1, 1e-3, 1e-6], p=[0.8, 0.1, 0.1])),
    }


def planted(rng: Generator) -> Case:
    """Solutions planted with strict or weak activity, redundant rows, fixed variables."""
    few = rng.integers(0, 3, 4)
    problem = random_qp(
        rng,
        **_shape(rng),
        kind=rng.choice(np.array(KINDS)),
        degenerate=bool(rng.random() < 0.4),
        redundant=int(few[0]),
        duplicates=int(few[1]),
        equal_rows=int(few[2]),
        fixed=int(few[3]),
        scaling=float(rng.choice([0.0, 1.0, 2.0], p=[0.6, 0.25, 0.15])),
    )
    point = problem.solution
    unshifted = Point(point.x, point.y, point.z, point.z_box)
    return Case("", problem.data, Truth.SOLVABLE, unshifted)


def regular(rng: Generator) -> Case:
    """Solutions that have a derivative, for most of the decorations too."""
    shape = _shape(rng) | {"margin": 0.1}
    problem = random_qp(rng, **shape, kind=rng.choice(np.array(KINDS[:3])))
    point = problem.solution
    return Case("", problem.data, Truth.SOLVABLE, Point(point.x, point.y, point.z, point.z_box))


def infeasible(rng: Generator) -> Case:
    """Contradicting rows and bounds; half of them to be solved as closest feasible QPs."""
    shape = _shape(rng)
    problem = random_infeasible_qp(
        rng,
        **shape | {"n": max(2, shape["n"])},
        contradiction=rng.choice(np.array(CONTRADICTIONS)),
        kind=rng.choice(np.array(KINDS[:3])),
        scaling=float(rng.choice([0.0, 1.0])),
    )
    settings = {"primal_infeasibility_solving": bool(rng.random() < 0.5)}
    return Case("", problem.data, Truth.INFEASIBLE, settings=settings)


def _integers(rng: Generator, *shape: int) -> Array:
    return rng.integers(-2, 3, shape) * (rng.random(shape) < rng.choice([0.3, 0.6, 1.0]))


def lattice(rng: Generator) -> Case:
    """Small integers, so that rows repeat, contradict and meet in one point; half with a solution.

    The solution's multipliers are integers too, many of them 0 where a row holds.
    """
    n = int(rng.integers(1, 9))
    A, C = (
        _integers(rng, int(rng.integers(0, n + 1)), n),
        _integers(rng, int(rng.integers(0, 13)), n),
    )
    F = _integers(rng, int(rng.integers(0, n + 1)), n)
    H, x = 1.0 * F.T @ F, rng.integers(-2, 3, n)
    M = np.vstack([C, np.eye(n)])
    slack = np.array([0.0, 0.0, 1.0, 2.0, np.inf])
    below, above = rng.choice(slack, (2, len(M)), p=[0.3, 0.1, 0.2, 0.2, 0.2])
    lower, upper = M @ x - below, M @ x + above
    y, sign = rng.integers(-2, 3, len(A)), rng.integers(-2, 3, len(M))
    z = np.where(above == 0.0, np.maximum(sign, 0), 0) + np.where(
        below == 0.0, np.minimum(sign, 0), 0
    )
    solvable = bool(rng.random() < 0.5)
    if solvable:
        g = -(H @ x + A.T @ y + M.T @ z)
    else:
        g = 1.0 * rng.integers(-2, 3, n)
        moved = rng.integers(0, 2, len(M)) * rng.integers(0, 2)
        lower, upper = lower + moved, np.maximum(upper - moved, lower + moved)
    i = len(C)
    data = Data(H, g, 1.0 * A, 1.0 * A @ x, 1.0 * C, lower[:i], upper[:i], lower[i:], upper[i:])
    if not solvable:
        return Case("", data)
    return Case("", data, Truth.SOLVABLE, Point(1.0 * x, 1.0 * y, 1.0 * z[:i], 1.0 * z[i:]))


def unplanned(rng: Generator) -> Case:
    """Whatever comes: feasible or not, bounded or not."""
    n = _size(rng)
    A = rng.standard_normal((int(rng.integers(0, n // 2 + 1)), n))
    C = rng.standard_normal((int(rng.integers(0, 2 * n + 1)), n))
    F = rng.standard_normal((int(rng.integers(0, n + 1)), n))
    centre, width = rng.standard_normal(len(C)), rng.exponential(size=len(C))
    data = Data(
        F.T @ F,
        rng.standard_normal(n),
        A,
        A @ rng.standard_normal(n),
        C,
        np.where(rng.random(len(C)) < 0.4, centre, -np.inf),
        np.where(rng.random(len(C)) < 0.7, centre + width, np.inf),
        np.where(rng.random(n) < 0.3, -2.0 * rng.random(n), -np.inf),
        np.where(rng.random(n) < 0.3, 2.0 * rng.random(n), np.inf),
    )
    return Case("", data)


def nearly_infeasible(rng: Generator) -> Case:
    """A planted problem where one row's two sides lie a little apart, or cross by as little."""
    case = planted(rng)
    d, point = case.data.full(), case.point
    assert point is not None
    row = rng.standard_normal(d.n)
    gap = float(rng.choice([-1.0, 1.0]) * 10.0 ** rng.uniform(-14.0, -2.0))
    value = row @ point.x
    twice = rng.random() < 0.5
    rows = np.vstack([row, -row * (0.5 if twice else 1.0)])
    sides = np.array([value, -value + gap]) * np.array([1.0, 0.5 if twice else 1.0])
    data = replace(
        d,
        C=np.vstack([d.C, rows]),
        l=np.append(d.l, [-np.inf, -np.inf]),
        u=np.append(d.u, sides),
    )
    if gap < 0.0:
        return Case("", data, Truth.INFEASIBLE)
    return Case("", data, Truth.SOLVABLE, replace(point, z=np.append(point.z, [0.0, 0.0])))


def unbounded(rng: Generator) -> Case:
    """A direction d with Hd = 0, Ad = 0 that no finite side stops, along which g falls.

    Integers, so that the direction is exact; or one with a curvature that is next to nothing.
    """
    n = int(rng.integers(1, 10))
    d = rng.integers(-2, 3, n)
    d[rng.integers(n)] = 1
    along = int(np.flatnonzero(d == 1)[0])

    def orthogonal(M: Array) -> Array:
        M[:, along] = 0
        M[:, along] = -(M @ d)
        return 1.0 * M

    H_rows = orthogonal(_integers(rng, int(rng.integers(0, n + 1)), n))
    A = orthogonal(_integers(rng, int(rng.integers(0, n)), n))
    C, x = 1.0 * _integers(rng, int(rng.integers(0, 2 * n + 1)), n), rng.integers(-2, 3, n)
    M = np.vstack([C, np.eye(n)])
    slope = M @ d
    lower = np.where(slope >= 0, M @ x - rng.integers(0, 3, len(M)), -np.inf)
    upper = np.where(slope <= 0, M @ x + rng.integers(0, 3, len(M)), np.inf)
    absent = rng.random((2, len(M))) < 0.3
    lower, upper = np.where(absent[0], -np.inf, lower), np.where(absent[1], np.inf, upper)
    g = 1.0 * rng.integers(-2, 3, n)
    g[along] -= g @ d + rng.integers(1, 3)
    H, truth, settings = H_rows.T @ H_rows, Truth.UNBOUNDED, {}
    if rng.random() < 0.3:
        # Solutions lie as far as 1e12: rounding leaves gaps above an absolute tolerance.
        H, truth = H + np.diag(10.0 ** rng.uniform(-12.0, -1.0, n)), Truth.OPEN
        settings = {"eps_rel": 1e-9}
    i = len(C)
    data = Data(H, g, A, A @ x, C, lower[:i], upper[:i], lower[i:], upper[i:])
    return Case("", data, truth, settings=settings)


def tight(rng: Generator) -> Case:
    """A planted problem in a box around its solution, of any width down to nothing."""
    case = planted(rng)
    d, point = case.data.full(), case.point
    assert point is not None
    width = np.where(rng.random(d.n) < 0.2, 0.0, 10.0 ** rng.uniform(-14.0, 0.0, d.n))
    lb = np.where(point.z_box < 0.0, d.lb, np.maximum(d.lb, point.x - width * rng.random(d.n)))
    ub = np.where(point.z_box > 0.0, d.ub, np.minimum(d.ub, np.maximum(point.x, lb + width)))
    return replace(case, data=replace(d, lb=np.minimum(lb, ub), ub=ub))


def barely_curved(rng: Generator) -> Case:
    """H with one eigenvalue just above zero, at zero, or just below it, in a box."""
    n = int(rng.integers(2, 13))
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    eigenvalues = rng.uniform(0.1, 1.0, n)
    eigenvalues[0] = rng.choice([-1.0, 0.0, 1.0]) * 10.0 ** rng.uniform(-16.0, -2.0)
    H = (Q * eigenvalues) @ Q.T
    data = Data(0.5 * (H + H.T), rng.standard_normal(n), lb=np.full(n, -1.0), ub=np.full(n, 1.0))
    return Case("", data)


FAMILIES: dict[str, tuple[Callable[[Generator], Case], float]] = {
    "planted": (planted, 0.2),
    "regular": (regular, 0.2),
    "infeasible": (infeasible, 0.12),
    "lattice": (lattice, 0.15),
    "unplanned": (unplanned, 0.08),
    "nearly infeasible": (nearly_infeasible, 0.07),
    "unbounded": (unbounded, 0.07),
    "tight": (tight, 0.06),
    "barely curved": (barely_curved, 0.05),
}
"""How a case is drawn, and how often."""


def _insert(case: Case, name: str, rows: Array, lower: Array, upper: Array) -> Case:
    """The case with more rows of A or C, which the planted solution need not hold."""
    d, point = case.data, case.point
    if name == "A":
        data = replace(d, A=np.vstack([d.A, rows]), b=np.append(d.b, lower))
        if point is not None:
            point = replace(point, y=np.append(point.y, np.zeros(len(rows))))
    else:
        data = replace(
            d, C=np.vstack([d.C, rows]), l=np.append(d.l, lower), u=np.append(d.u, upper)
        )
        if point is not None:
            point = replace(point, z=np.append(point.z, np.zeros(len(rows))))
    return replace(case, data=data, point=point)


def add_empty_rows(rng: Generator, case: Case) -> Case:
    """0'x = 0 and sides around 0; rarely sides that exclude it."""
    n, count = case.data.n, int(rng.integers(1, 3))
    case = _insert(case, "A", np.zeros((count, n)), np.zeros(count), np.zeros(count))
    sides = rng.choice([0.0, 1.0, np.inf], (2, count))
    case = _insert(case, "C", np.zeros((count, n)), -sides[0], sides[1])
    if rng.random() < 0.05:
        case = _insert(case, "C", np.zeros((1, n)), np.ones(1), np.full(1, np.inf))
        case = replace(case, truth=Truth.INFEASIBLE, point=None)
    return case


def repeat_rows(rng: Generator, case: Case) -> Case:
    """Rows again, times a power of two."""
    d = case.data
    for name, lower, upper in (("A", d.b, d.b), ("C", d.l, d.u)):
        rows = getattr(d, name)
        if len(rows):
            chosen = rng.integers(0, len(rows), int(rng.integers(1, 4)))
            unit = 2.0 ** rng.integers(-3, 4, len(chosen))
            case = _insert(
                case, name, unit[:, None] * rows[chosen], unit * lower[chosen], unit * upper[chosen]
            )
    return case


def add_idle_variables(rng: Generator, case: Case) -> Case:
    """Variables in no row and no product, free or in a box, and without a cost unless they are held."""
    d, point, count = case.data, case.point, int(rng.integers(1, 3))

    def columns(M: Array) -> Array:
        return np.hstack([M, np.zeros((len(M), count))])

    lb, width = rng.choice([-np.inf, -1.0, 0.0], count), rng.choice([np.inf, 0.0, 1.0], count)
    ub = np.where(np.isfinite(lb), lb, 0.0) + width
    g = np.where(np.isfinite(lb), rng.integers(0, 2, count), 0.0)
    if point is not None:
        x = np.where(np.isfinite(lb), lb, 0.0)
        point = replace(
            point, x=np.append(point.x, x), z_box=np.append(point.z_box, np.where(g > 0.0, -g, 0.0))
        )
    H = np.zeros((d.n + count, d.n + count))
    H[: d.n, : d.n] = d.H
    data = Data(
        H, np.append(d.g, g), columns(d.A), d.b, columns(d.C), d.l, d.u,
        np.append(d.lb, lb), np.append(d.ub, ub),
    )  # fmt: skip
    return replace(case, data=data, point=point)


def _rescaled(case: Case, c: float, D: Array, E_A: Array, E_C: Array) -> Case:
    """The case in other units, its tolerances with it.

        c (x'D H D x / 2 + (D g)'x),   E M D x,   E sides,   bounds / D

    Relative tolerances are for sizes above 1, smaller absolute ones for those below.
    """
    d, point = case.data, case.point
    data = Data(
        c * D[:, None] * d.H * D, c * D * d.g,
        E_A[:, None] * d.A * D, E_A * d.b,
        E_C[:, None] * d.C * D, E_C * d.l, E_C * d.u,
        d.lb / D, d.ub / D,
    )  # fmt: skip
    sides = np.concatenate([data.b, data.l, data.u, data.lb, data.ub])
    if np.abs(sides[np.isfinite(sides)]).max(initial=0.0) >= 1e-3 * INFINITY:
        return case
    if point is not None:
        point = Point(point.x / D, c * point.y / E_A, c * point.z / E_C, c * D * point.z_box)
    tolerances = {"eps_abs": 1e-8 * min(1.0, c), "eps_rel": 1e-8}
    return replace(case, data=data, point=point, settings=case.settings | tolerances)


def _units(rng: Generator, most: float, size: int) -> Array:
    """Exact powers of two within 2^-most and 2^most."""
    return 2.0 ** np.rint(rng.uniform(-most, most, size))


def rescale(rng: Generator, case: Case) -> Case:
    """Rows, variables and the objective in other units: each entry times 1e-8 to 1e8."""
    d = case.data
    most = 27.0 * np.array(
        [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.5, 0.5), (1 / 3, 1 / 3, 2 / 3)]
    )
    objective, variables, rows = most[rng.integers(len(most))] * rng.choice([0.5, 1.0])
    D = _units(rng, variables, d.n)
    E_A, E_C = _units(rng, rows, len(d.b)), _units(rng, rows, len(d.l))
    return _rescaled(case, _units(rng, objective, 1)[0], D, E_A, E_C)


def rescale_wildly(rng: Generator, case: Case) -> Case:
    """1e-8 to 1e8 for each row, each variable and the objective, at once: for H 24 decades up or down.

    No solver need solve these, but none may lie about them.
    """
    d = case.data
    D, E_A, E_C = (_units(rng, 27.0, size) for size in (d.n, len(d.b), len(d.l)))
    return replace(_rescaled(case, _units(rng, 27.0, 1)[0], D, E_A, E_C), apart=WILD)


def raise_costs(rng: Generator, case: Case) -> Case:
    """An objective up to 1e8 times as large, with the tolerances that the case has."""
    d = case.data
    same = np.ones(d.n), np.ones(len(d.b)), np.ones(len(d.l))
    raised = _rescaled(case, float(2.0 ** rng.integers(0, 28)), *same)
    return replace(raised, settings=case.settings)


def ask_for_more(rng: Generator, case: Case) -> Case:
    """Another tolerance than the default."""
    if "eps_rel" in case.settings:
        return case
    return replace(case, settings=case.settings | {"eps_abs": float(rng.choice([1e-5, 1e-9]))})


def ask_for_the_closest(rng: Generator, case: Case) -> Case:
    """Solve it as a closest feasible QP, though it may well be feasible."""
    return replace(case, settings=case.settings | {"primal_infeasibility_solving": True})


def ask_for_one_phase(rng: Generator, case: Case) -> Case:
    """Without the other phase to fall back on."""
    method = {"method": str(rng.choice(["semismooth", "smoothed"]))}
    return replace(case, settings=case.settings | method, apart=case.apart or ONE_PHASE)


DECORATIONS: tuple[tuple[Callable[[Generator, Case], Case], float], ...] = (
    (add_empty_rows, 0.1),
    (repeat_rows, 0.15),
    (add_idle_variables, 0.1),
    (rescale, 0.3),
    (rescale_wildly, 0.03),
    (raise_costs, 0.05),
    (ask_for_more, 0.2),
    (ask_for_the_closest, 0.05),
    (ask_for_one_phase, 0.05),
)
"""What is done to a case after it was drawn, in this order, and how often."""
