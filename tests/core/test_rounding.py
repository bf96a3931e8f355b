"""Duality gaps below the rounding of their terms, summed here in rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import nbqp
from nbqp.kernels.jit import entry
from nbqp.kernels.residuals import exact_residuals
from nbqp.kernels.rounding import mend
from nbqp.kernels.structure import PatternReference, sample_data
from nbqp.problem import QP
from tests.core.oracles import Data


def exact_gap(data: Data, sol: nbqp.Solution) -> float:
    """x'Hx + g'x + b'y + sum z_i side_i without rounding, H diagonal."""
    d = data.full()
    total = sum(Fraction(h) * Fraction(v) ** 2 for h, v in zip(np.diag(d.H), sol.x, strict=True))
    pairs = [(d.g, sol.x), (d.b, sol.y)]
    for low, high, multiplier in [(d.l, d.u, sol.z), (d.lb, d.ub, sol.z_box)]:
        held = multiplier != 0.0
        pairs.append((np.where(multiplier > 0.0, high, low)[held], multiplier[held]))
    for left, right in pairs:
        total += sum(Fraction(a) * Fraction(b) for a, b in zip(left, right, strict=True))
    return float(total)


def heavy(seed: int, n: int = 60, size: float = 1e5) -> Data:
    """Terms of some n * size^2, hence 1e12, which doubles round by 1e-4."""
    rng = np.random.default_rng(seed)
    x = size * rng.random(n)
    A = rng.random((2, n)) / size
    return Data(
        H=np.diag(1.0 + rng.random(n)),
        g=size * rng.standard_normal(n),
        A=A,
        b=A @ x,
        C=np.eye(n) - np.eye(n, k=1),
        l=x - np.append(x[1:], 0.0) - size * rng.random(n) * rng.integers(0, 2, n),
        lb=np.zeros(n),
    )


@pytest.mark.parametrize("seed", range(5))
def test_gaps_below_their_rounding_are_closed_without_harm(seed: int) -> None:
    data = heavy(seed)
    d = data.full()
    sol = nbqp.solve_qp(**data.args(sparse=False), settings=nbqp.Settings(eps_abs=1e-6))
    assert sol.status is nbqp.Status.SOLVED
    assert abs(exact_gap(data, sol)) <= 1e-6
    stationarity = d.H @ sol.x + d.g + d.A.T @ sol.y + d.C.T @ sol.z + sol.z_box
    assert np.abs(stationarity).max() <= 2e-6
    violations = [np.abs(d.A @ sol.x - d.b), d.l - d.C @ sol.x, d.lb - sol.x]
    assert max(v.max() for v in violations) <= 2e-6
    assert (sol.z <= 0.0).all()
    assert (sol.z_box <= 0.0).all()
    loose = nbqp.solve_qp(**data.args(sparse=False), settings=nbqp.Settings(eps_abs=1e-3))
    np.testing.assert_allclose(sol.x, loose.x, rtol=1e-7, atol=1e-2)


@entry
def closed(pattern_values, data, x, tol):
    """Residuals of x, without multipliers, before and after its gap was closed as far as allowed."""
    pattern = PatternReference(*pattern_values)
    qp = sample_data(data, 0)
    none = np.zeros(0)
    zero = np.zeros(pattern.n)
    before = np.empty(3)
    exact_residuals(pattern, qp, x, none, none, zero, none, none, zero, before)
    after = before.copy()
    mend(pattern, qp, x, none, none, zero, none, none, zero, after, tol)
    return before, after


@pytest.mark.parametrize(("size", "rounding"), [(1e5, True), (1e3, False)])
def test_only_a_gap_of_rounding_is_closed(size: float, rounding: bool) -> None:
    """x = size + 5e-7 minimises x^2 / 2 - size x to a residual of 5e-7 and a gap of size * 5e-7."""
    qp = QP(np.eye(1), np.array([-size]))
    before, after = closed(qp.pattern(), qp.data(), np.array([size + 5e-7]), np.full(3, 1e-6))
    assert 1e-6 < abs(before[2]) == pytest.approx(size * 5e-7, rel=1e-2)
    if rounding:
        assert abs(after[2]) < abs(before[2])
        assert abs(after[1]) <= 1e-6
    else:
        assert (after == before).all()


@pytest.mark.parametrize("batch", [False, True])
def test_a_gap_counts_what_is_lost_between_a_variable_and_its_shift(batch: bool) -> None:
    """x - s was rounded, and the multiplier of the bound, 1e7, times that was no part of the gap."""
    rng = np.random.default_rng(0)
    settings = nbqp.Settings(primal_infeasibility_solving=True)
    lost = 0
    for _ in range(200):
        ub, a = rng.uniform(1.0, 1e3), rng.uniform(1e-3, 1.0)
        g, A, b = np.array([-1e7]), np.array([[a]]), np.array([a * ub + 1e-5])
        if batch:
            sols = nbqp.solve_batch(None, g[None], A, b, ub=ub, settings=settings)
            parts = [getattr(sols, k)[0] for k in ("x", "y", "z_box", "s_e", "s_box")]
            claimed = sols.duality_gap()[0]
        else:
            sol = nbqp.solve_qp(None, g, A, b, ub=ub, settings=settings)
            parts = [sol.x, sol.y, sol.z_box, sol.s_e, sol.s_box]
            claimed = sol.duality_gap()
        x, y, z, s_e, s_box = (Fraction(float(part[0])) for part in parts)
        gap = Fraction(-1e7) * x + y * (Fraction(float(b[0])) + s_e) + z * (Fraction(ub) + s_box)
        assert claimed == pytest.approx(abs(float(gap)), rel=1e-6, abs=1e-12)
        rounded = float(x) - float(s_box)
        lost += abs((x - s_box - Fraction(rounded)) * z) > Fraction(1e-8)
    assert lost > 20
