"""Solutions of `nbqp.solve_qp`, held against the data and against other solvers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import nbqp
from tests.core.oracles import objective, residuals
from tests.core.references import reference_solve
from tests.core.strategies import Problem, random_mixture, random_qp

EPS = 1e-9
SETTINGS = nbqp.Settings(eps_abs=EPS)
MIXTURE = list(random_mixture(np.random.default_rng(7), 1000))


def solve(problem: Problem, **settings: object) -> nbqp.Solution:
    return nbqp.solve_qp(**problem.args, settings=nbqp.Settings(eps_abs=EPS, **settings))


@pytest.mark.large
@pytest.mark.parametrize(("method", "fewest"), [("auto", 995), ("semismooth", 990)])
def test_a_mixture_is_solved_and_its_residuals_hold_on_the_data(method: str, fewest: int) -> None:
    """The semismooth phase alone ends next to 1e-9 where the dual residual is all rounding."""
    solved = 0
    for problem in MIXTURE:
        sol = solve(problem, method=method)
        if sol.status is nbqp.Status.SOLVED:
            solved += 1
            res = residuals(problem.data, sol.x, sol.y, sol.z, sol.z_box)
            assert max(abs(r) for r in res) <= EPS, problem.name
        else:
            assert sol.status in (
                nbqp.Status.MAX_ITER_REACHED,
                nbqp.Status.NUMERICAL_ERROR,
            ), problem.name
    assert solved >= fewest


@pytest.mark.large
@pytest.mark.parametrize("other", ["proxqp", "clarabel", "piqp", "highs"])
def test_a_mixture_agrees_with_other_solvers(other: str) -> None:
    """Objectives to 1e-7; a gap of 1e-9 leaves a strictly convex x an error of about its root.

    HiGHS solves the LPs, by the simplex method.
    """
    compared = 0
    problems = [p for p in MIXTURE if other != "highs" or p.data.H is None]
    for problem in problems:
        sol = solve(problem)
        try:
            reference = reference_solve(problem.data, solver=other)
        except RuntimeError:  # it does not reach its own tolerance
            continue
        compared += 1
        assert objective(problem.data, sol.x) == pytest.approx(
            reference.objective, rel=1e-7, abs=1e-7
        ), problem.name
        if "strictly_convex" in problem.name:
            atol = 1e-5 * max(1.0, np.abs(reference.x).max())
            np.testing.assert_allclose(sol.x, reference.x, rtol=0.0, atol=atol)
    assert compared >= 0.99 * len(problems)


@pytest.mark.parametrize("problem", [p for p in MIXTURE[:20] if p.data.n > 1], ids=lambda p: p.name)
def test_residual_methods_agree_with_numpy(problem: Problem) -> None:
    """Away from a solution and with shifts, where every term counts."""
    rng = np.random.default_rng(12)
    sol, d = solve(problem), problem.data.full()
    names = ("x", "y", "z", "z_box", "s_e", "s_i", "s_box")
    point = {k: getattr(sol, k) + rng.standard_normal(getattr(sol, k).shape) for k in names}
    for name, low, high in (("z", d.l, d.u), ("z_box", d.lb, d.ub)):
        side = np.where(point[name] > 0.0, high, low)
        point[name] = np.where(np.isfinite(side), point[name], 0.0)
    expected = residuals(problem.data, **point)
    assert min(expected) > 0.1
    moved = dataclasses.replace(sol, **point)
    found = (moved.primal_residual(), moved.dual_residual(), moved.duality_gap())
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_gap_that_does_not_count_saves_factorisations() -> None:
    """With x near 1e5 the gap stays above 1e-9 by rounding, however many steps are taken."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        F, g = rng.standard_normal((4, 12)), 10.0 * rng.standard_normal(12)
        args = (F.T @ F + 1e-4 * np.eye(12), g)
        counted, free = (
            nbqp.solve_qp(
                *args, lb=-1e6, settings=nbqp.Settings(eps_abs=EPS, check_duality_gap=count)
            )
            for count in (True, False)
        )
        assert free.status is nbqp.Status.SOLVED
        assert max(free.primal_residual(), free.dual_residual()) <= 1.1 * EPS
        assert free.info.factorizations < counted.info.factorizations


def test_a_warm_start_at_the_solution_takes_no_step() -> None:
    problem = random_qp(np.random.default_rng(5), kind="strictly_convex", n=30, n_eq=5, n_in=20)
    cold = solve(problem)
    warm = nbqp.solve_qp(**problem.args, settings=SETTINGS, warm_start=cold)
    assert warm.status is nbqp.Status.SOLVED
    assert warm.info.iter == 0 < cold.info.iter


def test_multipliers_of_infinite_sides_and_absent_bounds_are_exactly_zero() -> None:
    sol = nbqp.solve_qp(
        np.eye(2), np.array([-3.0, 1.0]), C=np.eye(2), l=np.array([-np.inf, 0.0]), u=np.inf
    )
    np.testing.assert_allclose(sol.x, [3.0, 0.0], atol=1e-8)
    assert sol.z[0] == 0.0
    assert sol.z[1] < 0.0
    assert (sol.z_box == 0.0).all()


def test_a_primal_infeasible_problem_has_a_farkas_certificate() -> None:
    A = np.array([[1.0, 1.0], [1.0, 1.0]])
    b = np.array([1.0, 2.0])
    sol = nbqp.solve_qp(np.eye(2), np.zeros(2), A=A, b=b)
    assert sol.status is nbqp.Status.PRIMAL_INFEASIBLE
    assert sol.certificate is not None
    y = sol.certificate.y
    assert np.abs(A.T @ y).max() < 1e-9
    assert b @ y < -0.1


