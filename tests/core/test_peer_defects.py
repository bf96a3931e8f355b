"""What other differentiable QP layers got wrong, feasible problems first; each is a case of its own.

Those that show in training are in tests/layer/test_peer_defects.py.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import nbqp
from tests.core.derivatives import adjoint_oracle, assert_matches, random_cotangents
from tests.core.differences import central_differences, linear_loss
from tests.core.infeasible import random_infeasible_qp
from tests.core.oracles import Data
from tests.core.strategies import random_qp

EPS = nbqp.Settings(eps_abs=1e-10)
CLOSEST = nbqp.Settings(eps_abs=1e-10, primal_infeasibility_solving=True)
SHIFTED = nbqp.Status.SOLVED_CLOSEST_PRIMAL_FEASIBLE


def numeric(
    data: Data, cotangent: dict[str, np.ndarray], name: str, settings: nbqp.Settings = EPS
) -> np.ndarray:
    shape = getattr(data.full(), name).shape
    slopes = central_differences(
        lambda d: nbqp.solve_qp(**d.args(), settings=settings),
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
    sol = nbqp.solve_qp(**problem, settings=settings)
    assert sol.status is status
    with pytest.raises(nbqp.UnsolvedError, match=status.name):
        nbqp.vjp(sol, dL_dx=np.ones_like(sol.x))


def test_a_certificate_does_not_pose_as_the_solution() -> None:
    """ProxSuite: x is overwritten by the certificate and returned."""
    A, g = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0.0, -1.0])
    for settings, status in ((EPS, "PRIMAL_INFEASIBLE"), (CLOSEST, "DUAL_INFEASIBLE")):
        sol = nbqp.solve_qp(None, g, A, [0.0, 1.0], settings=settings)
        assert sol.status.name == status
        assert sol.certificate is not None
        proof = np.concatenate([sol.certificate.x, sol.certificate.y])
        assert np.abs(proof).max() == pytest.approx(1.0)
        assert not np.allclose(np.concatenate([sol.x, sol.y]), proof)
        # The best iterate: halfway between the two rows, or on the way there.
        assert -1e-6 <= sol.x[0] <= 1.0 + 1e-6


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
    g, C, w = (rng.standard_normal(shape) for shape in ((4, 5), (4, 3, 5), (4, 5)))
    grads = nbqp.vjp(nbqp.solve_batch(np.eye(5), g, C=C, u=np.zeros(3), settings=EPS), dL_dx=w)
    assert grads.dL_dA is None
    for k in range(4):
        one = nbqp.solve_qp(np.eye(5), g[k], C=C[k], u=np.zeros(3), settings=EPS)
        assert (one.z > 0.0).any()
        expected = nbqp.vjp(one, dL_dx=w[k]).dL_dC
        np.testing.assert_allclose(grads.dL_dC[k], expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("method", ["auto", "semismooth"])
def test_calls_side_by_side_do_not_share_a_number_of_threads(method: str) -> None:
    """ProxSuite: one flag of the module says whether a call is parallel."""
    rng = np.random.default_rng(4)
    g, A = rng.standard_normal((64, 10)), rng.random((3, 10))
    settings = nbqp.Settings(method=method)

    def solve(threads: int) -> np.ndarray:
        sol = nbqp.solve_batch(np.eye(10), g, A, A.sum(axis=1), settings=settings, threads=threads)
        return nbqp.vjp(sol, dL_dx=np.ones_like(g)).dL_dg

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(solve, [1, 2, 3, 1, 2, 3, 1, 2]):
            np.testing.assert_array_equal(found, solve(1))


def test_differences_are_taken_about_one_point_and_in_one_entry() -> None:
    """ProxSuite's own tests: the base point is reset in the loop, and no inequality is active."""
    data = five_rows(np.ones(5))
    seen: list[Data] = []

    def solve(moved: Data) -> nbqp.Solution:
        seen.append(moved)
        return nbqp.solve_qp(**moved.args(), settings=EPS)

    central_differences(solve, data, lambda sol: float(sol.x[0]), "C", [(0, 1), (2, 3)], h=1e-3)
    assert len(seen) == 8
    for moved in seen:
        assert moved.C is not None
        assert data.C is not None
        assert np.count_nonzero(moved.C - data.C) == 1
    assert (nbqp.solve_qp(**data.args(), settings=EPS).z > 0.4).all()


