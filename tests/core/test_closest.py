"""Closest feasible QPs: solutions, multipliers and derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import nbqp
from tests.core.derivatives import (
    adjoint_oracle,
    assert_adjoint,
    assert_matches,
    jvp_oracle,
    random_cotangents,
    random_tangents,
)
from tests.core.differences import assert_gradients
from tests.core.infeasible import random_infeasible_mixture, random_infeasible_qp
from tests.core.oracles import Data, Point, objective, residuals, wrong_side
from tests.core.references import closest_feasible_reference
from tests.core.strategies import Problem, random_mixture

EPS = 1e-9
CLOSEST = nbqp.Settings(eps_abs=EPS, primal_infeasibility_solving=True)
TIGHT = nbqp.Settings(eps_abs=1e-10, primal_infeasibility_solving=True)
SOLVED = nbqp.Status.SOLVED
SHIFTED = nbqp.Status.SOLVED_CLOSEST_PRIMAL_FEASIBLE
MIXTURE = list(random_infeasible_mixture(np.random.default_rng(5), 500))
SHIFTS = ("s_e", "s_i", "s_box")
WELL_SCALED = [
    random_infeasible_qp(
        np.random.default_rng([3, k]), contradiction=contradiction, kind=kind, name=f"{contradiction}-{kind}"
    )
    for k in range(2)
    for contradiction in ("equality", "rows", "bounds", "mixed", "underdetermined", "overdetermined")
    for kind in ("strictly_convex", "low_rank", "lp")
]  # fmt: skip
STRICTLY_CONVEX = [
    p for p in WELL_SCALED if "strictly" in p.name and "overdetermined" not in p.name
]
OVERDETERMINED = [
    random_infeasible_qp(
        np.random.default_rng([4, k]), contradiction="overdetermined", kind=kind, margin=0.5, name=kind
    )
    for k in range(2)
    for kind in ("strictly_convex", "low_rank", "lp")
]  # fmt: skip


def solve(data: Data, settings: nbqp.Settings = CLOSEST) -> nbqp.Solution:
    return nbqp.solve_qp(**data.args(), settings=settings)


def shift_error(sol: Any, expected: Any) -> float:
    return max(
        float(np.abs(getattr(sol, s) - getattr(expected, s)).max(initial=0.0)) for s in SHIFTS
    )


@pytest.fixture(scope="module")
def solutions() -> list[tuple[Problem, nbqp.Solution]]:
    return [(problem, nbqp.solve_qp(**problem.args, settings=CLOSEST)) for problem in MIXTURE]


def assert_closest(problem: Problem, sol: nbqp.Solution, expected: Point) -> None:
    """Shifts and objective agree to 1e-6, and x, to 1e-6 of its size, where it is unique."""
    assert shift_error(sol, expected) <= 1e-6, problem.name
    assert objective(problem.data, sol.x) == pytest.approx(expected.objective, rel=1e-6, abs=1e-6)
    if problem.unique_x:
        atol = 1e-6 * max(1.0, np.abs(expected.x).max())
        np.testing.assert_allclose(sol.x, expected.x, rtol=0.0, atol=atol, err_msg=problem.name)


@pytest.mark.large
def test_the_smallest_shifts_are_found_and_the_shifted_problem_is_solved(
    solutions: list[tuple[Problem, nbqp.Solution]],
) -> None:
    """From the data: the KKT conditions of the shifted QP, and |A's_e + C's_i + s_box| = 0.

    They hold to the accuracy asked for, a tenth more for the rounding of the sums here.
    """
    for problem, sol in solutions:
        assert sol.status is SHIFTED, problem.name
        assert_closest(problem, sol, problem.solution)
        d, shifts = problem.data.full(), (sol.s_e, sol.s_i, sol.s_box)
        pull = d.A.T @ sol.s_e + d.C.T @ sol.s_i + sol.s_box
        assert np.abs(pull).max() <= 1.1 * EPS, problem.name
        res = residuals(problem.data, sol.x, sol.y, sol.z, sol.z_box, *shifts)
        assert max(res) <= 1.1 * EPS, problem.name
        assert wrong_side(problem.data, sol.z, sol.z_box) == 0.0, problem.name


@pytest.mark.large
def test_two_stages_by_another_solver_agree(
    solutions: list[tuple[Problem, nbqp.Solution]],
) -> None:
    """Minimise |s|, then solve the shifted QP: clarabel, and ProxQP where clarabel fails.

    The multipliers are those of least norm. They solve M_J'lam = -(Hx + g), in which M_J of rows
    that are nearly dependent magnifies the last digits of x: 2e-4 of their size is what they agree
    to on the worst of the badly scaled problems.
    """
    for problem, sol in solutions:
        try:
            other = closest_feasible_reference(problem.data, "clarabel")
        except RuntimeError:
            other = closest_feasible_reference(problem.data, "proxqp")
        assert_closest(problem, sol, other)
        ours, theirs = (np.concatenate([p.y, p.z, p.z_box]) for p in (sol, other))
        np.testing.assert_allclose(
            ours, theirs, rtol=0.0, atol=2e-4 * max(1.0, np.abs(theirs).max()), err_msg=problem.name
        )


@pytest.mark.large
def test_a_feasible_problem_is_solved_without_shifts() -> None:
    solved = 0
    for problem in list(random_mixture(np.random.default_rng(31), 60)):
        sol = nbqp.solve_qp(**problem.args, settings=CLOSEST)
        assert sol.status is not SHIFTED, problem.name
        if sol.status is not SOLVED:
            continue
        solved += 1
        assert all((getattr(sol, s) == 0.0).all() for s in SHIFTS)
        assert max(residuals(problem.data, sol.x, sol.y, sol.z, sol.z_box)) <= EPS
        planted = objective(problem.data, problem.solution.x)
        assert objective(problem.data, sol.x) == pytest.approx(planted, rel=1e-6, abs=1e-6)
    assert solved >= 59


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_metric_is_the_users(scale: float) -> None:
    """x = 0 and x <= -1 meet at -0.5; a row scaled by c weighs c^2."""
    A, b = scale * np.eye(1), np.zeros(1)
    sol = nbqp.solve_qp(
        np.eye(1), np.zeros(1), A, b, np.eye(1), None, -np.ones(1), settings=CLOSEST
    )
    assert sol.status is SHIFTED
    np.testing.assert_allclose(sol.x, [-1.0 / (1.0 + scale**2)], atol=1e-9)


def test_an_unbounded_closest_problem_has_a_descent_direction() -> None:
    sol = nbqp.solve_qp(
        None, np.array([0.0, -1.0]), A=[[1.0, 0.0], [1.0, 0.0]], b=[0.0, 1.0], settings=CLOSEST
    )
    assert sol.status is nbqp.Status.DUAL_INFEASIBLE
    assert sol.certificate is not None
    np.testing.assert_allclose(sol.certificate.x, [0.0, 1.0], atol=1e-9)


@pytest.mark.parametrize("problem", OVERDETERMINED, ids=lambda p: p.name)
@pytest.mark.parametrize("part", ["x", *SHIFTS])
def test_gradients_match_central_differences_where_x_is_differentiable(
    problem: Problem, part: str
) -> None:
    rng = np.random.default_rng(2)
    sol = solve(problem.data, TIGHT)
    given = random_cotangents(rng, sol, (part,))
    assert_gradients(
        nbqp.vjp(sol, **given),
        lambda d: solve(d, TIGHT),
        problem.data,
        given,
        rng,
        names=("g", "A", "b", "C", "l", "u", "lb", "ub"),
        count=5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("problem", STRICTLY_CONVEX, ids=lambda p: p.name)
def test_gradients_of_vectors_and_of_h_match_central_differences(problem: Problem) -> None:
    """Other than its rows, they may move without a jump: the violated rows keep their range."""
    rng = np.random.default_rng(12)
    sol = solve(problem.data, TIGHT)
    given = random_cotangents(rng, sol, ("x", *SHIFTS))
    grads = nbqp.vjp(sol, **given)
    assert_gradients(
        grads,
        lambda d: solve(d, TIGHT),
        problem.data,
        given,
        rng,
        names=("H", "g", "b", "l", "u", "lb", "ub"),
        count=8,
        rtol=1e-5,
    )
    if problem.name.startswith("underdetermined"):  # elsewhere active rows may determine x
        assert np.abs(grads.dL_dH).max() > 1e-3


@pytest.mark.parametrize("problem", WELL_SCALED, ids=lambda p: p.name)
def test_gradients_match_the_least_squares_oracle(problem: Problem) -> None:
    sol = nbqp.solve_qp(**problem.args, settings=CLOSEST)
    given = random_cotangents(np.random.default_rng(4), sol, ("x", *SHIFTS))
    grads = nbqp.vjp(sol, **given)
    assert_matches(grads, adjoint_oracle(problem.data, sol, given, tol=1e-7), atol=1e-7)


@pytest.mark.parametrize("problem", WELL_SCALED[:18], ids=lambda p: p.name)
def test_directional_derivatives_match_the_oracle_and_the_adjoint(problem: Problem) -> None:
    rng = np.random.default_rng(6)
    sol, moved = solve(problem.data), random_tangents(rng, problem.data)
    forward = nbqp.jvp(sol, **moved)
    expected = jvp_oracle(problem.data, sol, moved, tol=1e-7)
    assert_matches(forward, {k: expected[k] for k in ("dx", "ds_e", "ds_i", "ds_box")}, atol=1e-6)
    given = random_cotangents(rng, sol, ("x", *SHIFTS))
    grads = nbqp.vjp(sol, **given)
    assert_adjoint(grads, forward, given, moved, atol=1e-6)


def test_a_loss_on_multipliers_warns_and_returns_the_least_norm_answer() -> None:
    sol = solve(WELL_SCALED[0].data)
    given = random_cotangents(np.random.default_rng(7), sol, ("x", "y"))
    with pytest.warns(UserWarning, match="multipliers are not unique"):
        grads = nbqp.vjp(sol, **given)
    expected = adjoint_oracle(WELL_SCALED[0].data, sol, given, tol=1e-7)
    for name in ("dL_dg", "dL_db", "dL_dA"):
        np.testing.assert_allclose(getattr(grads, name), expected[name], atol=1e-6)


def test_gradients_of_sparse_data_come_on_their_pattern() -> None:
    problem = random_infeasible_qp(
        np.random.default_rng(9), contradiction="mixed", n=12, n_eq=4, n_in=8, density=0.4
    )
    given = random_cotangents(np.random.default_rng(10), solve(problem.data), ("x", *SHIFTS))
    dense = nbqp.vjp(solve(problem.data), **given)
    sparse = nbqp.vjp(nbqp.solve_qp(**problem.data.args(True), settings=CLOSEST), **given)
    for name in ("A", "C"):
        pattern = getattr(problem.data, name) != 0.0
        ours = getattr(sparse, f"dL_d{name}")
        assert sp.issparse(ours)
        assert ours.nnz == pattern.sum()
        expected = np.where(pattern, getattr(dense, f"dL_d{name}"), 0.0)
        np.testing.assert_allclose(ours.toarray(), expected, atol=1e-7)


@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_feasible_qps_with_a_small_row_are_feasible(size: float) -> None:
    """|M's| of a small row is small for any shift: its terms in each column tell the smallest one."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        F, A = rng.standard_normal((4, 4)), rng.standard_normal((3, 4))
        A[0] *= size
        args = (F.T @ F + 0.1 * np.eye(4), rng.standard_normal(4), A, A @ rng.standard_normal(4))
        sol = nbqp.solve_qp(*args, settings=CLOSEST)
        assert sol.status is SOLVED
        np.testing.assert_allclose(sol.x, nbqp.solve_qp(*args).x, atol=1e-5)


@pytest.mark.parametrize("size", [1e-2, 1e-3, 5e-4, 1e-4])
def test_gradients_through_a_small_violated_row(size: float) -> None:
    """The rows have full rank, x0 = b0 / size whatever contradicts beside it."""
    A, b = np.array([[size, 0.0], [0.0, 1.0], [0.0, 1.0]]), np.array([size, 0.0, 1.0])
    sol = nbqp.solve_qp(np.eye(2), [0.1, 0.0], A, b, settings=CLOSEST)
    assert sol.status is SHIFTED
    grads = nbqp.vjp(sol, dL_dx=np.array([1.0, 0.0]))
    np.testing.assert_allclose(grads.dL_db, [1.0 / size, 0.0, 0.0], rtol=1e-6, atol=1e-6)
