"""Gradients of a solution with a planted point against dense systems of its active set."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import nbqp
from tests.core.derivatives import adjoint_oracle, extended_jacobian, random_cotangents
from tests.core.oracles import Array, Data, Rows, stack_rows
from tests.fuzz.cases import Case

MARGIN = 1e-4
"""Multipliers and slacks below are too near to 0 for the active set to be certain, unless they are 0."""
MOST_CONDITION = 1e8
PER_CONDITION = 1e-6
"""A gradient is wrong where its error is more than this multiple of the condition."""
MASK = 10.0
"""Up to so many times the tolerance a row counts as weakly active."""
UNCLEAR = 10.0, 100.0
"""A slack or multiplier by less or more than the mask, by these factors, is clear."""
NO_RANK, FULL_RANK = 1e-14, 1e-6
"""Singular values relative to the largest: below the one 0, above the other not."""


class GradientCheck(NamedTuple):
    """Error relative to the sizes of what was differentiated, and the condition of the system."""

    regular: bool
    error: float
    condition: float

    @property
    def wrong(self) -> bool:
        """Whether the condition does not explain the error."""
        return not self.error <= PER_CONDITION * self.condition


def check_gradient(case: Case, found: Any, batch: Any = None) -> GradientCheck | None:
    """Hold `nbqp.vjp` of a random loss against the system that defines it, and those of a batch with it.

    batch: its first sample is the case.

    None where the tolerances and the condition leave the active set, or its rank, open.
    """
    check = _regular(case, found) or _degenerate(case, found)
    if check is None or batch is None:
        return check
    sample = _InBatch(batch)
    other = _regular(case, sample) if check.regular else _degenerate(case, sample)
    return check if other is None or other.error < check.error else other


class _InBatch:
    """The first sample of a batch, whose gradients are computed with all the others'."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        for name in ("x", "y", "z", "z_box", "s_e", "s_i", "s_box"):
            setattr(self, name, getattr(batch, name)[0])


def _gradients(found: Any, cotangents: dict[str, Array]) -> dict[str, Any]:
    """What `nbqp.vjp` returns, by name, of the sample that is checked."""
    if not isinstance(found, _InBatch):
        return dict(vars(nbqp.vjp(found, **cotangents)))
    size = len(found.batch.x)
    stacked = {name: np.stack(size * [part]) for name, part in cotangents.items()}
    gradients = nbqp.vjp(found.batch, **stacked, on_failure="zero")
    return {name: part[0] for name, part in vars(gradients).items()}


def _regular(case: Case, found: Any) -> GradientCheck | None:
    """Where the solution has a derivative: the KKT system at the planted point.

    With M and lam the rows that hold and their multipliers, dL/dx and dL/dlam the cotangents,

        [H  M'] [v]     [dL/dx  ]      dL/dg = v,   dL/dH = (v x' + x v') / 2,
        [M  0 ] [w] = - [dL/dlam],     dL/dM = lam v' + w x',   dL/dside = -w

    Errors are relative to |(v, w)| and the other factor of a product.
    """
    d, point = case.data, case.point
    rows = stack_rows(d, point)
    value = rows.M @ point.x
    room = np.minimum(value - rows.lower, rows.upper - value)
    strict = rows.equal | (np.abs(rows.lam) > MARGIN)
    if not (strict | (rows.lam == 0.0) & (room > MARGIN) | ~rows.present).all():
        return None
    M = rows.M[strict]
    K = np.block([[d.H, M.T], [M, np.zeros((len(M), len(M)))]])
    sizes = np.linalg.svd(K, compute_uv=False)
    if not sizes[-1] * MOST_CONDITION > sizes[0]:
        return None
    condition = float(sizes[0] / sizes[-1])
    x_size, lam_size = np.abs(point.x).max(), np.abs(rows.lam).max(initial=0.0)
    forces = d.H @ point.x, d.g, rows.M.T @ rows.lam
    terms = max(np.abs(part).max() for part in (value, *forces))
    tolerance = case.eps_abs + case.eps_rel * terms
    accuracy = tolerance / sizes[-1]
    if accuracy > min(MARGIN, PER_CONDITION * condition * (x_size or 1.0)):
        return None
    if _is_open(d, found, MASK * tolerance):
        return None
    cotangents = random_cotangents(np.random.default_rng(d.n), found)
    dL_dlam = np.concatenate([cotangents[f"dL_d{name}"] for name in ("y", "z", "z_box")])
    solution = np.linalg.solve(K, -np.concatenate([cotangents["dL_dx"], dL_dlam[strict]]))
    v, w = solution[: d.n], np.zeros(len(strict))
    w[strict] = solution[d.n :]
    expected = _outer_products(case, rows, v, w)
    units = {"dL_dH": x_size, "dL_dA": x_size + lam_size, "dL_dC": x_size + lam_size}
    size = np.abs(solution).max()
    ours = _gradients(found, cotangents)
    errors = [
        _difference(ours[name], part) / (units.get(name, 1.0) or 1.0)
        for name, part in expected.items()
    ]
    return GradientCheck(True, max(errors) / size, condition)


