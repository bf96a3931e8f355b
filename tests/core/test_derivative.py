"""Derivatives against central differences and against the dense least-norm oracle."""

from __future__ import annotations

import dataclasses
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
from tests.core.oracles import Data
from tests.core.strategies import Problem, differentiable_qps, random_mixture

TIGHT = nbqp.Settings(eps_abs=1e-11)
EPS = nbqp.Settings(eps_abs=1e-9)


REGULAR = list(differentiable_qps(np.random.default_rng(17), 9))
MIXTURE = list(random_mixture(np.random.default_rng(23), 40))


@pytest.mark.parametrize("problem", REGULAR, ids=lambda p: p.name)
def test_both_sides_of_rows_and_of_bounds_are_active_in_the_problems_below(
    problem: Problem,
) -> None:
    """Seen from the solution of nbqp: sides that hold, with multipliers clear of zero."""
    sol, d = nbqp.solve_qp(**problem.args, settings=TIGHT), problem.data.full()
    for value, low, high, z in ((d.C @ sol.x, d.l, d.u, sol.z), (sol.x, d.lb, d.ub, sol.z_box)):
        assert (np.abs(value - high)[z > 0.05] < 1e-9).any()
        assert (np.abs(value - low)[z < -0.05] < 1e-9).any()
        assert (np.abs(z[z != 0.0]) > 0.05).all()
    assert len(sol.y) == 2


@pytest.mark.parametrize("problem", REGULAR, ids=lambda p: p.name)
@pytest.mark.parametrize("part", ["x", "y", "z", "z_box"])
def test_gradients_match_central_differences_for_all_nine_data(problem: Problem, part: str) -> None:
    rng = np.random.default_rng(2)
    sol = nbqp.solve_qp(**problem.args, settings=TIGHT)
    assert sol.status is nbqp.Status.SOLVED
    cotangent = {f"dL_d{part}": rng.standard_normal(getattr(sol, part).shape)}

    def solve(data: Data) -> nbqp.Solution:
        return nbqp.solve_qp(**data.args(), settings=TIGHT)

    grads = nbqp.vjp(sol, **cotangent)
    assert_gradients(grads, solve, problem.data, cotangent, rng, h=2e-4)


@pytest.mark.parametrize("problem", MIXTURE, ids=lambda p: p.name)
def test_gradients_match_the_least_norm_oracle_also_where_the_matrix_is_singular(
    problem: Problem,
) -> None:
    sol = nbqp.solve_qp(**problem.args, settings=EPS)
    given = random_cotangents(np.random.default_rng(3), sol)
    grads = nbqp.vjp(sol, **given)
    rcond = 1e-12 if problem.regular else 1e-10
    # A side that holds weakly is met to the square root of the gap only: both are elements then.
    readings = [
        adjoint_oracle(problem.data, sol, given, tol=tol, rcond=rcond) for tol in (1e-8, 3e-7)
    ]
    meant = min(readings, key=lambda expected: np.abs(expected["dL_dg"] - grads.dL_dg).max())
    assert_matches(grads, meant, atol=1e-6)


def clear_vertices(cost: float, seed: int) -> tuple[Data, dict[str, Any]]:
    """A QP with objectives of the size of `cost`, all n sides that hold clear of those that do not.

    And its derivatives for the sum of x, by the inverse of the active rows: x does not move with g.
    """
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(2, 30)), int(rng.integers(2, 30))
    M = rng.standard_normal((n, n)) / n
    C, x = rng.standard_normal((m, n)), rng.standard_normal(n)
    held = rng.choice(m + n, size=n, replace=False)
    rows = np.vstack([C, np.eye(n)])
    if np.linalg.cond(rows[held]) > 1e2:
        return clear_vertices(cost, seed + 1000)
    slack = rng.uniform(0.1, 1.0, m + n)
    slack[held] = 0.0
    sides = rows @ x + slack
    z = np.zeros(m + n)
    z[held] = rng.uniform(0.1, 1.0, n)
    H = M @ M.T
    data = Data(H=cost * H, g=-cost * (H @ x + rows.T @ z), C=C, u=sides[:m], ub=sides[m:])
    moved = np.zeros(m + n)
    moved[held] = np.linalg.solve(rows[held].T, np.ones(n))
    return data, {"dL_dg": np.zeros(n), "dL_du": moved[:m], "dL_dub": moved[m:]}


