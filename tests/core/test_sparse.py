"""`nbqp.Sparse`: values that vary on one pattern, against the same matrices given dense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import nbqp

N, ROWS, BATCH = 6, 4, 5
FORMS = (sp.csc_array, sp.csr_array, sp.coo_array)
CLOSE = nbqp.Settings(eps_abs=1e-10)


def patterns(form: Any, seed: int = 0) -> dict[str, Any]:
    """H, A and C with zeros in some places, in any order where the format has one."""
    rng = np.random.default_rng(seed)
    half = rng.random((N, N)) < 0.3
    masks = {
        "H": half | half.T | np.eye(N, dtype=bool),
        "A": np.array([[1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 1]], dtype=bool),
        "C": rng.random((ROWS, N)) < 0.5,
    }
    masks["C"][:, 0] = True
    found = {}
    for name, mask in masks.items():
        coo = sp.coo_array(mask.astype(float))
        shuffled = rng.permutation(coo.nnz)
        places = coo.row[shuffled], coo.col[shuffled]
        found[name] = form(sp.coo_array((np.ones(coo.nnz), places), shape=mask.shape))
    return found


def data(form: Any, shared: bool) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Data with `Sparse` matrices, with the same ones dense, and the patterns."""
    rng = np.random.default_rng(1)
    dense, sparse, given = {}, {}, patterns(form)
    for name, pattern in given.items():
        rows, columns = nbqp.Sparse(pattern, np.ones(pattern.nnz)).pattern.entries
        matrices = np.zeros((BATCH, *pattern.shape))
        matrices[:, rows, columns] = rng.standard_normal((BATCH, pattern.nnz))
        if name == "H":
            matrices = matrices + matrices.transpose(0, 2, 1) + 9.0 * np.eye(N)
        matrices = matrices[0] if shared else matrices
        dense[name] = matrices
        sparse[name] = nbqp.Sparse(pattern, matrices[..., rows, columns])
    x0 = rng.random(N)
    vectors = {
        "g": 9.0 * rng.standard_normal((BATCH, N)),
        "b": dense["A"] @ x0,
        "l": dense["C"] @ x0 - 0.3,
        "u": dense["C"] @ x0 + 0.2,
        "lb": -1.0,
    }
    return {**sparse, **vectors}, {**dense, **vectors}, given


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "batched"])
def test_solutions_and_gradients_are_those_of_dense_matrices(form: Any, shared: bool) -> None:
    sparse, dense, given = data(form, shared)
    ours, theirs = (nbqp.solve_batch(**d, settings=CLOSE) for d in (sparse, dense))
    assert {status.name for status in ours.status} == {"SOLVED"}
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-8)
    assert (np.abs(ours.z) > 1e-3).any()
    rng = np.random.default_rng(2)
    loss = {f"dL_d{k}": rng.standard_normal(getattr(ours, k).shape) for k in ("x", "y", "z")}
    ours, theirs = nbqp.vjp(ours, **loss), nbqp.vjp(theirs, **loss)
    for name in "HAC":
        gradient = getattr(ours, f"dL_d{name}")
        assert isinstance(gradient, nbqp.Sparse)
        rows, columns = gradient.pattern.entries
        coo = given[name].tocoo()
        np.testing.assert_array_equal(rows, coo.row)
        np.testing.assert_array_equal(columns, coo.col)
        expected = getattr(theirs, f"dL_d{name}")[..., rows, columns]
        assert gradient.shape == dense[name].shape
        np.testing.assert_allclose(gradient.values, expected, atol=1e-7)
    np.testing.assert_allclose(ours.dL_dg, theirs.dL_dg, atol=1e-7)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "batched"])
def test_directions_are_those_of_dense_matrices(shared: bool) -> None:
    sparse, dense, _ = data(sp.csr_array, shared)
    directions = [{f"d{name}": d[name] for name in "HAC"} for d in (sparse, dense)]
    ours, theirs = (
        nbqp.jvp(nbqp.solve_batch(**d, settings=CLOSE), **direction)
        for d, direction in zip((sparse, dense), directions, strict=True)
    )
    for part, expected in zip(vars(ours).values(), vars(theirs).values(), strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-7)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "batched"])
