"""nbqp called by qpsolvers, held against its residuals, its problems and its other solvers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import qpsolvers
import qpsolvers.problems
import scipy.sparse as sp

import nbqp
from nbqp.qpsolvers import register
from tests.core.oracles import Data
from tests.core.strategies import Problem, random_mixture, random_qp

RNG = np.random.default_rng(41)
MIXTURE = list(random_mixture(RNG, 16))
KINDS = [
    random_qp(RNG, kind="strictly_convex", n=12, n_in=9, name="qp"),
    random_qp(RNG, kind="lp", n=12, n_in=9, name="lp"),
    random_qp(RNG, n=12, n_eq=0, n_in=0, bounds=1.0, name="bounds"),
    random_qp(RNG, n=12, n_eq=0, n_in=9, bounds=0.0, name="rows"),
    random_qp(RNG, n=12, n_eq=4, n_in=0, bounds=0.0, name="equations"),
    random_qp(RNG, n=12, n_in=9, fixed=2, name="fixed"),
]
PUBLISHED: list[Callable[[], tuple[qpsolvers.Problem, qpsolvers.Solution]]] = [
    qpsolvers.problems.get_qpsut01,
    qpsolvers.problems.get_qpsut02,
    qpsolvers.problems.get_qpsut03,
    qpsolvers.problems.get_qpsut04,
    qpsolvers.problems.get_qpsut05,
    qpsolvers.problems.get_qptest,
    qpsolvers.problems.get_qpgurdu,
    qpsolvers.problems.get_qpgurabs,
    qpsolvers.problems.get_qpgureq,
]


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


def one_sided(data: Data, sparse: bool) -> qpsolvers.Problem:
    """The same QP with Gx <= h: upper sides, then lower ones."""
    d = data.full()
    upper, lower = np.isfinite(d.u), np.isfinite(d.l)
    G, h = np.vstack([d.C[upper], -d.C[lower]]), np.concatenate([d.u[upper], -d.l[lower]])
    form = sp.csc_matrix if sparse else np.asarray
    rows = {"G": form(G), "h": h} if len(h) else {}
    equations = {"A": form(d.A), "b": d.b} if len(d.b) else {}
    bounds = {name: side for name in ("lb", "ub") if np.isfinite(side := getattr(d, name)).any()}
    return qpsolvers.Problem(form(d.H), d.g, **rows, **equations, **bounds)


@pytest.mark.parametrize("problem", [*KINDS, *MIXTURE], ids=lambda p: p.name)
@pytest.mark.parametrize("sparse", [False, True])
def test_residuals_and_another_solver_confirm_the_solution(problem: Problem, sparse: bool) -> None:
    given = one_sided(problem.data, sparse)
    solution = qpsolvers.solve_problem(given, "nbqp", eps_abs=1e-9)
    assert solution.found
    assert solution.is_optimal(2e-9)
    assert solution.z.shape == (0 if given.h is None else len(given.h),)
    assert (solution.z >= 0.0).all()
    if given.lb is not None:
        assert (solution.z_box[np.isinf(given.lb)] >= 0.0).all()
    if given.ub is not None:
        assert (solution.z_box[np.isinf(given.ub)] <= 0.0).all()
    assert min(solution.build_time, solution.solve_time) > 0.0
    planted = problem.solution.objective
    assert solution.obj == pytest.approx(planted, rel=1e-6, abs=1e-6)
    if problem in KINDS:
        other = qpsolvers.solve_problem(one_sided(problem.data, True), "clarabel")
        np.testing.assert_allclose(solution.x, other.x, atol=1e-4)


@pytest.mark.parametrize("get", PUBLISHED, ids=lambda f: f.__name__)
def test_published_problems_have_their_published_solutions(get: Any) -> None:
    # The residuals judge multipliers, some of which are not unique.
    problem, expected = get()
    solution = qpsolvers.solve_problem(problem, "nbqp", eps_abs=1e-9)
    assert solution.is_optimal(1e-8)
    if expected.x is not None:
        np.testing.assert_allclose(solution.x, expected.x, atol=1e-5)


def test_the_face_of_functions_gives_the_point() -> None:
    P, q = np.eye(2), np.array([-3.0, 1.0])
    G, h, lb, ub = np.ones(2), np.array([1.0]), np.array([-0.5, -2.0]), np.full(2, np.inf)
    x = qpsolvers.solve_qp(P, q, G, h, lb=lb, ub=ub, solver="nbqp")
    assert x is not None
    np.testing.assert_allclose(x, [2.5, -1.5], atol=1e-7)
    fitted = qpsolvers.solve_ls(np.eye(2), np.array([2.0, 2.0]), G, h, solver="nbqp")
    np.testing.assert_allclose(fitted, [0.5, 0.5], atol=1e-7)


def test_an_infeasible_problem_is_not_found() -> None:
    args = np.eye(2), np.ones(2), np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([-1.0, -1.0])
    assert qpsolvers.solve_qp(*args, solver="nbqp") is None
    solution = qpsolvers.solve_problem(qpsolvers.Problem(*args), "nbqp")
    assert solution.found is False
    assert solution.x is None
    assert solution.primal_residual() == np.inf
    assert solution.extras["solution"].status is nbqp.Status.PRIMAL_INFEASIBLE
    closest = qpsolvers.solve_problem(
        qpsolvers.Problem(*args), "nbqp", primal_infeasibility_solving=True
    )
    assert closest.found is False
    np.testing.assert_allclose(closest.extras["solution"].s_i, [1.0, 1.0], atol=1e-7)


def test_an_unbounded_problem_is_not_found() -> None:
    problem = qpsolvers.Problem(np.zeros((2, 2)), np.array([-1.0, 0.0]), lb=np.zeros(2))
    solution = qpsolvers.solve_problem(problem, "nbqp")
    assert solution.found is False
    assert solution.extras["solution"].status is nbqp.Status.DUAL_INFEASIBLE


def test_infinite_rows_do_not_count() -> None:
    P, q, G = np.eye(2), np.array([-3.0, 0.0]), np.eye(2)
    solution = qpsolvers.solve_problem(
        qpsolvers.Problem(P, q, G, np.array([1.0, np.inf])), solver="nbqp"
    )
    np.testing.assert_allclose(solution.x, [1.0, 0.0], atol=1e-7)
    np.testing.assert_allclose(solution.z, [2.0, 0.0], atol=1e-7)


def test_initvals_are_where_it_starts() -> None:
    problem = one_sided(random_qp(np.random.default_rng(42), n=20, n_in=0, active=0.0).data, False)
    cold = qpsolvers.solve_problem(problem, "nbqp")
    warm = qpsolvers.solve_problem(problem, "nbqp", initvals=cold.x)
    assert warm.found
    assert warm.extras["solution"].info.iter < cold.extras["solution"].info.iter
    np.testing.assert_allclose(warm.x, cold.x, atol=1e-6)


def test_keywords_are_settings(capsys: pytest.CaptureFixture[str]) -> None:
    problem = one_sided(KINDS[0].data, False)
    solution = qpsolvers.solve_problem(problem, "nbqp", verbose=True, eps_abs=1e-5, max_iter=500)
    assert "SOLVED in" in capsys.readouterr().out
    used = solution.extras["solution"].settings
    assert used == nbqp.Settings(eps_abs=1e-5, max_iter=500, verbose=True)
    qpsolvers.solve_problem(problem, "nbqp")
    assert capsys.readouterr().out == ""
    assert qpsolvers.solve_problem(problem, "nbqp", max_iter=1).found is False


def test_the_solution_can_be_differentiated() -> None:
    problem = qpsolvers.Problem(np.eye(2), np.array([-1.0, 1.0]), lb=np.zeros(2))
    solution = qpsolvers.solve_problem(problem, "nbqp")
    grads = nbqp.vjp(solution.extras["solution"], dL_dx=np.ones(2))
    np.testing.assert_allclose(grads.dL_dg, [-1.0, 0.0], atol=1e-9)


@pytest.mark.parametrize(
    ("P", "options", "error", "message"),
    [
        (np.eye(2), {"tolerance": 1e-6}, qpsolvers.ParamError, "tolerance"),
        (np.eye(2), {"eps_abs": -1.0}, qpsolvers.ParamError, "Settings.eps_abs: expected"),
        (np.eye(2), {"initvals": np.ones(3)}, qpsolvers.ProblemError, "warm_start: expected x"),
        (-np.eye(2), {}, qpsolvers.ProblemError, "H: expected a positive semidefinite matrix"),
        (np.triu(np.ones((2, 2))), {}, qpsolvers.ProblemError, "H: expected a symmetric matrix"),
        (np.full((2, 2), np.nan), {}, qpsolvers.ProblemError, "H: expected finite entries"),
    ],
)
def test_errors_are_those_of_qpsolvers(
    P: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        qpsolvers.solve_qp(P, np.ones(2), solver="nbqp", **options)


def test_registering_twice_is_registering_once() -> None:
    register()
    for names in (
        qpsolvers.available_solvers,
        qpsolvers.dense_solvers,
        qpsolvers.sparse_solvers,
    ):
        assert names.count("nbqp") == 1


def test_nbqp_alone_does_not_import_qpsolvers() -> None:
    code = "import nbqp, sys; raise SystemExit('qpsolvers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
