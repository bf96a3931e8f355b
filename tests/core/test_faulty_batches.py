"""Faults anywhere in a batch: what they are called, what others see of them, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nbqp

EPS = nbqp.Settings(eps_abs=1e-9)
BATCH, N, N_EQ, N_IN = 20, 4, 1, 3
NAMES = ("H", "g", "A", "b", "C", "l", "u", "lb", "ub")
POINT = ("x", "y", "z", "z_box")
SOLUTION = (*POINT, "s_e", "s_i", "s_box")
Batch = dict[str, np.ndarray]


def good() -> Batch:
    """Random QPs, every datum with a batch axis, whose box holds a point of their rows."""
    rng = np.random.default_rng(0)
    M, x = rng.standard_normal((BATCH, N, N)), rng.random((BATCH, N))
    A, C = rng.standard_normal((BATCH, N_EQ, N)), rng.standard_normal((BATCH, N_IN, N))
    Cx = np.einsum("kij,kj->ki", C, x)
    return {
        "H": M @ M.transpose(0, 2, 1) + 0.1 * np.eye(N),
        "g": 2.0 * rng.standard_normal((BATCH, N)),
        "A": A,
        "b": np.einsum("kij,kj->ki", A, x),
        "C": C,
        "l": Cx - 0.2,
        "u": Cx + 0.2,
        "lb": np.full((BATCH, N), -0.5),
        "ub": np.full((BATCH, N), 1.5),
    }


def entry_of(name: str, value: float) -> Callable[[Batch, int], None]:
    def change(data: Batch, k: int) -> None:
        data[name][k].flat[-1] = value

    return change


def infeasible(data: Batch, k: int) -> None:
    data["b"][k] = 1e3


def contradictory(data: Batch, k: int) -> None:
    data["C"][k, 1] = data["C"][k, 0]
    data["u"][k, 1] = data["l"][k, 0] - 1.0
    data["l"][k, 1] = -np.inf


def unbounded(data: Batch, k: int) -> None:
    for name in "HAC":
        data[name][k] = 0.0
    data["b"][k], data["l"][k] = 0.0, -1.0
    data["u"][k] = data["ub"][k] = np.inf
    data["lb"][k] = -np.inf


def nonconvex(data: Batch, k: int) -> None:
    data["H"][k] = -np.eye(N)


def asymmetric(data: Batch, k: int) -> None:
    data["H"][k, 0, 1] += 1.0


def overflowing(data: Batch, k: int) -> None:
    data["g"][k] = 1e308
    data["b"][k] = 1e308


FAULTS: dict[str, tuple[Callable[[Batch, int], None], set[str]]] = {
    **{f"{name} is NaN": (entry_of(name, np.nan), {"INVALID_DATA"}) for name in NAMES},
    **{f"{name} is infinite": (entry_of(name, np.inf), {"INVALID_DATA"}) for name in "HgAbCl"},
    "crossed bounds": (entry_of("lb", 2.0), {"INVALID_DATA"}),
    "asymmetric": (asymmetric, {"INVALID_DATA"}),
    "infeasible": (infeasible, {"PRIMAL_INFEASIBLE"}),
    "contradictory": (contradictory, {"PRIMAL_INFEASIBLE"}),
    "unbounded": (unbounded, {"DUAL_INFEASIBLE"}),
    "nonconvex": (nonconvex, {"NONCONVEX"}),
    "overflowing": (overflowing, {"NUMERICAL_ERROR", "MAX_ITER_REACHED", "PRIMAL_INFEASIBLE"}),
}
PLACES = {
    "first": [0],
    "last": [BATCH - 1],
    "either side of a lane": [7, 8],
    "a whole lane": [*range(8, 16)],
    "all but one": [*range(5), *range(6, BATCH)],
}


def derivatives(sol: nbqp.BatchSolution, on_failure: Any) -> dict[str, np.ndarray]:
    """What `vjp`, `jvp` and `jacobian` return, by name, each with a leading batch axis."""
    rng = np.random.default_rng(1)
    cotangents = {f"dL_d{name}": rng.standard_normal(getattr(sol, name).shape) for name in POINT}
    gradients = nbqp.vjp(sol, **cotangents, on_failure=on_failure)
    directions = {"dg": rng.standard_normal((BATCH, N)), "du": rng.standard_normal((BATCH, N_IN))}
    tangents = nbqp.jvp(sol, **directions, on_failure=on_failure)
    jacobian = nbqp.jacobian(sol, of="x", wrt="g", on_failure=on_failure)
    return {
        **{f"dL_d{name}": getattr(gradients, f"dL_d{name}") for name in NAMES},
        **{f"d{name}": getattr(tangents, f"d{name}") for name in POINT},
        "jacobian": jacobian,
    }


@pytest.fixture(scope="module")
def expected() -> tuple[nbqp.BatchSolution, dict[str, np.ndarray]]:
    sol = nbqp.solve_batch(**good(), settings=EPS)
    assert {status.name for status in sol.status} == {"SOLVED"}
    return sol, derivatives(sol, "raise")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_its_status_and_no_trace_in_others(
    expected: tuple[nbqp.BatchSolution, dict[str, np.ndarray]], fault: str, place: str
) -> None:
    alone, right = expected
    spoil, statuses = FAULTS[fault]
    data, bad = good(), PLACES[place]
    for k in bad:
        spoil(data, k)
    sol = nbqp.solve_batch(**data, settings=EPS)
    assert {status.name for status in sol.status[bad]} <= statuses
    others = np.delete(np.arange(BATCH), bad)
    for name in SOLUTION:
        values = getattr(sol, name)
        np.testing.assert_array_equal(values[others], getattr(alone, name)[others])
        refused = statuses <= {"INVALID_DATA", "NONCONVEX"}
        assert (np.isnan if refused else np.isfinite)(values[bad]).all()
    for policy, marks in (("zero", lambda a: a == 0.0), ("nan", np.isnan)):
        for name, values in derivatives(sol, policy).items():
            np.testing.assert_array_equal(values[others], right[name][others], err_msg=name)
            assert marks(values[bad]).all(), name
    with pytest.raises(nbqp.UnsolvedError, match=f"for sample {bad[0]}"):
        nbqp.vjp(sol, dL_dx=np.ones((BATCH, N)))


@pytest.mark.parametrize("closest", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_batch_of_all_faults_does_not_depend_on_order_or_threads(
    threads: int, closest: bool
) -> None:
    settings = nbqp.Settings(eps_abs=1e-9, primal_infeasibility_solving=closest)
    size = 2 * len(FAULTS)
    data = {name: np.concatenate(3 * [values])[:size] for name, values in good().items()}
    # Each of them beside a sample without a fault.
    for k, (spoil, _) in enumerate(FAULTS.values()):
        spoil(data, 2 * k)
    whole = nbqp.solve_batch(**data, settings=settings, threads=1)
    assert len(set(whole.status)) >= 5
    gradients = nbqp.vjp(whole, dL_dx=np.ones((size, N)), on_failure="zero")
    for rows in (
        np.arange(size)[::-1],
        np.random.default_rng(2).permutation(size),
        [11],
        [2, 19],
    ):
        part = {name: values[rows] for name, values in data.items()}
        sol = nbqp.solve_batch(**part, settings=settings, threads=threads)
        for name in (*SOLUTION, "status"):
            np.testing.assert_array_equal(getattr(sol, name), getattr(whole, name)[rows])
        for name in ("iter", "factorizations", "pri_res", "dua_res", "duality_gap"):
            np.testing.assert_array_equal(getattr(sol.info, name), getattr(whole.info, name)[rows])
        of_part = nbqp.vjp(sol, dL_dx=np.ones((len(rows), N)), on_failure="zero")
        for name in NAMES:
            mine, all_of_them = (getattr(d, f"dL_d{name}") for d in (of_part, gradients))
            # -0 is no 0 here.
            assert mine.tobytes() == all_of_them[rows].tobytes(), name


@pytest.mark.parametrize("fault", ["g is NaN", "infeasible", "overflowing"])
def test_shared_data_have_the_gradients_of_the_samples_without_faults(fault: str) -> None:
    data, bad = good(), [3, 8, 9]
    shared = {name: data.pop(name)[0] for name in ("H", "C")}
    data["l"], data["u"] = np.full((BATCH, N_IN), -2.0), np.full((BATCH, N_IN), 2.0)
    others = np.delete(np.arange(BATCH), bad)
    rest = nbqp.solve_batch(**shared, **{k: v[others] for k, v in data.items()}, settings=EPS)
    right = nbqp.vjp(rest, dL_dx=np.ones((len(others), N)))
    for k in bad:
        FAULTS[fault][0](data, k)
    sol = nbqp.solve_batch(**shared, **data, settings=EPS)
    found = nbqp.vjp(sol, dL_dx=np.ones((BATCH, N)), on_failure="zero")
    for name in shared:
        np.testing.assert_allclose(
            getattr(found, f"dL_d{name}"), getattr(right, f"dL_d{name}"), rtol=1e-10, atol=1e-12
        )
    unknown = nbqp.vjp(sol, dL_dx=np.ones((BATCH, N)), on_failure="nan")
    assert np.isnan(unknown.dL_dH).all()


@pytest.mark.parametrize("method", ["auto", "semismooth", "smoothed"])
@pytest.mark.parametrize("most", [3, 20, 1000])
def test_an_overflow_of_a_closest_feasible_qp_leaves_a_finite_point(method: str, most: int) -> None:
    """NaN, where an iterate had overflowed, was returned as the best point."""
    C = np.array([[1.55, -0.57, 0.35], [0.19, 1.55, 2.18]])
    settings = nbqp.Settings(
        eps_abs=1e-9, primal_infeasibility_solving=True, method=method, max_iter=most
    )
    sol = nbqp.solve_qp(
        np.eye(3), np.full(3, 1e308), C=C, l=[0.08, 1.68], lb=-1.0, ub=2.0, settings=settings
    )
    assert sol.status in (nbqp.Status.NUMERICAL_ERROR, nbqp.Status.MAX_ITER_REACHED)
    for name in SOLUTION:
        assert np.isfinite(getattr(sol, name)).all(), name