def test_jacobians_are_those_of_dense_matrices(shared: bool) -> None:
    sparse, dense, _ = data(sp.csr_array, shared)
    ours, theirs = (
        nbqp.jacobian(nbqp.solve_batch(**d, settings=CLOSE), of="x", wrt=("H", "A", "C"))
        for d in (sparse, dense)
    )
    for name in "HAC":
        rows, columns = sparse[name].pattern.entries
        np.testing.assert_allclose(ours[name], theirs[name][..., rows, columns], atol=1e-7)


def test_a_single_qp_and_its_update() -> None:
    sparse, dense, given = data(sp.csc_array, shared=True)
    sparse["g"] = dense["g"] = dense["g"][0]
    solver = nbqp.Solver(**sparse, settings=CLOSE)
    np.testing.assert_allclose(solver.solve().x, nbqp.solve_qp(**dense).x, atol=1e-6)
    values = 0.5 * sparse["C"].values
    solver.update(C=nbqp.Sparse(given["C"], values))
    expected = nbqp.solve_qp(**{**dense, "C": 0.5 * dense["C"]}, settings=CLOSE)
    sol = solver.solve()
    np.testing.assert_allclose(sol.x, expected.x, atol=1e-8)
    gradient = nbqp.vjp(sol, dL_dx=np.ones(N)).dL_dC
    theirs = nbqp.vjp(expected, dL_dx=np.ones(N)).dL_dC
    rows, columns = gradient.pattern.entries
    np.testing.assert_allclose(gradient.values, theirs[rows, columns], atol=1e-7)


def test_an_update_keeps_the_pattern() -> None:
    solver = nbqp.Solver(np.eye(2), np.ones(2), C=nbqp.Sparse(sp.eye_array(2), np.ones(2)), u=1.0)
    other = nbqp.Sparse(sp.csc_array(np.ones((2, 2))), np.ones(4))
    with pytest.raises(nbqp.PatternError, match="C: expected the pattern"):
        solver.update(C=other)


def test_what_a_pattern_keeps_is_read_only() -> None:
    matrix = nbqp.Sparse(sp.csr_array(np.eye(2)), np.ones(2))
    for part in matrix.pattern.columns:
        with pytest.raises(ValueError, match="read-only"):
            part[:] = 0
    assert nbqp.solve_qp(matrix, -np.ones(2)).x == pytest.approx([1.0, 1.0])


def test_zeros_that_are_stored_have_a_gradient() -> None:
    pattern = sp.csc_array(np.ones((1, 2)))
    sol = nbqp.solve_qp(np.eye(2), np.zeros(2), nbqp.Sparse(pattern, [1.0, 0.0]), [1.0])
    gradient = nbqp.vjp(sol, dL_dx=np.array([0.0, 1.0])).dL_dA
    # x = a b / |a|^2 = (1, 0), thus dx_2/da_2 = b / |a|^2.
    np.testing.assert_allclose(gradient.values, [0.0, 1.0], atol=1e-6)


def test_the_values_of_one_sample_may_be_bad() -> None:
    sparse, _, given = data(sp.csc_array, shared=False)
    values = sparse["A"].values.copy()
    values[2, 1] = np.nan
    sol = nbqp.solve_batch(**{**sparse, "A": nbqp.Sparse(given["A"], values)})
    names = [status.name for status in sol.status]
    assert names == ["SOLVED", "SOLVED", "INVALID_DATA", "SOLVED", "SOLVED"]


@pytest.mark.parametrize(
    ("pattern", "values", "message"),
    [
        (np.eye(2), np.ones(2), "pattern: expected a scipy.sparse matrix, got ndarray"),
        (sp.eye_array(2), np.ones(3), r"values: expected shape \(2,\) or \(batch, 2\)"),
        (sp.eye_array(2), np.ones((1, 1, 2)), r"got \(1, 1, 2\)"),
        (sp.eye_array(2), [[1.0, 2.0], [1.0]], "values: expected an array of numbers"),
        (sp.coo_array(([1.0, 2.0], ([0, 0], [1, 1]))), np.ones(2), "every entry once"),
    ],
)
def test_bad_input_is_named(pattern: Any, values: Any, message: str) -> None:
    with pytest.raises(nbqp.ShapeError, match=message):
        nbqp.Sparse(pattern, values)


def test_a_batch_is_no_matrix_of_a_single_qp() -> None:
    H = nbqp.Sparse(sp.eye_array(2), np.ones((3, 2)))
    with pytest.raises(nbqp.ShapeError, match="H: expected a matrix, got shape"):
        nbqp.solve_qp(H, np.ones(2))