@pytest.mark.parametrize(
    ("cost", "eps"),
    [(1.0, 1e-3), (1.0, 1e-5), (1.0, 1e-8), (0.1, 1e-4), (1e-2, 1e-5), (1e-3, 1e-6), (1e-3, 1e-8)],
)
def test_a_loose_tolerance_keeps_the_active_set_that_is_clear_of_it(
    cost: float, eps: float
) -> None:
    """A slack may be larger than its multiplier in the user's units, and still be the one that vanishes."""
    for seed in range(40):
        data, expected = clear_vertices(cost, seed)
        sol = nbqp.solve_qp(**data.args(), settings=nbqp.Settings(eps_abs=eps))
        assert sol.status is nbqp.Status.SOLVED
        assert_matches(nbqp.vjp(sol, dL_dx=np.ones(data.n)), expected, atol=1e-6)


def test_a_warm_start_leaves_no_multiplier_on_a_row_that_is_slack() -> None:
    """Within the tolerance it would be a solution, and its row active: a gradient of 0."""
    settings = nbqp.Settings(eps_abs=1e-4)
    held = nbqp.solve_qp(np.eye(1), np.array([-3e-5]), ub=np.zeros(1), settings=settings)
    sol = nbqp.solve_qp(
        np.eye(1), np.zeros(1), ub=np.array([0.3]), settings=settings, warm_start=held
    )
    assert sol.z_box[0] == 0.0
    assert nbqp.vjp(sol, dL_dx=np.ones(1)).dL_dg[0] == pytest.approx(-1.0)


@pytest.mark.parametrize("problem", MIXTURE[:20], ids=lambda p: p.name)
def test_directional_derivatives_match_the_oracle_and_the_adjoint(problem: Problem) -> None:
    rng = np.random.default_rng(4)
    sol = nbqp.solve_qp(**problem.data.args(), settings=EPS)
    given, moved = random_cotangents(rng, sol), random_tangents(rng, problem.data)
    grads, forward = nbqp.vjp(sol, **given), nbqp.jvp(sol, **moved)
    expected = jvp_oracle(
        problem.data, sol, moved, tol=1e-8, rcond=1e-12 if problem.regular else 1e-10
    )
    assert_matches(forward, {k: expected[k] for k in ("dx", "dy", "dz", "dz_box")}, atol=1e-6)
    # A least-squares solution carries the condition number of the system, up to 1 / rcond.
    assert_adjoint(grads, forward, given, moved, atol=1e-10 if problem.regular else 1e-6)


def test_a_batch_sums_the_gradients_of_what_it_shares() -> None:
    """ProxSuite in one of its modes, osqp and cvxpylayers once: the mean."""
    rng = np.random.default_rng(5)
    A, C, g = rng.random((3, 8)), rng.standard_normal((4, 8)), rng.standard_normal((11, 8))
    b, u = A @ rng.random(8), np.full(4, 1.0)
    H = np.diag(rng.random(8) + 0.5)
    batch = nbqp.solve_batch(H, g, A, b, C, None, u, 0.0, settings=EPS)
    given = random_cotangents(rng, batch)
    grads = nbqp.vjp(batch, **given)
    total = {name: 0.0 for name in ("H", "A", "b", "C", "u", "lb")}
    for k in range(11):
        one = nbqp.solve_qp(H, g[k], A, b, C, None, u, 0.0, settings=EPS)
        single = nbqp.vjp(one, **{name: value[k] for name, value in given.items()})
        np.testing.assert_allclose(grads.dL_dg[k], single.dL_dg, atol=1e-7)
        for name in total:
            total[name] = total[name] + getattr(single, f"dL_d{name}")
    for name, value in total.items():
        np.testing.assert_allclose(getattr(grads, f"dL_d{name}"), value, atol=1e-6, err_msg=name)
    assert grads.dL_dl is None
    assert grads.dL_dub is None
    assert np.ndim(grads.dL_dlb) == 0


def test_batched_matrices_get_a_gradient_a_sample() -> None:
    rng = np.random.default_rng(6)
    A, C, g = rng.random((5, 2, 6)), rng.standard_normal((5, 3, 6)), rng.standard_normal((5, 6))
    H = np.stack([np.diag(rng.random(6) + 0.5) for _ in range(5)])
    b, u = np.ones((5, 2)), np.ones(3)
    batch = nbqp.solve_batch(H, g, A, b, C, None, u, settings=EPS)
    given = random_cotangents(rng, batch)
    grads = nbqp.vjp(batch, **given)
    for k in range(5):
        one = nbqp.solve_qp(H[k], g[k], A[k], b[k], C[k], None, u, settings=EPS)
        single = nbqp.vjp(one, **{name: value[k] for name, value in given.items()})
        for name in ("dL_dH", "dL_dA", "dL_dC", "dL_db"):
            np.testing.assert_allclose(getattr(grads, name)[k], getattr(single, name), atol=1e-6)


