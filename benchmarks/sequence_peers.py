"""How each solver takes the next QP of a sequence: a new b, then a solve, cold or warm.

A peer is imported when it is built, so that a missing one is a line in the report.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse

import nbqp
from benchmarks.arrays import Floats
from benchmarks.control import Sequence
from benchmarks.peers import PROXSUITE_EPS_PRIMAL_INF, PROXSUITE_INFINITY

OSQP_MAX_ITER = 100_000


class StepPoint(NamedTuple):
    """A primal-dual point: x (n,), y (n_eq,), z (n,) of the bounds, z < 0: lower side."""

    x: Floats
    y: Floats
    z: Floats


class SequencePeer(Protocol):
    """A solver set up with the first QP: steps are timed; results are read outside the clock."""

    def step(self, b: Floats) -> None:
        """Take the new right-hand side (n_eq,) and solve."""

    def point(self) -> StepPoint:
        """The last step's solution."""

    def counts(self) -> dict[str, int]:
        """What the last step took, by name; "iterations" is in the table."""


class Nbqp:
    """`nbqp.Solver`, from the previous solution if `warm`."""

    def __init__(self, sequence: Sequence, eps: float, warm: bool, method: str) -> None:
        self._solver = nbqp.Solver(
            H=sequence.H,
            g=sequence.g,
            A=sequence.A,
            b=sequence.b[0],
            lb=sequence.lb,
            ub=sequence.ub,
            settings=nbqp.Settings(eps_abs=eps, method=method),
        )
        self._warm = warm
        self._solution: nbqp.Solution | None = None

    def step(self, b: Floats) -> None:
        """Update and solve."""
        self._solver.update(b=b)
        self._solution = self._solver.solve(self._solution if self._warm else None)

    def _last(self) -> nbqp.Solution:
        if self._solution is None:
            raise RuntimeError("no step has been taken")
        return self._solution

    def point(self) -> StepPoint:
        """Read the solution."""
        solution = self._last()
        return StepPoint(solution.x, solution.y, solution.z_box)

    def counts(self) -> dict[str, int]:
        """Newton steps, outer steps, factorisations."""
        info = self._last().info
        return {
            "iterations": info.iter,
            "outer": info.iter_ext,
            "factorizations": info.factorizations,
        }


class ProxQP:
    """ProxSuite's dense solver with a box, or its sparse one, which has none, with rows of I."""

    def __init__(self, sequence: Sequence, eps: float, dense: bool, warm: bool) -> None:
        from proxsuite import proxqp

        n_eq, n = sequence.A.shape
        lb = np.maximum(sequence.lb, -PROXSUITE_INFINITY)
        ub = np.minimum(sequence.ub, PROXSUITE_INFINITY)
        self._rows = scipy.sparse.eye_array(n) if dense else sequence.bounded
        if dense:
            self._qp = proxqp.dense.QP(n, n_eq, 0, True)
        else:
            self._qp = proxqp.sparse.QP(n, n_eq, self._rows.shape[0])
        settings = self._qp.settings
        settings.eps_abs, settings.eps_rel = eps, 0.0
        settings.check_duality_gap = True
        settings.eps_duality_gap_abs, settings.eps_duality_gap_rel = eps, 0.0
        settings.eps_primal_inf = PROXSUITE_EPS_PRIMAL_INF
        # Not before a first result: without one the dense solver crashes.
        self._next_guess = (
            proxqp.InitialGuess.WARM_START_WITH_PREVIOUS_RESULT if warm else settings.initial_guess
        )
        g, b = sequence.g, sequence.b[0]
        if dense:
            H, A = sequence.H.toarray(), sequence.A.toarray()
            self._qp.init(H, g, A, b, None, None, None, lb, ub)
        else:
            H, A, C = map(scipy.sparse.csc_matrix, (sequence.H, sequence.A, self._rows))
            self._qp.init(H, g, A, b, C, C @ lb, C @ ub)

    def step(self, b: Floats) -> None:
        """Update and solve."""
        self._qp.update(b=b)
        self._qp.solve()
        self._qp.settings.initial_guess = self._next_guess

    def point(self) -> StepPoint:
        """Read the solution."""
        results = self._qp.results
        return StepPoint(
            np.array(results.x), np.array(results.y), self._rows.T @ np.array(results.z)
        )

    def counts(self) -> dict[str, int]:
        """Newton steps, outer steps, changes of the penalties."""
        info = self._qp.results.info
        return {"iterations": info.iter, "outer": info.iter_ext, "penalties": info.mu_updates}


