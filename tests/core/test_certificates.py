"""Certificates of infeasibility, checked in rational arithmetic from the data alone."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import nbqp
from nbqp.execution import to_options
from nbqp.kernels.certificates import proven_dual_infeasible, proven_primal_infeasible
from nbqp.kernels.jit import entry
from nbqp.kernels.structure import PatternReference, sample_data
from nbqp.problem import QP
from tests.core.infeasible import CONTRADICTIONS, Contradiction, random_infeasible_qp
from tests.core.oracles import Data

SETTINGS = nbqp.Settings()


@entry
def proven(pattern_values, data, y, z, z_box, d, options):
    """Whether (y, z, z_box) proves primal, and d dual infeasibility."""
    pattern = PatternReference(*pattern_values)
    qp = sample_data(data, 0)
    primal = proven_primal_infeasible(pattern, qp, y, z, z_box, options)
    return primal, proven_dual_infeasible(pattern, qp, d, options)


def exactly(M: np.ndarray, x: np.ndarray) -> list[Fraction]:
    """M x without rounding."""
    return [
        sum(
            (Fraction(a) * Fraction(b) for a, b in zip(row, x, strict=True) if a and b), Fraction(0)
        )
        for row in np.atleast_2d(M)
    ]


def assert_farkas(data: Data, proof: nbqp.Certificate) -> None:
    """A'y + C'z + z_box = 0 to eps of -s, s < 0, and the violation is more than eps_abs."""
    multipliers = np.concatenate([proof.y, proof.z, proof.z_box])
    M = np.vstack([data.A, data.C, np.eye(len(data.g))])
    low = np.concatenate([data.b, data.l, data.lb])
    high = np.concatenate([data.b, data.u, data.ub])
    side = np.where(multipliers > 0.0, high, low)
    held = multipliers != 0.0
    assert np.isfinite(side[held]).all()
    (support,) = exactly(side[held], multipliers[held])
    assert support < 0
    residual = max(map(abs, exactly(M.T, multipliers)))
    assert residual <= Fraction(SETTINGS.eps_primal_inf) * -support
    assert Fraction(SETTINGS.eps_abs) * sum(map(Fraction, np.abs(multipliers))) < -support


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
@pytest.mark.parametrize("scaling", [0.0, 3.0])
@pytest.mark.parametrize("cost", [1e-8, 1.0, 1e8])
def test_primal_certificates_hold_without_rounding(
    contradiction: Contradiction, scaling: float, cost: float
) -> None:
    rng = np.random.default_rng(3)
    for _ in range(3):
        problem = random_infeasible_qp(rng, contradiction=contradiction, scaling=scaling)
        data = problem.data.full()
        args = {**problem.args, "H": cost * data.H, "g": cost * data.g}
        sol = nbqp.solve_qp(**args, settings=SETTINGS)
        assert sol.status is nbqp.Status.PRIMAL_INFEASIBLE
        assert sol.certificate is not None
        assert_farkas(data, sol.certificate)


def unbounded(rng: np.random.Generator, scaling: float) -> Data:
    """A QP that falls for ever along a planted direction, in units 10^(-scaling .. scaling)."""
    n, n_eq, n_in = 8, 2, 5
    d = np.abs(rng.standard_normal(n))
    across = np.eye(n) - np.outer(d, d) / (d @ d)
    H = across @ np.diag(rng.random(n)) @ across
    A = rng.standard_normal((n_eq, n)) @ across
    C = rng.standard_normal((n_in, n))
    C *= np.where(C @ d > 0.0, -1.0, 1.0)[:, None]
    x = rng.random(n)
    g = rng.standard_normal(n)
    g -= d * (g @ d + 1.0) / (d @ d)
    D, E = (10.0 ** rng.uniform(-scaling, scaling, size) for size in (n, n_in))
    return Data(
        H=D[:, None] * H * D,
        g=D * g,
        A=A * D,
        b=A @ x,
        C=E[:, None] * C * D,
        l=np.full(n_in, -np.inf),
        u=E * (C @ x + rng.random(n_in)),
        lb=np.zeros(n),
        ub=np.full(n, np.inf),
    )


@pytest.mark.parametrize("scaling", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("cost", [1e-6, 1.0, 1e6])
def test_dual_certificates_hold_without_rounding(scaling: float, cost: float) -> None:
    rng = np.random.default_rng(4)
    for _ in range(5):
        data = unbounded(rng, scaling)
        H, g = cost * data.H, cost * data.g
        args = {**data.args(sparse=False), "H": H, "g": g}
        sol = nbqp.solve_qp(**args, settings=SETTINGS)
        assert sol.status is nbqp.Status.DUAL_INFEASIBLE
        assert sol.certificate is not None
        d = sol.certificate.x
        eps = Fraction(SETTINGS.eps_dual_inf)
        (slope,) = exactly(g, d)
        assert slope < 0
        assert max(map(abs, exactly(H, d))) <= -eps * slope
        leave = max(*map(abs, exactly(data.A, d)), *exactly(data.C, d), *(-Fraction(v) for v in d))
        assert leave * Fraction(np.abs(g).max()) <= -eps * slope
        assert leave <= eps


def test_a_certificate_that_fails_on_the_data_proves_nothing() -> None:
    """Each part of the proof is what refuses one of these."""
    A = np.array([[1.0, 1.0], [1.0, 1.0]])
    qp = QP(np.zeros((2, 2)), np.array([-1.0, 0.0]), A=A, b=np.array([1.0, 2.0]))
    y, d, none = np.array([1.0, -1.0]), np.array([1.0, -1.0]), np.zeros(2)
    options = to_options(SETTINGS)

    def proofs(y: np.ndarray, d: np.ndarray) -> tuple[bool, bool]:
        return proven(qp.pattern(), qp.data(), y, np.zeros(0), none.copy(), d, options)

    assert proofs(y, d) == (True, True)
    assert proofs(-y, -d) == (False, False)
    assert proofs(none, none) == (False, False)
    assert proofs(y * [1.0, 1.0 + 1e-9], d * [1.0, 1.0 + 1e-9]) == (False, False)
    assert proofs(y * np.nan, d * np.nan) == (False, False)