@pytest.mark.parametrize("form", [sp.csr_array, sp.csc_array, sp.coo_array, sp.csr_matrix])
def test_gradients_of_sparse_data_come_on_the_stored_pattern(form: Any) -> None:
    rng = np.random.default_rng(7)
    A = np.where(rng.random((3, 10)) < 0.5, rng.standard_normal((3, 10)), 0.0)
    g, b = rng.standard_normal(10), A @ rng.standard_normal(10)
    given = {"dL_dx": rng.standard_normal(10)}
    full = nbqp.vjp(nbqp.solve_qp(np.eye(10), g, A, b, settings=EPS), **given)
    sparse = nbqp.vjp(nbqp.solve_qp(form(np.eye(10)), g, form(A), b, settings=EPS), **given)
    assert sparse.dL_dA.format == form(A).format
    assert sparse.dL_dA.nnz == np.count_nonzero(A)
    np.testing.assert_allclose(sparse.dL_dA.toarray(), np.where(A != 0.0, full.dL_dA, 0.0))
    np.testing.assert_allclose(sparse.dL_dH.toarray(), np.diag(np.diag(full.dL_dH)), atol=1e-12)


@pytest.mark.parametrize("form", [sp.csr_array, sp.csc_matrix, sp.coo_array, sp.lil_array])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_gradients_share_one_pattern_that_nobody_can_change(form: Any, dtype: type) -> None:
    def index_arrays(matrix: Any) -> tuple[Any, ...]:
        coo = matrix.format == "coo"
        return (matrix.row, matrix.col) if coo else (matrix.indices, matrix.indptr)

    A = form(np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]))
    if form is sp.coo_array:
        A.coords = tuple(part.astype(dtype) for part in A.coords)
    elif form is not sp.lil_array:
        A.indices, A.indptr = A.indices.astype(dtype), A.indptr.astype(dtype)
    sol = nbqp.solve_qp(np.eye(3), np.ones(3), A, np.ones(2))
    before = nbqp.vjp(sol, dL_dx=np.ones(3)).dL_dA
    assert before.format == ("csc" if form is sp.lil_array else A.format)
    expected = before.toarray()
    # What the user does to the matrix, in place.
    if form is not sp.lil_array:
        for part in index_arrays(A):
            part[:] = 0
    A.data[:] = 0
    after = nbqp.vjp(sol, dL_dx=np.ones(3)).dL_dA
    np.testing.assert_array_equal(after.toarray(), expected)
    for one, other in zip(index_arrays(before), index_arrays(after), strict=True):
        assert np.shares_memory(one, other)
        with pytest.raises(ValueError, match="read-only"):
            one[0] = 1
    assert not np.shares_memory(before.data, after.data)
    before.copy().eliminate_zeros()


def test_duplicate_entries_get_the_gradient_of_their_sum() -> None:
    A = sp.coo_array(([1.0, 1.0, 2.0], ([0, 0, 0], [0, 0, 1])), shape=(1, 2))
    given = {"dL_dx": np.array([1.0, -2.0])}
    twice = nbqp.vjp(nbqp.solve_qp(np.eye(2), np.ones(2), A, [1.0]), **given).dL_dA
    once = nbqp.vjp(nbqp.solve_qp(np.eye(2), np.ones(2), A.toarray(), [1.0]), **given).dL_dA
    np.testing.assert_allclose(twice.data, once[0, [0, 0, 1]])


def test_a_failed_sample_follows_the_policy() -> None:
    g = np.array([[1.0, 0.0], [np.nan, 0.0]])
    batch = nbqp.solve_batch(np.eye(2), g, lb=np.full(2, -5.0))
    ones = {"dL_dx": np.ones((2, 2))}
    with pytest.raises(nbqp.UnsolvedError, match="INVALID_DATA for sample 1; 1 of 2 failed"):
        nbqp.vjp(batch, **ones)
    zero = nbqp.vjp(batch, **ones, on_failure="zero")
    np.testing.assert_allclose(zero.dL_dg, [[-1.0, -1.0], [0.0, 0.0]], atol=1e-12)
    assert np.isfinite(zero.dL_dH).all()
    nan = nbqp.vjp(batch, **ones, on_failure="nan")
    assert np.isnan(nan.dL_dg[1]).all()
    assert np.isfinite(nan.dL_dg[0]).all()
    with pytest.raises(nbqp.UnsolvedError, match="PRIMAL_INFEASIBLE"):
        nbqp.vjp(nbqp.solve_qp(np.eye(1), np.zeros(1), [[1.0], [1.0]], [0.0, 1.0]), dL_dx=[1.0])


