"""Jacobians against `vjp` by rows, `jvp` by columns, and central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import nbqp
from tests.core.derivatives import random_tangents
from tests.core.differences import central_differences
from tests.core.infeasible import random_infeasible_qp
from tests.core.oracles import Data
from tests.core.strategies import Problem, differentiable_qps, random_qp

TIGHT = nbqp.Settings(eps_abs=1e-11)
CLOSEST = nbqp.Settings(eps_abs=1e-10, primal_infeasibility_solving=True)
MULTIPLIERS = ("y", "z", "z_box")
PARTS = ("x", *MULTIPLIERS, "s_e", "s_i", "s_box")

REGULAR = list(differentiable_qps(np.random.default_rng(31), 3))
RNG = np.random.default_rng(32)
SINGULAR = [
    random_qp(RNG, kind="lp_nonunique", n=8, name="face"),
    random_qp(RNG, kind="low_rank", n=10, redundant=1, name="redundant"),
    random_qp(RNG, n=8, duplicates=2, degenerate=True, sparse=True, density=0.5, name="degenerate"),
]
INFEASIBLE = [
    random_infeasible_qp(RNG, contradiction="mixed", name="infeasible"),
    random_infeasible_qp(RNG, contradiction="rows", kind="lp", sparse=True, name="infeasible-lp"),
]


def given(sol: nbqp.Solution | nbqp.BatchSolution) -> tuple[Any, ...]:
    return tuple(name for name, form in sol.problem.forms.items() if form is not None)


def values(gradient: Any) -> Any:
    return gradient.data if sp.issparse(gradient) else gradient


@pytest.mark.filterwarnings("ignore:.*multipliers are not unique")
@pytest.mark.parametrize("problem", [*REGULAR, *SINGULAR, *INFEASIBLE], ids=lambda p: p.name)
@pytest.mark.parametrize("part", PARTS)
def test_row_i_is_the_gradient_of_entry_i(problem: Problem, part: str) -> None:
    sol = nbqp.solve_qp(**problem.args, settings=CLOSEST)
    jac = nbqp.jacobian(sol, of=part, wrt=given(sol))
    size = len(getattr(sol, part))
    for i, row in enumerate(np.eye(size)):
        grads = nbqp.vjp(sol, **{f"dL_d{part}": row})
        for name, array in jac.items():
            expected = values(getattr(grads, f"dL_d{name}"))
            assert array.shape == (size, *np.shape(expected))
            atol = 1e-12 * (1.0 + np.abs(expected).max(initial=0.0))
            np.testing.assert_allclose(array[i], expected, rtol=1e-12, atol=atol, err_msg=name)


@pytest.mark.parametrize("problem", REGULAR, ids=lambda p: p.name)
def test_products_with_tangents_are_directional_derivatives(problem: Problem) -> None:
    sol = nbqp.solve_qp(**problem.args, settings=TIGHT)
    moved = random_tangents(np.random.default_rng(1), problem.data)
    moved["dH" if "dH" in moved else "dg"] *= 2.0
    forward = nbqp.jvp(sol, **moved)
    for part in ("x", *MULTIPLIERS):
        jac = nbqp.jacobian(sol, of=part, wrt=given(sol))
        total = sum(
            np.tensordot(jac[name[1:]], tangent, axes=tangent.ndim)
            for name, tangent in moved.items()
        )
        np.testing.assert_allclose(total, getattr(forward, f"d{part}"), atol=1e-9, err_msg=part)


@pytest.mark.parametrize("part", ["x", *MULTIPLIERS])
def test_columns_are_central_differences(part: str) -> None:
    problem = REGULAR[0]
    assert problem.data.H is not None
    sol = nbqp.solve_qp(**problem.args, settings=TIGHT)
    rng = np.random.default_rng(2)

    def solve(data: Data) -> nbqp.Solution:
        return nbqp.solve_qp(**data.args(), settings=TIGHT)

    for name in given(sol):
        jac = nbqp.jacobian(sol, of=part, wrt=name)
        finite = np.argwhere(np.isfinite(getattr(problem.data.full(), name)))
        entries = [tuple(entry) for entry in rng.permutation(finite)[:4]]
        expected = central_differences(
            solve, problem.data, lambda point: getattr(point, part), name, entries, h=2e-4
        )
        found = np.array([jac[(slice(None), *entry)] for entry in entries])
        np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-5, err_msg=name)


@pytest.mark.filterwarnings("ignore:.*multipliers are not unique")
@pytest.mark.parametrize("shares_matrices", [True, False])
def test_a_batch_has_the_jacobians_of_its_samples(shares_matrices: bool) -> None:
    """A full group of lanes and one that is not, among them an infeasible and a singular sample."""
    rng = np.random.default_rng(3)
    A, C, g = rng.random((11, 2, 6)), rng.standard_normal((11, 4, 6)), rng.standard_normal((11, 6))
    u = rng.random((11, 4))
    C[2, 0], u[2, :2] = -C[2, 1], -0.3
    C[-1, 0], u[-1, :2] = C[-1, 1], -0.7
    H = np.diag(rng.random(6) + 0.5)
    if shares_matrices:
        A, C = A[0], C[0]
    data = {"H": H, "g": g, "A": A, "b": np.ones(2), "C": C, "u": u, "lb": -1.0}
    batch = nbqp.solve_batch(**data, settings=CLOSEST)
    closest = batch.status == nbqp.Status.SOLVED_CLOSEST_PRIMAL_FEASIBLE
    assert np.flatnonzero(closest).tolist() == ([] if shares_matrices else [2])
    assert (batch.z[-1, :2] > 1e-3).all()
    for part in ("x", "z"):
        jac = nbqp.jacobian(batch, of=part, wrt=tuple(data))
        for k in range(11):
            own = {
                name: value[k] if np.ndim(value) == 1 + (name in "HAC") + (name != "lb") else value
                for name, value in data.items()
            }
            one = nbqp.solve_qp(**own, settings=CLOSEST)
            single = nbqp.jacobian(one, of=part, wrt=tuple(data))
            for name in data:
                assert jac[name][k].shape == single[name].shape
                np.testing.assert_allclose(jac[name][k], single[name], atol=1e-7, err_msg=name)


@pytest.mark.parametrize("form", [sp.csr_array, sp.csc_matrix, sp.coo_array])
@pytest.mark.parametrize("batched", [False, True])
def test_sparse_data_have_a_column_for_each_stored_entry(form: Any, batched: bool) -> None:
    rng = np.random.default_rng(4)
    A = np.where(rng.random((3, 7)) < 0.5, rng.standard_normal((3, 7)), 0.0)
    g, b = rng.standard_normal((4, 7) if batched else 7), A @ rng.standard_normal(7)
    solve = nbqp.solve_batch if batched else nbqp.solve_qp
    dense = nbqp.jacobian(solve(np.eye(7), g, A, b, settings=TIGHT), wrt=["A", "H"])
    sparse = nbqp.jacobian(solve(form(np.eye(7)), g, form(A), b, settings=TIGHT), wrt=["A", "H"])
    for name, matrix in (("A", form(A)), ("H", form(np.eye(7)))):
        stored = matrix.tocoo()
        expected = dense[name][..., stored.row, stored.col]
        assert sparse[name].shape == (*g.shape, stored.nnz)
        np.testing.assert_allclose(sparse[name], expected, atol=1e-9, err_msg=name)


def test_a_single_name_gives_the_array_and_several_a_dict() -> None:
    sol = nbqp.solve_qp(np.eye(2), np.array([-1.0, 1.0]), lb=0.0)
    np.testing.assert_allclose(nbqp.jacobian(sol, wrt="g"), [[-1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(nbqp.jacobian(sol, wrt="lb"), [0.0, 1.0])
    assert list(nbqp.jacobian(sol, wrt=["lb", "g"])) == ["lb", "g"]
    assert nbqp.jacobian(sol, wrt=()) == {}
    assert nbqp.jacobian(sol, of="y", wrt="H").shape == (0, 2, 2)


def test_an_empty_batch_has_empty_jacobians() -> None:
    batch = nbqp.solve_batch(np.eye(2), np.zeros((0, 2)), lb=0.0)
    assert nbqp.jacobian(batch, wrt="g").shape == (0, 2, 2)


def test_jacobians_of_multipliers_of_infeasible_qps_warn() -> None:
    problem = INFEASIBLE[0]
    sol = nbqp.solve_qp(**problem.args, settings=CLOSEST)
    assert sol.status is nbqp.Status.SOLVED_CLOSEST_PRIMAL_FEASIBLE
    with pytest.warns(UserWarning, match="multipliers are not unique") as caught:
        nbqp.jacobian(sol, of="z", wrt="g")
    (warning,) = (w for w in caught if w.category is UserWarning)
    assert warning.filename == __file__


def test_the_shift_of_two_contradicting_bounds_by_hand() -> None:
    """x = b and x <= ub meet halfway."""
    sol = nbqp.solve_qp(np.eye(1), np.zeros(1), [[1.0]], [0.0], ub=-1.0, settings=CLOSEST)
    np.testing.assert_allclose(nbqp.jacobian(sol, wrt="b"), [[0.5]], atol=1e-9)
    jac = nbqp.jacobian(sol, of="s_e", wrt=("b", "ub"))
    np.testing.assert_allclose(jac["b"], [[-0.5]], atol=1e-9)
    np.testing.assert_allclose(jac["ub"], [0.5], atol=1e-9)


def test_a_failed_sample_follows_the_policy() -> None:
    batch = nbqp.solve_batch(np.eye(2), np.array([[1.0, 0.0], [np.nan, 0.0]]), lb=np.full(2, -5.0))
    with pytest.raises(nbqp.UnsolvedError, match="INVALID_DATA for sample 1; 1 of 2 failed"):
        nbqp.jacobian(batch, wrt="g")
    for name in ("g", "H"):
        nan = nbqp.jacobian(batch, wrt=name, on_failure="nan")
        zero = nbqp.jacobian(batch, wrt=name, on_failure="zero")
        assert np.isnan(nan[1]).all()
        np.testing.assert_array_equal(zero[1], 0.0)
        np.testing.assert_array_equal(nan[0], zero[0])
        assert np.abs(zero[0]).max() > 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wrt": "q"}, "wrt: expected data of this QP, H, g, lb, got 'q'"),
        ({"wrt": ("g", "A")}, "wrt: expected data of this QP, H, g, lb, got 'A'"),
        ({"wrt": None}, "wrt: expected data of this QP, H, g, lb, got None"),
        ({"wrt": "g", "of": "s"}, "of: expected one of x, y, z, z_box, s_e, s_i, s_box, got 's'"),
        ({"wrt": "g", "on_failure": "ignore"}, "on_failure: expected"),
        ({"wrt": "g", "solution": np.ones(2)}, "solution: expected a Solution"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    sol = nbqp.solve_qp(np.eye(2), np.ones(2), lb=0.0)
    with pytest.raises(nbqp.SettingsError, match=message):
        nbqp.jacobian(**{"solution": sol, **arguments})
