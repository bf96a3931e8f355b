"""What other differentiable QP layers got wrong on feasible problems; each is a case of its own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import nbqp
from tests.core.oracles import Data, adjoint_oracle, central_differences, linear_loss
from tests.core.strategies import random_qp

EPS = nbqp.Settings(eps_abs=1e-10)


def numeric(data: Data, cotangent: dict[str, np.ndarray], name: str) -> np.ndarray:
    shape = getattr(data.full(), name).shape
    slopes = central_differences(
        lambda d: nbqp.solve_qp(**d.args(), settings=EPS),
        data,
        linear_loss(cotangent),
        name,
        list(np.ndindex(shape)),
        h=1e-4,
    )
    return slopes.reshape(shape)


def five_rows(scales: np.ndarray) -> Data:
    """Projection onto C x <= u with all five rows active, scaled by row."""
    rng = np.random.default_rng(0)
    C = rng.standard_normal((5, 8))
    x, z = rng.standard_normal(8), rng.random(5) + 0.5
    return Data(H=np.eye(8), g=-x - C.T @ z, C=scales[:, None] * C, u=scales * (C @ x))


@pytest.mark.parametrize("decades", [0.0, 3.0])
def test_a_loss_on_active_multipliers_is_scaled_back_once(decades: float) -> None:
    """ProxSuite: 6% error with five constraints, 2e6 relative with badly scaled ones."""
    data = five_rows(10.0 ** np.linspace(-decades, decades, 5))
    sol = nbqp.solve_qp(**data.args(), settings=EPS)
    cotangent = {"dL_dz": np.arange(1.0, 6.0)}
    grads = nbqp.vjp(sol, **cotangent)
    expected = adjoint_oracle(data, sol, cotangent, rcond=1e-14)
    for name in ("dL_dg", "dL_dC", "dL_du"):
        np.testing.assert_allclose(getattr(grads, name), expected[name], rtol=1e-7, atol=1e-9)


def test_a_loss_on_an_inactive_multiplier_has_no_gradient() -> None:
    """ProxSuite: leaks into dL/dC."""
    sol = nbqp.solve_qp(np.eye(2), np.array([-1.0, 0.0]), C=np.eye(2), u=np.array([0.5, 9.0]))
    grads = nbqp.vjp(sol, dL_dz=np.array([0.0, 1.4]))
    for name in ("dL_dH", "dL_dg", "dL_dC", "dL_du"):
        np.testing.assert_array_equal(getattr(grads, name), 0.0)


def test_box_constraints_have_gradients() -> None:
    """ProxSuite: segmentation fault."""
    data = Data(H=np.eye(2), g=np.array([-2.0, 2.0]), lb=np.zeros(2), ub=np.ones(2))
    grads = nbqp.vjp(nbqp.solve_qp(**data.args(), settings=EPS), dL_dx=np.array([3.0, 5.0]))
    np.testing.assert_allclose(grads.dL_dub, [3.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(grads.dL_dlb, [0.0, 5.0], atol=1e-12)
    np.testing.assert_allclose(grads.dL_dg, 0.0, atol=1e-12)


def test_gradients_carry_no_bias_of_the_regularisation() -> None:
    """ProxSuite: refinement against the regularised matrix leaves an error of 1e-5."""
    rng = np.random.default_rng(1)
    data = random_qp(rng, kind="strictly_convex", n=30, n_eq=8, n_in=20, active=0.3).data
    sol = nbqp.solve_qp(**data.args(), settings=EPS)
    cotangent = {"dL_dx": np.ones(30)}
    expected = adjoint_oracle(data, sol, cotangent, tol=1e-8, rcond=1e-14)
    grads = nbqp.vjp(sol, **cotangent)
    for name in ("dL_dg", "dL_db", "dL_dA"):
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(getattr(grads, name), expected[name], atol=1e-10 * scale)


def test_an_lp_with_a_face_of_solutions_has_a_bounded_gradient() -> None:
    """ProxSuite: dL/dg = 1 / (2 rho) = 5e5."""
    data = Data(g=np.zeros(2), A=np.ones((1, 2)), b=np.ones(1), lb=np.zeros(2))
    sol = nbqp.solve_qp(**data.args(), settings=EPS)
    cotangent = {"dL_dx": np.array([1.0, 0.0])}
    grads = nbqp.vjp(sol, **cotangent)
    expected = adjoint_oracle(data, sol, cotangent)
    np.testing.assert_allclose(grads.dL_dg, expected["dL_dg"], atol=1e-9)
    assert np.abs(grads.dL_dg).max() < 10.0


@pytest.mark.parametrize(
    ("problem", "settings", "status"),
    [
        (
            {"H": np.eye(1), "g": np.zeros(1), "C": np.ones((1, 1)), "l": [1.0], "ub": 0.0},
            nbqp.Settings(),
            nbqp.Status.PRIMAL_INFEASIBLE,
        ),
        (
            {"H": np.eye(3), "g": np.array([1.0, -2.0, 3.0]), "lb": 0.0, "ub": 1.0},
            nbqp.Settings(eps_abs=1e-14, max_iter=1),
            nbqp.Status.MAX_ITER_REACHED,
        ),
    ],
)
def test_an_unsolved_problem_has_no_gradient(
    problem: dict[str, object], settings: nbqp.Settings, status: nbqp.Status
) -> None:
    """ProxSuite: gradients without an error, at a point that may be a certificate."""
    sol = nbqp.solve_qp(**problem, settings=settings)  # type: ignore[arg-type]
    assert sol.status is status
    with pytest.raises(nbqp.UnsolvedError, match=status.name):
        nbqp.vjp(sol, dL_dx=np.ones_like(sol.x))


def true_rules() -> np.ndarray:
    """The 64 rules of 4x4 Sudoku, of rank 40: cells, rows, columns and blocks, each digit once."""
    rules = []
    cell = np.arange(64).reshape(4, 4, 4)
    for a, b in itertools.product(range(4), repeat=2):
        block = cell[2 * (a // 2) : 2 * (a // 2) + 2, 2 * (a % 2) : 2 * (a % 2) + 2, b]
        for group in (cell[a, b], cell[a, :, b], cell[:, a, b], block.ravel()):
            row = np.zeros(64)
            row[group] = 1.0
            rules.append(row)
    return np.array(rules)


def test_the_lp_with_the_true_rules_of_sudoku_is_never_called_infeasible() -> None:
    """ProxSuite with its layer's settings: 166 of 300 falsely primal infeasible."""
    rng = np.random.default_rng(2)
    g = -(rng.random((300, 64)) < 0.1).astype(float)
    A = true_rules()
    sol = nbqp.solve_batch(None, g, A, np.ones(64), lb=0.0)
    assert all(status is nbqp.Status.SOLVED for status in sol.status)
    assert np.abs(A @ sol.x.T - 1.0).max() < 1e-8


