"""The solvers that are compared, and the settings that they get for an accuracy and a time limit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from benchmarks.adaptors import (
    Adaptor,
    Clarabel,
    Highs,
    Nbqp,
    Osqp,
    Piqp,
    ProxqpDense,
    ProxqpSparse,
    Settings,
)
from benchmarks.peers import PROXSUITE_EPS_PRIMAL_INF
from benchmarks.programs import Program
from nbqp.settings import METHODS

EPS_INFEASIBLE = PROXSUITE_EPS_PRIMAL_INF
"""For the peers whose default of 1e-4 calls feasible programs infeasible."""
MANY = 1_000_000
"""Iterations at most: time is to be the limit."""


def nbqp_settings(eps: float, limit: float, method: str) -> Settings:
    """Ours."""
    return {"method": method, "eps_abs": eps, "max_iter": MANY, "time_limit": limit}


def proxqp_settings(eps: float, limit: float) -> Settings:
    """ProxQP's, which has no time limit."""
    return {
        "eps_abs": eps,
        "eps_rel": 0.0,
        "check_duality_gap": True,
        "eps_duality_gap_abs": eps,
        "eps_duality_gap_rel": 0.0,
        "eps_primal_inf": EPS_INFEASIBLE,
        "eps_dual_inf": EPS_INFEASIBLE,
        "max_iter": MANY,
        "max_iter_in": MANY,
    }


def piqp_settings(eps: float, limit: float) -> Settings:
    """PIQP's, which has no time limit."""
    return {
        "eps_abs": eps,
        "eps_rel": 0.0,
        "check_duality_gap": True,
        "eps_duality_gap_abs": eps,
        "eps_duality_gap_rel": 0.0,
        "eps_primal_inf": EPS_INFEASIBLE,
        "eps_dual_inf": EPS_INFEASIBLE,
        "max_iter": MANY,
    }


def clarabel_settings(eps: float, limit: float) -> Settings:
    """Clarabel's; its feasibility is relative to the data and the point, which no setting changes."""
    return {
        "tol_feas": eps,
        "tol_gap_abs": eps,
        "tol_gap_rel": 0.0,
        "max_iter": MANY,
        "max_threads": 1,
        "time_limit": limit,
        "verbose": False,
    }


def osqp_settings(eps: float, limit: float) -> Settings:
    """OSQP's."""
    return {
        "eps_abs": eps,
        "eps_rel": 0.0,
        "check_dualgap": True,
        "eps_prim_inf": EPS_INFEASIBLE,
        "eps_dual_inf": EPS_INFEASIBLE,
        "polishing": True,
        "max_iter": 1000 * MANY,
        "time_limit": limit,
        "verbose": False,
    }


def highs_settings(eps: float, limit: float) -> Settings:
    """HiGHS's; its tolerances are 1e-10 at least, and its regularisation is part of no residual."""
    return {
        "output_flag": False,
        "primal_feasibility_tolerance": max(eps, 1e-10),
        "dual_feasibility_tolerance": max(eps, 1e-10),
        "qp_regularization_value": 0.0,
        "threads": 1,
        "time_limit": limit,
    }


@dataclasses.dataclass(frozen=True)
class Entry:
    """How a solver is called, with which settings for an accuracy and a time limit, and what of.

    packages: those whose versions its results depend on, the one that may be missing first.
    """

    adaptor: Callable[[Program, Settings], Adaptor]
    settings: Callable[[float, float], Settings]
    packages: tuple[str, ...]
    note: str


SOLVERS = {
    f"nbqp-{method}": Entry(
        Nbqp,
        functools.partial(nbqp_settings, method=method),
        ("numba", "numpy", "scipy"),
        f'nbqp.solve_qp, method "{method}".',
    )
    for method in METHODS
}
SOLVERS |= {
    "proxqp-sparse": Entry(
        ProxqpSparse,
        proxqp_settings,
        ("proxsuite",),
        "Bounds as rows, which it has no other form for; no time limit of its own.",
    ),
    "proxqp-dense": Entry(
        ProxqpDense, proxqp_settings, ("proxsuite",), "No time limit of its own."
    ),
    "piqp": Entry(
        functools.partial(Piqp, dense=False),
        piqp_settings,
        ("piqp",),
        "SparseSolver; no time limit of its own.",
    ),
    "piqp-dense": Entry(
        functools.partial(Piqp, dense=True),
        piqp_settings,
        ("piqp",),
        "DenseSolver; no time limit of its own.",
    ),
    "clarabel": Entry(
        Clarabel,
        clarabel_settings,
        ("clarabel",),
        "Feasibility relative to the data and the point, which no setting changes.",
    ),
    "osqp": Entry(Osqp, osqp_settings, ("osqp",), "With polishing."),
    "highs": Entry(
        Highs,
        highs_settings,
        ("highspy",),
        "Active set, without regularisation; no setting for the duality gap.",
    ),
}