def _is_open(d: Data, found: Any, mask: float) -> bool:
    """Whether a row has a multiplier, but is off its side: complementary to within the tolerances only."""
    rows = stack_rows(d, found)
    value = rows.M @ found.x
    distance = np.where(rows.lam > 0.0, rows.upper - value, value - rows.lower)
    beyond = np.abs(rows.lam) > mask / UNCLEAR[0]
    return bool((~rows.equal & beyond & (np.abs(distance) > mask / UNCLEAR[0])).any())


def _outer_products(case: Case, rows: Rows, v: Array, w: Array) -> dict[str, Array]:
    d, x, lam = case.data, case.point.x, rows.lam
    dL_dA, dL_dC, _ = rows.split(np.outer(lam, v) + np.outer(w, x), d)
    share = np.where(rows.equal, 0.5, 1.0)
    on_lower, on_upper = rows.equal | (lam < 0.0), rows.equal | (lam > 0.0)
    _, dL_dl, dL_dlb = rows.split(np.where(on_lower, -share * w, 0.0), d)
    _, dL_du, dL_dub = rows.split(np.where(on_upper, -share * w, 0.0), d)
    return {
        "dL_dH": 0.5 * (np.outer(v, x) + np.outer(x, v)),
        "dL_dg": v,
        "dL_dA": dL_dA,
        "dL_db": -w[: len(d.b)],
        "dL_dC": dL_dC,
        "dL_dl": dL_dl,
        "dL_du": dL_du,
        "dL_dlb": dL_dlb,
        "dL_dub": dL_dub,
    }


def _degenerate(case: Case, found: Any) -> GradientCheck | None:
    """Where it has none: least-norm least squares of the extended system at the point found."""
    d, mask = case.data, MASK * case.eps_abs
    if case.eps_rel > 0.0:
        return None
    rows = stack_rows(d, found)
    value = rows.M @ found.x
    sides = np.abs([value - rows.lower, value - rows.upper])
    one_sided = rows.present & ~rows.equal
    measured = np.concatenate([sides.min(axis=0)[one_sided], np.abs(rows.lam)[one_sided]])
    if ((measured > mask / UNCLEAR[0]) & (measured < mask * UNCLEAR[1])).any():
        return None
    if _is_open(d, found, mask):
        return None
    sizes = np.linalg.svd(extended_jacobian(d, found, mask), compute_uv=False)
    if sizes[0] == 0.0:
        return None
    relative = sizes / sizes[0]
    if ((relative > NO_RANK) & (relative < FULL_RANK)).any():
        return None
    cotangents = random_cotangents(np.random.default_rng(d.n), found)
    rank_gap = float(np.sqrt(NO_RANK * FULL_RANK))
    expected = adjoint_oracle(d, found, cotangents, tol=mask, rcond=rank_gap)
    ours = _gradients(found, cotangents)
    # A bound that does not hold has no side: the nearer one of two is a matter of rounding.
    for parts in (expected, ours):
        parts["dL_dl"], parts["dL_dlb"] = (
            parts["dL_dl"] + parts["dL_du"],
            parts["dL_dlb"] + parts["dL_dub"],
        )
        del parts["dL_du"], parts["dL_dub"]
    largest = max(np.abs(part).max(initial=0.0) for part in expected.values())
    error = max(_difference(ours[name], part) for name, part in expected.items())
    return GradientCheck(
        False, error / (largest or 1.0), float(1.0 / relative[relative >= FULL_RANK].min())
    )


def _difference(found: Any, expected: Array) -> float:
    """Largest difference on the pattern that `found` has."""
    if hasattr(found, "tocoo"):
        stored = found.tocoo()
        return float(np.abs(stored.data - expected[stored.row, stored.col]).max(initial=0.0))
    return float(np.abs(found - expected).max(initial=0.0))