def test_a_batch_axis_of_one_is_shared_and_keeps_its_shape() -> None:
    g = np.random.default_rng(8).standard_normal((3, 2))
    ones = {"dL_dx": np.ones((3, 2))}
    whole = nbqp.vjp(nbqp.solve_batch(np.eye(2), g, np.ones((1, 2)), [1.0]), **ones)
    single = nbqp.vjp(
        nbqp.solve_batch(np.eye(2)[None], g, np.ones((1, 1, 2)), np.ones((1, 1))), **ones
    )
    for name in ("dL_dH", "dL_dA", "dL_db"):
        np.testing.assert_allclose(getattr(single, name)[0], getattr(whole, name), atol=1e-12)


def test_a_nearly_undetected_null_vector_is_one_in_both_directions() -> None:
    """Rounding beside the regularisation hid it from the adjoint alone."""
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(100):
        n, k = 12, 5
        A = rng.standard_normal((k, n)) * (rng.random((k, n)) < 0.5)
        A[-1] = A[0]
        x = np.where(rng.random(n) < 0.6, 0.0, rng.random(n))
        g = -A.T @ rng.standard_normal(k) + np.where(x == 0.0, rng.random(n), 0.0)
        sol = nbqp.solve_qp(None, g, A, A @ x, lb=0.0, settings=EPS)
        if sol.status is not nbqp.Status.SOLVED:
            continue
        compared += 1
        w, db = rng.standard_normal(n), rng.standard_normal(k)
        backward, forward = nbqp.vjp(sol, dL_dx=w).dL_db @ db, nbqp.jvp(sol, db=db).dx @ w
        assert forward == pytest.approx(backward, rel=1e-7, abs=1e-7)
    assert compared >= 90


@pytest.mark.parametrize("name", ["dg", "dA"])
def test_a_direction_has_to_be_finite(name: str) -> None:
    sol = nbqp.solve_qp(np.eye(2), np.zeros(2), A=np.ones((1, 2)), b=[1.0])
    direction = {"dg": np.array([np.nan, 0.0]), "dA": np.array([[np.inf, 0.0]])}
    with pytest.raises(nbqp.QPError, match=f"{name}: expected finite"):
        nbqp.jvp(sol, **{name: direction[name]})


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("dL_dx", np.ones(3), r"dL_dx: expected shape \(2,\), got \(3,\)"),
        ("dL_dz", np.ones(1), r"dL_dz: expected shape \(0,\), got \(1,\)"),
        ("dL_dx", np.array([np.nan, 0.0]), "dL_dx: expected finite"),
        ("dL_dx", ["a", "b"], "dL_dx: expected real numbers"),
        ("on_failure", "ignore", "on_failure: expected"),
    ],
)
def test_bad_arguments_are_named(argument: str, value: Any, message: str) -> None:
    sol = nbqp.solve_qp(np.eye(2), np.ones(2))
    with pytest.raises(nbqp.QPError, match=message):
        nbqp.vjp(sol, **{argument: value})


def test_a_multiplier_that_is_rounding_does_not_choose_the_side() -> None:
    """x1 is on its upper side, and a multiplier of 1e-12 is one of the lower side, far away."""
    sol = nbqp.solve_qp(None, np.array([-1.0, 0.0]), lb=np.zeros(2), ub=np.ones(2))
    sol = dataclasses.replace(sol, x=np.ones(2), z_box=np.array([1.0, -1e-12]))
    grads = nbqp.vjp(sol, dL_dx=np.array([2.0, 3.0]))
    np.testing.assert_allclose(grads.dL_dub, [2.0, 3.0], atol=1e-12)
    np.testing.assert_allclose(grads.dL_dlb, [0.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("axis", [False, True])
@pytest.mark.parametrize("size", [1, 37])
def test_the_gradient_of_h_is_exactly_symmetric(axis: bool, size: int) -> None:
    """So that a gradient step leaves H so; shared by the batch or not."""
    rng = np.random.default_rng(0)
    L = rng.standard_normal((size if axis else 1, 30, 30))
    H = L @ L.swapaxes(1, 2) + np.eye(30)
    H = 0.5 * (H + H.swapaxes(1, 2))
    sol = nbqp.solve_batch(H if axis else H[0], rng.standard_normal((size, 30)), lb=-0.1)
    found = nbqp.vjp(sol, dL_dx=rng.standard_normal((size, 30))).dL_dH
    assert np.abs(found).max() > 0.0
    np.testing.assert_array_equal(found, found.swapaxes(-1, -2))
