"""Infeasible QPs built backwards from a chosen closest feasible solution; see `strategies`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tests.core.strategies import (
    KINDS,
    Kind,
    Plan,
    Problem,
    independent_rows,
    random_hessian,
    random_rows,
)

Contradiction = Literal["equality", "rows", "bounds", "mixed", "overdetermined", "underdetermined"]
CONTRADICTIONS: tuple[Contradiction, ...] = (
    "equality", "rows", "bounds", "mixed", "overdetermined", "underdetermined",
)  # fmt: skip


def random_infeasible_qp(
    rng: np.random.Generator,
    *,
    contradiction: Contradiction = "mixed",
    kind: Kind = "strictly_convex",
    n: int = 8,
    n_eq: int = 3,
    n_in: int = 6,
    density: float = 1.0,
    bounds: float = 0.5,
    scaling: float = 0.0,
    margin: float = 0.1,
    sparse: bool = False,
    name: str = "",
) -> Problem:
    """Primal infeasible QP whose closest feasible solution is planted.

    A group of rows V gets shifts s of the right signs, and its last row, in A or in C, is
    made ``-(sum of the others' s_i M_i) / s_last``, so that ``M_V' s = 0``: the condition for s
    to be the smallest shift. The multipliers planted prove dual feasibility, so the closest
    feasible QP has a solution; they are not unique (lam + alpha s), x and s are compared.

    Parameters
    ----------
    contradiction
        ``"equality"`` (rows of A), ``"rows"`` (of C), ``"bounds"`` (bounds against a row of C),
        ``"mixed"`` (all three), ``"overdetermined"`` (V has rank n: x is determined and
        differentiable), ``"underdetermined"`` (one parallel pair, few other rows active).
    kind, n, n_eq, n_in, density, bounds, scaling, margin, sparse
        As in `random_qp`; n_eq and n_in are raised where the contradiction needs rows. For LPs
        rows are activated until x is determined, except where underdetermined.
    """
    pair = 2 if contradiction == "underdetermined" else int(rng.integers(2, 5))
    if contradiction == "overdetermined":
        n_eq, n_in = max(n_eq, n // 2 + 1), max(n_in, n // 2 + 2)
    n_eq = max(n_eq, {"equality": pair, "mixed": 2, "underdetermined": 2}.get(contradiction, 0))
    n_in = max(n_in, {"equality": 0, "rows": pair}.get(contradiction, 2))
    H = random_hessian(rng, kind, n, density)
    plan = Plan.empty(
        rng, random_rows(rng, n_eq, n, density), random_rows(rng, n_in, n, density), bounds
    )
    box = plan.ne + plan.ni
    inner, columns = plan.ne + np.arange(n_in), box + rng.permutation(n)
    group = {
        "equality": np.arange(n_eq)[-pair:],
        "rows": inner[-pair:],
        "bounds": np.r_[columns[: min(pair, n)], inner[-1:]],
        "mixed": np.r_[0:2, columns[: min(2, n)], inner[-2:]],
        "underdetermined": np.arange(2) if rng.random() < 0.5 else inner[-2:],
    }.get(contradiction, np.r_[0:n_eq, inner[: max(n + 1 - n_eq, 1)]])
    _contradict(rng, plan, np.asarray(group, int), margin)

    fixed = np.unique(np.r_[np.arange(plan.ne), group]).astype(int)
    base = plan.M[fixed]
    base = base[independent_rows(base, np.arange(len(base)), n, base[:0])]
    free = np.setdiff1d(np.flatnonzero(plan.low | plan.upp), fixed)
    order, room = rng.permutation(free), n - len(base)
    share = rng.random()
    if contradiction == "underdetermined":
        share = 0.3 * share
    elif kind == "lp":
        share, order = 1.0, np.r_[order, np.setdiff1d(columns, np.r_[fixed, free])]
    plan.activate(rng, independent_rows(plan.M, order, round(share * room), base), margin)
    data, point = plan.finish(rng, H, rng.standard_normal(n), scaling, margin)
    return Problem(name or f"{contradiction}-{kind}", data, point, sparse)


def _contradict(
    rng: np.random.Generator, plan: Plan, group: NDArray[np.intp], margin: float
) -> None:
    """Plant shifts on a group of rows; its last row must not be a bound."""
    *rest, last = (int(k) for k in group)
    sign = rng.choice([-1.0, 1.0], len(group))
    plan.s[group] = sign * (0.3 + rng.random(len(group)))
    row = -(plan.s[rest] @ plan.M[rest]) / plan.s[last]
    size = np.linalg.norm(row)
    plan.M[last], plan.s[last] = row / size, plan.s[last] * size
    inequality = group[group >= plan.ne]
    plan.activate(rng, inequality, margin, np.sign(plan.s[inequality]).astype(int))


def random_infeasible_mixture(rng: np.random.Generator, count: int = 500) -> Iterator[Problem]:
    """Infeasible QPs and LPs of varied shape: every contradiction, dense, sparse, badly scaled."""
    for k, child in enumerate(rng.spawn(count)):
        n = round(10 ** child.uniform(np.log10(2), np.log10(60)))
        sparse = bool(child.random() < 0.5)
        contradiction = CONTRADICTIONS[k % len(CONTRADICTIONS)]
        kind = str(child.choice(np.array(KINDS[:3])))
        yield random_infeasible_qp(
            child,
            contradiction=contradiction,
            kind=kind,
            n=n,
            n_eq=int(child.integers(0, n // 2 + 1)),
            n_in=int(child.integers(0, n + 1)),
            density=float(child.uniform(0.1, 0.4)) if sparse else 1.0,
            bounds=float(child.uniform(0.0, 1.0)),
            scaling=float(child.choice([0.0, 0.0, 1.0, 2.0])),
            sparse=sparse,
            name=f"{k}-{contradiction}-{kind}-n{n}",
        )
