"""Closest feasible QPs where shifts are small, multipliers are slow to settle, or a limit strikes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nbqp
from tests.core.infeasible import random_infeasible_mixture

SOLVED = nbqp.Status.SOLVED
SHIFTED = nbqp.Status.SOLVED_CLOSEST_PRIMAL_FEASIBLE


def closest(**settings: Any) -> nbqp.Settings:
    return nbqp.Settings(primal_infeasibility_solving=True, **settings)


def contradictory_lp(n: int, seed: int) -> dict[str, Any]:
    """Box-bounded LP; a third of the equalities and a sixth of the rows contradict others."""
    rng = np.random.default_rng(seed)
    m, p = n // 6, n // 3
    x0 = rng.standard_normal(n)
    A = rng.standard_normal((m, n))
    A = np.vstack([A, A[: m // 3]])
    b = A @ x0
    b[m:] += rng.standard_normal(m // 3)
    C = rng.standard_normal((p, n))
    C = np.vstack([C, 2.0 * C[: p // 6]])
    middle = C @ x0
    l, u = middle - rng.random(len(C)), middle + rng.random(len(C))
    u[p:] = 2.0 * l[: p // 6] - 1.0
    l[p:] = u[p:] - 1.0
    return dict(H=None, g=rng.standard_normal(n), A=A, b=b, C=C, l=l, u=u, lb=x0 - 1.0, ub=x0 + 1.0)


def interval(gap: float) -> dict[str, Any]:
    """x >= gap and x <= -gap, as rows."""
    C = np.ones((2, 1))
    return dict(
        H=np.eye(1), g=np.zeros(1), C=C, l=np.array([gap, -np.inf]), u=np.array([np.inf, -gap])
    )


@pytest.mark.large
@pytest.mark.parametrize("n", [60, 100, 150])
def test_multipliers_that_grew_on_rows_met_later_do_not_hold_up_the_end(n: int) -> None:
    for seed in range(8):
        args = contradictory_lp(n, seed)
        sol = nbqp.solve_qp(**args, settings=closest(eps_abs=1e-9))
        assert sol.status is SHIFTED, seed
        pull = args["A"].T @ sol.s_e + args["C"].T @ sol.s_i + sol.s_box
        assert np.abs(pull).max() <= 1.1e-9
        assert sol.info.factorizations <= 100


@pytest.mark.parametrize("eps", [1e-6, 1e-9])
def test_shifts_of_ten_times_the_accuracy_are_found(eps: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        n = int(rng.integers(3, 12))
        A = rng.standard_normal((1, n))
        L = rng.standard_normal((n, n))
        sol = nbqp.solve_qp(
            L @ L.T, rng.standard_normal(n), np.vstack([A, A]), np.array([1.0, 1.0 + 20.0 * eps]),
            settings=closest(eps_abs=eps),
        )  # fmt: skip
        assert sol.status is SHIFTED
        np.testing.assert_allclose(sol.s_e, [10.0 * eps, -10.0 * eps], rtol=0.0, atol=eps)


def test_nearly_feasible_rules_do_not_pass_for_infeasible_ones() -> None:
    """Equations of cond 1e4 that x >= 0 satisfies: small penalties leave large shifts at first."""
    rng = np.random.default_rng(3)
    A = rng.random((6, 8)) @ rng.random((8, 16)) + 1e-3 * rng.standard_normal((6, 16))
    b = A @ rng.random(16)
    for _ in range(10):
        sol = nbqp.solve_qp(None, rng.standard_normal(16), A, b, lb=0.0, ub=2.0, settings=closest())
        assert sol.status is SOLVED
        assert not np.any(sol.s_e)


@pytest.mark.parametrize("gap", [3e-8, 1e-3])
def test_small_shifts_have_the_gradients_of_large_ones(gap: float) -> None:
    """x = (l + u) / 2 and s_2 = (l - u) / 2: dx/dl + ds_2/dl = 1, dx/du + ds_2/du = 0."""
    sol = nbqp.solve_qp(**interval(gap), settings=closest())
    assert sol.status is SHIFTED
    grads = nbqp.vjp(sol, dL_dx=np.ones(1), dL_ds_i=np.array([0.0, 1.0]))
    np.testing.assert_allclose(grads.dL_dl, [1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(grads.dL_du, [0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("max_iter", [1, 3, 8, 12])
def test_the_iteration_limit_holds_and_leaves_no_shifts_behind(max_iter: int) -> None:
    for problem in list(random_infeasible_mixture(np.random.default_rng(9), 40)):
        sol = nbqp.solve_qp(**problem.args, settings=closest(eps_abs=1e-9, max_iter=max_iter))
        assert sol.info.iter <= max_iter
        assert sol.status is not SOLVED
        if sol.status is not SHIFTED:
            assert not any(np.any(s) for s in (sol.s_e, sol.s_i, sol.s_box))


def test_a_looser_relative_tolerance_does_not_fail() -> None:
    for problem in list(random_infeasible_mixture(np.random.default_rng(10), 60)):
        sol = nbqp.solve_qp(**problem.args, settings=closest(eps_abs=1e-6, eps_rel=1e-3))
        assert sol.status is SHIFTED, problem.name


def test_closest_samples_do_not_depend_on_their_neighbours() -> None:
    rng = np.random.default_rng(11)
    A = np.vstack([np.eye(3, 5), np.eye(3, 5)])
    g, b = rng.standard_normal((12, 5)), rng.standard_normal((12, 6))
    together = nbqp.solve_batch(np.eye(5), g, A, b, lb=-0.5, settings=closest(), threads=1)
    assert {status.name for status in together.status} == {SHIFTED.name}
    for k in range(12):
        alone = nbqp.solve_qp(np.eye(5), g[k], A, b[k], lb=-0.5, settings=closest())
        for name in ("x", "y", "z_box", "s_e", "s_box"):
            np.testing.assert_array_equal(getattr(together, name)[k], getattr(alone, name))