@pytest.mark.parametrize("last", [1.0, 2.0], ids=["feasible", "infeasible"])
def test_both_modes_sum_the_gradients_of_shared_data(last: float) -> None:
    """ProxSuite: the mean over the batch in one mode, the sum in the other."""
    g, A, b = np.array([1.0, -2.0, 0.5]), np.ones((2, 3)), np.array([1.0, last])
    one = nbqp.solve_qp(np.eye(3), g, A, b, settings=CLOSEST)
    batch = nbqp.solve_batch(np.eye(3), np.stack([g] * 5), A, b, settings=CLOSEST)
    assert (one.status is SHIFTED) == (last != 1.0)
    w, v = np.array([1.0, 2.0, 3.0]), np.array([0.5, -0.5])
    single = nbqp.vjp(one, dL_dx=w, dL_ds_e=v)
    grads = nbqp.vjp(batch, dL_dx=np.stack([w] * 5), dL_ds_e=np.stack([v] * 5))
    for name in ("dL_dH", "dL_dA", "dL_db"):
        expected = 5.0 * getattr(single, name)
        np.testing.assert_allclose(getattr(grads, name), expected, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("contradiction", ["equality", "rows", "overdetermined"])
@pytest.mark.parametrize("seed", range(3))
def test_the_backward_pass_of_an_infeasible_qp_is_as_accurate_as_any(
    contradiction: str, seed: int
) -> None:
    """ProxSuite: it stops after ten iterations at 1e-4, whatever came of them."""
    problem = random_infeasible_qp(
        np.random.default_rng([14, seed]),
        contradiction=contradiction,
        scaling=0.5,
    )
    sol = nbqp.solve_qp(**problem.args, settings=CLOSEST)
    assert sol.status is SHIFTED
    rng = np.random.default_rng(seed)
    given = random_cotangents(rng, sol, ("x", "s_e", "s_i"))
    grads = nbqp.vjp(sol, **given)
    assert_matches(grads, adjoint_oracle(problem.data, sol, given, rcond=1e-13), atol=1e-8)


def test_feasible_and_infeasible_samples_share_a_batch() -> None:
    """ProxSuite: mean over the batch in one mode, sum in the other; float32; batched C crashes."""
    rng = np.random.default_rng(8)
    C = np.stack([np.vstack([row, -row]) for row in rng.standard_normal((6, 5))])
    u = np.where(np.arange(6)[:, None] % 2 == 0, 1.0, -0.5) * np.ones((6, 2))
    g = rng.standard_normal((6, 5))
    batch = nbqp.solve_batch(np.eye(5), g, C=C, u=u, settings=CLOSEST)
    assert [s is SHIFTED for s in batch.status] == [False, True] * 3
    given = {f"dL_d{k}": rng.standard_normal(getattr(batch, k).shape) for k in ("x", "s_i")}
    grads = nbqp.vjp(batch, **given)
    assert grads.dL_dC.dtype == np.float64
    total = np.zeros((5, 5))
    for k in range(6):
        one = nbqp.solve_qp(np.eye(5), g[k], C=C[k], u=u[k], settings=CLOSEST)
        np.testing.assert_allclose(batch.x[k], one.x, atol=1e-12)
        single = nbqp.vjp(one, **{name: value[k] for name, value in given.items()})
        np.testing.assert_allclose(grads.dL_dC[k], single.dL_dC, atol=1e-9)
        np.testing.assert_allclose(grads.dL_du[k], single.dL_du, atol=1e-9)
        total += single.dL_dH
    np.testing.assert_allclose(grads.dL_dH, total, atol=1e-9)


def test_lower_sides_and_masked_shifts() -> None:
    """ProxSuite: the gradient of lower rows is dropped, and a loss on s of inactive rows leaks."""
    data = Data(
        H=np.eye(2),
        g=np.array([0.3, -0.2]),
        C=np.array([[1.0, 0.5], [-1.0, -0.5], [0.0, 1.0]]),
        l=np.array([1.0, 0.5, -9.0]),
    )
    sol = nbqp.solve_qp(**data.args(), settings=CLOSEST)
    assert sol.status is SHIFTED
    given = {"dL_dx": np.array([1.0, 2.0]), "dL_ds_i": np.array([0.5, -1.0, 3.0])}
    grads = nbqp.vjp(sol, **given)
    assert (grads.dL_dC[2] == 0.0).all()
    assert grads.dL_dC.dtype == np.float64
    np.testing.assert_allclose(grads.dL_dl, numeric(data, given, "l", CLOSEST), atol=1e-7)
    parallel = adjoint_oracle(data, sol, given, tol=1e-7)
    np.testing.assert_allclose(grads.dL_dC, parallel["dL_dC"], atol=1e-7)
