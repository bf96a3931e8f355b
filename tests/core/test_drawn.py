"""Properties of small problems drawn by hypothesis, degenerate and badly scaled ones included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import nbqp
from tests.core.drawn import infeasible_qps, qps, quasi_definite_matrices, regular_qps
from tests.core.factorisations import dense_ldl, symbolic_ldl
from tests.core.infeasible import CONTRADICTIONS, Contradiction, random_infeasible_qp
from tests.core.oracles import Array, objective, residuals
from tests.core.strategies import KINDS, Kind, Problem
from tests.core.test_kernels import factorised

SETTINGS = nbqp.Settings(eps_abs=1e-9)
drawn = settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@drawn
@given(qps())
def test_small_problems_are_solved_to_the_planted_objective(problem: Problem) -> None:
    sol = nbqp.solve_qp(**problem.args, settings=SETTINGS)
    assert sol.status is nbqp.Status.SOLVED
    assert max(residuals(problem.data, sol.x, sol.y, sol.z, sol.z_box)) <= 1e-9
    planted = objective(problem.data, problem.solution.x)
    assert objective(problem.data, sol.x) == pytest.approx(planted, rel=1e-7, abs=1e-7)


def assert_proof(problem: Problem, sol: nbqp.Solution) -> None:
    """The certificate proves from the data that no point is feasible."""
    d, proof = problem.data.full(), sol.certificate
    assert proof is not None
    stationarity = d.A.T @ proof.y + d.C.T @ proof.z + proof.z_box
    sides = [(d.b, d.b, proof.y), (d.l, d.u, proof.z), (d.lb, d.ub, proof.z_box)]
    support = 0.0
    for low, high, multiplier in sides:
        side = np.where(multiplier > 0.0, high, low)
        support += float(np.sum(side[multiplier != 0.0] * multiplier[multiplier != 0.0]))
    assert support < 0.0
    assert np.abs(stationarity).max() <= 1e-8 * -support


@drawn
@given(infeasible_qps())
def test_small_infeasible_problems_are_never_called_solved(problem: Problem) -> None:
    """An honest failure would do too."""
    sol = nbqp.solve_qp(**problem.args, settings=SETTINGS)
    assert sol.status is not nbqp.Status.SOLVED
    assert sol.status is not nbqp.Status.DUAL_INFEASIBLE
    if sol.status is nbqp.Status.PRIMAL_INFEASIBLE:
        assert_proof(problem, sol)


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("scaling", [0.0, 1.0])
def test_small_infeasible_problems_of_every_sort_are_proven_so(
    contradiction: Contradiction, kind: Kind, scaling: float
) -> None:
    problem = random_infeasible_qp(
        np.random.default_rng(41), contradiction=contradiction, kind=kind, scaling=scaling
    )
    sol = nbqp.solve_qp(**problem.args, settings=SETTINGS)
    assert sol.status is nbqp.Status.PRIMAL_INFEASIBLE
    assert_proof(problem, sol)


@drawn
@given(regular_qps(), st.integers(0, 2**32 - 1))
def test_jvp_and_vjp_are_adjoint(problem: Problem, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sol = nbqp.solve_qp(**problem.data.args(), settings=SETTINGS)
    w, dg = rng.standard_normal(problem.data.n), rng.standard_normal(problem.data.n)
    forward, backward = nbqp.jvp(sol, dg=dg).dx @ w, nbqp.vjp(sol, dL_dx=w).dL_dg @ dg
    assert forward == pytest.approx(backward, rel=1e-10, abs=1e-10)


@drawn
@given(quasi_definite_matrices())
def test_the_sparse_factor_is_the_dense_one(drawn: tuple[Array, NDArray[np.int64]]) -> None:
    K, signs = drawn
    perm, L, pivots = factorised(K, signs)
    expected, d = dense_ldl(K[np.ix_(perm, perm)])
    np.testing.assert_allclose(pivots, d, rtol=1e-6)
    np.testing.assert_allclose(L, expected, atol=1e-6 * np.abs(expected).max())
    assert (np.sign(pivots) == signs[perm]).all()
    pattern = symbolic_ldl(K[np.ix_(perm, perm)] != 0.0).pattern
    assert (L[~pattern & ~np.eye(len(K), dtype=bool)] == 0.0).all()