def test_an_unbounded_problem_has_a_descent_direction() -> None:
    g = np.array([-1.0, 0.0])
    sol = nbqp.solve_qp(None, g, A=np.array([[0.0, 1.0]]), b=np.ones(1), lb=0.0)
    assert sol.status is nbqp.Status.DUAL_INFEASIBLE
    assert sol.certificate is not None
    d = sol.certificate.x
    assert g @ d < -0.1
    assert abs(d[1]) < 1e-9
    assert d.min() >= -1e-9


def test_the_iteration_limit_is_a_status() -> None:
    sol = nbqp.solve_qp(**MIXTURE[3].args, settings=nbqp.Settings(eps_abs=1e-12, max_iter=1))
    assert sol.status is nbqp.Status.MAX_ITER_REACHED


@pytest.mark.parametrize("closest", [False, True])
@pytest.mark.parametrize("method", ["auto", "semismooth"])
def test_starts_that_are_far_off_end_no_worse_than_a_cold_one(method: str, closest: bool) -> None:
    rng = np.random.default_rng(13)
    settings = nbqp.Settings(method=method, primal_infeasibility_solving=closest)
    for _ in range(6):
        problem = random_qp(rng, kind="low_rank", n=12, n_eq=3, n_in=8)
        args = dict(problem.args)
        if closest:
            # Two rows that contradict each other.
            args["A"] = np.vstack([args["A"], args["A"][:1]])
            args["b"] = np.append(args["b"], args["b"][0] + 1.0)
        sizes = (12, len(args["b"]), 8, 12)
        cold = nbqp.solve_qp(**args, settings=settings)
        for size in (1.0, 1e4, 1e8):
            start = tuple(size * rng.standard_normal(m) for m in sizes)
            warm = nbqp.solve_qp(**args, settings=settings, warm_start=start)
            assert warm.status is cold.status
            np.testing.assert_allclose(warm.s_e, cold.s_e, atol=1e-6)


def test_updates_of_vectors_are_solved_like_new_problems() -> None:
    """The matrices, their scaling and their analysis are kept: not a bit of the solution differs."""
    rng = np.random.default_rng(12)
    problem = random_qp(rng, kind="strictly_convex", n=12, n_eq=3, n_in=8, scaling=1.0)
    data = {name: value for name, value in problem.args.items() if value is not None}
    solver = nbqp.Solver(**data, settings=SETTINGS)
    for name in ("g", "b", "l", "u", "lb", "ub"):
        data[name] = data[name] + 1e-3 * rng.random(np.shape(data[name])) * (
            1.0 if name in ("u", "ub") else -1.0
        )
        solver.update(**{name: data[name]})
        fresh = nbqp.solve_qp(**data, settings=SETTINGS)
        np.testing.assert_array_equal(solver.solve().x, fresh.x)
    with pytest.raises(nbqp.DataError, match="ub: expected numbers"):
        solver.update(g=np.zeros(12), ub=np.full(12, np.nan))
    np.testing.assert_array_equal(solver.solve().x, fresh.x)


def test_an_array_of_another_package_is_read() -> None:
    """The `size` of PyTorch's tensors is a method, and their dtype is none of NumPy's."""

    class Tensor:
        dtype = "torch.float64"

        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            return np.array(self.array, dtype=dtype)

        def size(self) -> tuple[int, ...]:
            return self.array.shape

    H, g, C = (Tensor(array) for array in (np.eye(2), np.zeros(2), np.ones((1, 2))))
    sol = nbqp.solve_qp(H, g, C=C, l=2.0, settings=SETTINGS)
    np.testing.assert_allclose(sol.x, [1.0, 1.0], atol=1e-8)


def test_an_update_of_a_matrix_keeps_vectors_as_they_were_given() -> None:
    """A scalar side stays one, whose gradient is a number, and what is done to an array later is no update."""
    g, C = np.array([1.0, -3.0]), np.eye(2)
    solver = nbqp.Solver(np.eye(2), g, C=C, u=1.0, lb=0.0, settings=SETTINGS)
    solver.update(g=g, lb=-1.0)
    g[:], C[:] = np.nan, np.nan
    solver.update(H=2.0 * np.eye(2))
    sol = solver.solve()
    np.testing.assert_allclose(sol.x, [-0.5, 1.0], atol=1e-8)
    gradients = nbqp.vjp(sol, dL_dx=np.array([1.0, 2.0]))
    assert float(gradients.dL_du) == pytest.approx(2.0)
    assert float(gradients.dL_dlb) == pytest.approx(0.0)
    assert gradients.dL_db is None
    assert gradients.dL_dl is None


def test_updates_solve_the_new_problem() -> None:
    rng = np.random.default_rng(11)
    first, second = (random_qp(rng, kind="strictly_convex", n=12, n_eq=3, n_in=8) for _ in range(2))
    solver = nbqp.Solver(**first.args, settings=SETTINGS)
    solver.solve()
    solver.update(**second.args)
    sol = solver.solve()
    assert max(residuals(second.data, sol.x, sol.y, sol.z, sol.z_box)) <= EPS
    np.testing.assert_allclose(sol.x, second.solution.x, atol=1e-6)
