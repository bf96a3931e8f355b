"""Bad input raises a `QPError` whose first line names the argument."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest
import scipy.sparse as sp

import nbqp
from nbqp.problem import QP
from tests.core.specialisations import compiled_entries

GOOD: dict[str, Any] = {
    "H": np.eye(2),
    "g": np.ones(2),
    "A": np.ones((1, 2)),
    "b": np.ones(1),
    "C": np.eye(2),
    "l": -np.ones(2),
    "u": np.ones(2),
    "lb": -1.0,
    "ub": 1.0,
}


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        ({"H": np.eye(3)}, nbqp.ShapeError, "H: expected 2 columns"),
        ({"H": np.array([[1.0, 2.0], [0.0, 1.0]])}, nbqp.SymmetryError, "H: expected a symmetric"),
        ({"H": np.array([[np.inf, 0.0], [0.0, 1.0]])}, nbqp.DataError, "H: expected finite"),
        ({"H": np.array([[None, 0], [0, 1]])}, nbqp.ShapeError, "H: expected real numbers"),
        ({"H": [[1.0, 2.0], [3.0]]}, nbqp.ShapeError, "H: expected an array of numbers"),
        ({"H": sp.csc_array(np.eye(3))}, nbqp.ShapeError, "H: expected 2 columns"),
        (
            {"settings": {"eps_abs": 1.0}},
            nbqp.SettingsError,
            "settings: expected Settings, got dict",
        ),
        ({"A": sp.coo_array(np.ones(2))}, nbqp.ShapeError, "A: expected a matrix"),
        ({"g": None}, nbqp.ShapeError, "g: expected a vector"),
        ({"g": np.array([np.nan, 0.0])}, nbqp.DataError, "g: expected finite"),
        ({"g": np.ones((2, 2))}, nbqp.ShapeError, r"g: expected shape \(n,\)"),
        ({"b": None}, nbqp.ShapeError, "b: expected a vector of 1"),
        ({"b": np.ones(3)}, nbqp.ShapeError, r"b: expected shape \(1,\)"),
        ({"lb": np.array([[np.nan, 0.0]])}, nbqp.ShapeError, r"lb: expected shape \(2,\)"),
        ({"A": None}, nbqp.ShapeError, "A: expected a matrix"),
        ({"C": None}, nbqp.ShapeError, "C: expected a matrix"),
        ({"l": 2.0}, nbqp.DataError, "l: expected l <= u, got 2.0 > 1.0 in entry 0"),
        ({"lb": 2.0}, nbqp.DataError, "lb: expected lb <= ub, got 2.0 > 1.0 in entry 0"),
        ({"u": np.array([np.nan, 1.0])}, nbqp.DataError, "u: expected numbers"),
        ({"lb": np.inf, "ub": None}, nbqp.DataError, "lb: expected numbers other than inf"),
    ],
)
def test_bad_data_are_named(bad: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        nbqp.Solver(**{**GOOD, **bad})


@pytest.mark.parametrize(
    "setting",
    [
        {"eps_abs": 0.0},
        {"eps_abs": "small"},
        {"eps_rel": -1.0},
        {"max_iter": 0},
        {"max_iter": 1.5},
        {"max_iter": 10**30},
        {"time_limit": "1"},
        {"method": "magic"},
        {"method": ["auto"]},
        {"check_duality_gap": "no"},
        {"check_duality_gap": 1},
        {"eps_abs": True},
        {"eps_rel": np.bool_(False)},
        {"eps_abs": np.nan},
        {"eps_abs": np.array([1e-8])},
        {"eps_primal_inf": None},
        {"max_iter": True},
        {"time_limit": True},
        {"verbose": None},
    ],
)
def test_bad_settings_are_named(setting: dict[str, Any]) -> None:
    name = next(iter(setting))
    with pytest.raises(nbqp.SettingsError, match=rf"Settings\.{name}: expected .*, got"):
        nbqp.Settings(**setting)


def test_settings_take_numpy_scalars_and_hold_python_ones() -> None:
    settings = nbqp.Settings(
        eps_abs=np.float32(0.5), max_iter=np.int64(7), time_limit=3, verbose=np.bool_(False)
    )
    assert settings == nbqp.Settings(eps_abs=0.5, max_iter=7, time_limit=3.0)
    kinds = {name: type(value) for name, value in vars(settings).items()}
    assert kinds == {name: type(value) for name, value in vars(nbqp.Settings()).items()}


@pytest.mark.parametrize("threads", [0, -1, 1.5, 2.0, True, "2", np.nan, [2]])
def test_a_bad_number_of_threads_is_named(threads: Any) -> None:
    with pytest.raises(nbqp.SettingsError, match="threads: expected None or an integer"):
        nbqp.solve_batch(np.eye(2), np.ones((3, 2)), threads=threads)


def test_numpy_integers_count_threads() -> None:
    count: Any = np.int32(2)
    assert nbqp.solve_batch(np.eye(2), np.ones((3, 2)), threads=count).x.shape == (3, 2)


def test_a_sparse_pattern_may_not_change_in_update() -> None:
    solver = nbqp.Solver(sp.eye_array(3, format="csc"), np.ones(3))
    with pytest.raises(nbqp.PatternError, match="H: expected the pattern"):
        solver.update(H=sp.csc_array(np.ones((3, 3))))


def test_a_matrix_of_another_size_is_named_in_update() -> None:
    solver = nbqp.Solver(np.eye(3), np.ones(3), A=np.ones((1, 3)), b=np.ones(1))
    with pytest.raises(nbqp.PatternError, match=r"A: expected the shape \(1, 3\).*got \(2, 3\)"):
        solver.update(A=np.ones((2, 3)))
    with pytest.raises(nbqp.ShapeError, match="A: expected an array of numbers"):
        solver.update(A=[[1.0, 2.0], [1.0]])
    assert solver.solve().status is nbqp.Status.SOLVED


def test_a_dense_pattern_may_change_in_update() -> None:
    solver = nbqp.Solver(np.eye(2), -np.ones(2))
    solver.update(H=np.array([[2.0, 1.0], [1.0, 2.0]]))
    np.testing.assert_allclose(solver.solve().x, [1 / 3, 1 / 3], atol=1e-8)


def test_float32_symmetry_is_judged_in_float32() -> None:
    H = np.array([[1.0, 0.1], [0.1 * (1 + 1e-7), 1.0]], dtype=np.float32)
    stored = nbqp.Solver(H, np.ones(2)).problem.H.values[0].reshape(2, 2)
    assert stored[0, 1] == stored[1, 0] == pytest.approx(0.1, rel=1e-6)


def test_no_kernel_is_compiled_twice_whatever_the_layout_of_the_arrays() -> None:
    """A second signature would cost a newcomer half a minute at a call that looks like any other."""

    def variants(array: np.ndarray) -> Iterator[np.ndarray]:
        read_only = array.copy()
        read_only.flags.writeable = False
        yield from (read_only, np.asfortranarray(array), array.astype(np.float32))
        yield np.repeat(array, 2, axis=-1)[..., ::2]

    rng = np.random.default_rng(0)
    data = {"H": np.eye(4), "g": rng.random((9, 4)), "A": rng.random((9, 2, 4)), "b": np.zeros(2)}
    cotangent = rng.random((9, 4))
    for arrays in zip(*(variants(array) for array in (*data.values(), cotangent)), strict=True):
        sol = nbqp.solve_batch(**dict(zip(data, arrays, strict=False)))
        for array in (sol.x, sol.y, sol.z, sol.z_box):
            array.flags.writeable = False
        nbqp.vjp(sol, dL_dx=arrays[-1])
        nbqp.jvp(sol, dg=arrays[1])
        nbqp.solve_batch(**dict(zip(data, arrays, strict=False)), warm_start=sol)
    counts = compiled_entries()
    assert counts or numba.config.DISABLE_JIT
    assert max(counts.values(), default=0) <= 1, counts


def test_arrays_may_change_after_a_solve() -> None:
    g, ub = np.array([-1.0, 2.0]), np.full(2, 0.5)
    solver = nbqp.Solver(np.eye(2), g, ub=ub)
    g[:], ub[:] = 9.0, -9.0
    sol = solver.solve()
    np.testing.assert_allclose(sol.x, [0.5, -2.0], atol=1e-8)
    assert sol.dual_residual() < 1e-8


@pytest.mark.parametrize("form", [np.array, sp.csc_array])
def test_an_update_of_one_datum_leaves_the_others_as_they_were_given(form: Any) -> None:
    H, A = form(np.diag([1.0, 2.0])), form(np.ones((1, 2)))
    solver = nbqp.Solver(H, np.ones(2), A, np.ones(1))
    solver.update(A=A)
    for array in (H, A):
        (array.data if sp.issparse(array) else array)[:] = -9.0
    solver.update(g=np.zeros(2))
    np.testing.assert_allclose(solver.solve().x, [2 / 3, 1 / 3], atol=1e-8)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("abc", r"warm_start: expected a solution or \(x, y, z, z_box\), got str"),
        ((np.zeros(2),), r"warm_start: expected a solution or \(x, y, z, z_box\), got tuple"),
        ((np.zeros(3), [], [], np.zeros(2)), r"warm_start: expected x of shape \(2,\)"),
        ((np.full(2, np.nan), [], [], np.zeros(2)), "warm_start: expected finite x"),
        (nbqp.solve_batch(np.eye(2), np.ones((3, 2))), r"warm_start: expected x of shape \(2,\)"),
    ],
)
def test_bad_warm_starts_are_named(start: Any, words: str) -> None:
    with pytest.raises(nbqp.QPError, match=words):
        nbqp.solve_qp(np.eye(2), np.ones(2), warm_start=start)


def test_a_batched_matrix_of_one_row_is_copied() -> None:
    A = np.ones((3, 1, 4))
    problem = QP(g=np.ones(4), A=A, b=np.ones(1), batch=True)
    assert not np.shares_memory(problem.A.values, A)