def test_a_row_whose_sides_coincide_shares_its_gradient_evenly() -> None:
    """ProxSuite: all of it on one side, by the sign of the multiplier."""
    data = Data(
        H=np.eye(2), g=np.array([-1.0, 0.5]), C=np.array([[1.0, 1.0]]), l=np.ones(1), u=np.ones(1)
    )
    grads = nbqp.vjp(nbqp.solve_qp(**data.args(), settings=EPS), dL_dx=np.array([1.0, 2.0]))
    equality = Data(H=data.H, g=data.g, A=data.C, b=data.l)
    total = nbqp.vjp(nbqp.solve_qp(**equality.args(), settings=EPS), dL_dx=np.array([1.0, 2.0]))
    np.testing.assert_allclose(grads.dL_dl, grads.dL_du)
    np.testing.assert_allclose(grads.dL_dl + grads.dL_du, total.dL_db)


def test_shared_data_get_the_sum_over_the_batch_not_the_mean() -> None:
    """ProxSuite in one of its modes, osqp and cvxpylayers once: the mean."""
    g = np.zeros((7, 2))
    sol = nbqp.solve_batch(np.eye(2), g, np.ones((1, 2)), np.ones(1))
    grads = nbqp.vjp(sol, dL_dx=np.ones((7, 2)))
    np.testing.assert_allclose(grads.dL_db, [7.0])


def test_gradients_of_lower_sides_are_there_and_in_double_precision() -> None:
    """ProxSuite: float32 buffers, and lower rows dropped."""
    data = Data(H=np.eye(2), g=np.array([2.0, 1.0]), C=np.array([[1.0, 0.5]]), l=np.array([0.3]))
    cotangent = {"dL_dx": np.array([1.0, -2.0])}
    grads = nbqp.vjp(nbqp.solve_qp(**data.args(), settings=EPS), **cotangent)
    assert grads.dL_dC.dtype == np.float64
    np.testing.assert_allclose(grads.dL_dC, numeric(data, cotangent, "C"), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(grads.dL_dl, numeric(data, cotangent, "l"), rtol=1e-8, atol=1e-8)


def test_batched_rows_without_equalities() -> None:
    """ProxSuite: batched C crashes, no equalities raises TypeError."""
    rng = np.random.default_rng(3)
    C = rng.standard_normal((4, 3, 5))
    sol = nbqp.solve_batch(np.eye(5), rng.standard_normal((4, 5)), C=C, u=np.zeros(3))
    grads = nbqp.vjp(sol, dL_dx=np.ones((4, 5)))
    assert grads.dL_dC.shape == C.shape
    assert grads.dL_dA is None


def test_one_infeasible_sample_leaves_the_others_alone() -> None:
    """diffcp, cvxpylayers: one infeasible item ends the batch."""
    b = np.array([[1.0, 1.0], [1.0, 2.0], [3.0, 3.0]])
    sol = nbqp.solve_batch(np.eye(2), np.zeros(2), np.ones((2, 2)), b)
    assert [s.name for s in sol.status] == ["SOLVED", "PRIMAL_INFEASIBLE", "SOLVED"]
    alone = nbqp.solve_qp(np.eye(2), np.zeros(2), np.ones((2, 2)), b[2])
    np.testing.assert_array_equal(sol.x[2], alone.x)