class Osqp:
    """OSQP, with the rows of A and those of I for bounded variables."""

    def __init__(self, sequence: Sequence, eps: float, warm: bool) -> None:
        import osqp

        self._n_eq = sequence.A.shape[0]
        self._rows = sequence.bounded
        rows = scipy.sparse.csc_matrix(scipy.sparse.vstack([sequence.A, self._rows]))
        self._lower = np.concatenate([sequence.b[0], self._rows @ sequence.lb])
        self._upper = np.concatenate([sequence.b[0], self._rows @ sequence.ub])
        self._solver = osqp.OSQP()
        self._solver.setup(
            scipy.sparse.csc_matrix(sequence.H),
            sequence.g,
            rows,
            self._lower,
            self._upper,
            eps_abs=eps,
            eps_rel=0.0,
            max_iter=OSQP_MAX_ITER,
            warm_starting=warm,
            verbose=False,
        )

    def step(self, b: Floats) -> None:
        """Update and solve."""
        self._lower[: self._n_eq] = b
        self._upper[: self._n_eq] = b
        self._solver.update(l=self._lower, u=self._upper)
        self._results = self._solver.solve(raise_error=False)

    def point(self) -> StepPoint:
        """Read the solution."""
        y, z = np.split(np.array(self._results.y), [self._n_eq])
        return StepPoint(np.array(self._results.x), y, self._rows.T @ z)

    def counts(self) -> dict[str, int]:
        """ADMM iterations, changes of the penalty."""
        info = self._results.info
        return {"iterations": info.iter, "penalties": info.rho_updates}


class Piqp:
    """PIQP's sparse solver, by the general LDL or by the stages of the control problem."""

    def __init__(self, sequence: Sequence, eps: float, stages: bool) -> None:
        import piqp

        self._solver = piqp.SparseSolver()
        settings = self._solver.settings
        settings.eps_abs, settings.eps_rel = eps, 0.0
        settings.check_duality_gap = True
        settings.eps_duality_gap_abs, settings.eps_duality_gap_rel = eps, 0.0
        if stages:
            settings.kkt_solver = piqp.KKTSolver.sparse_multistage
        H, A = map(scipy.sparse.csc_matrix, (sequence.H, sequence.A))
        self._solver.setup(H, sequence.g, A, sequence.b[0], x_l=sequence.lb, x_u=sequence.ub)

    def step(self, b: Floats) -> None:
        """Update and solve."""
        self._solver.update(b=b)
        self._solver.solve()

    def point(self) -> StepPoint:
        """Read the solution."""
        result = self._solver.result
        z = np.array(result.z_bu) - np.array(result.z_bl)
        return StepPoint(np.array(result.x), np.array(result.y), z)

    def counts(self) -> dict[str, int]:
        """Interior-point steps."""
        return {"iterations": self._solver.result.info.iter}


OURS = "nbqp, warm"
PEERS: dict[str, Callable[[Sequence, float], SequencePeer]] = {
    OURS: functools.partial(Nbqp, warm=True, method="auto"),
    "nbqp, cold": functools.partial(Nbqp, warm=False, method="auto"),
    "nbqp, warm, semismooth": functools.partial(Nbqp, warm=True, method="semismooth"),
    "ProxQP sparse, warm": functools.partial(ProxQP, dense=False, warm=True),
    "ProxQP sparse, cold": functools.partial(ProxQP, dense=False, warm=False),
    "ProxQP dense, warm": functools.partial(ProxQP, dense=True, warm=True),
    "ProxQP dense, cold": functools.partial(ProxQP, dense=True, warm=False),
    "OSQP, warm": functools.partial(Osqp, warm=True),
    "OSQP, cold": functools.partial(Osqp, warm=False),
    "PIQP, cold": functools.partial(Piqp, stages=False),
    "PIQP stages, cold": functools.partial(Piqp, stages=True),
}
NOTES = (
    "nbqp: `Solver.update(b=...)`, then `solve`, whose iterations are Newton steps. Warm is from the "
    'previous solution, with method="semismooth" where it says so.',
    "ProxQP: WARM_START_WITH_PREVIOUS_RESULT, or the default initial guess where cold; Newton steps; "
    f"eps_primal_inf = {PROXSUITE_EPS_PRIMAL_INF:g}. The sparse solver has bounds as rows of C.",
    "OSQP: warm_starting=True or False; ADMM iterations, at most "
    f"{OSQP_MAX_ITER}. Cold, it keeps the penalty of the QP before.",
    "PIQP: has no warm start; interior-point steps; stages: kkt_solver=sparse_multistage.",
)
