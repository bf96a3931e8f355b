"""nbqp as a solver of the package qpsolvers (Caron): `register`, then `solver="nbqp"`.

qpsolvers states a QP as min 1/2 x'Px + q'x, Gx <= h, Ax = b, lb <= x <= ub: H = P, g = q, C = G, u = h,
and multipliers of the same signs. Nothing else of nbqp imports it.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np
import qpsolvers
from qpsolvers import available_solvers, dense_solvers, sparse_solvers

from nbqp.errors import QPError, SettingsError
from nbqp.kernels.structure import Floats
from nbqp.settings import Settings
from nbqp.solution import Status
from nbqp.solver import solve_qp

NAME = "nbqp"


def register() -> None:
    """Add "nbqp" to the solvers of qpsolvers, dense and sparse, for the rest of the process.

    Notes
    -----
    qpbenchmark has a list of its own: `SolverSettings.IMPLEMENTED_SOLVERS.add("nbqp")`, and
    `set_param("nbqp", "eps_abs", ...)` for each of a test set's settings.

    Examples
    --------
    >>> import numpy as np, qpsolvers
    >>> from nbqp.qpsolvers import register
    >>> register()
    >>> P, q = np.eye(2), np.array([-1.0, 1.0])
    >>> qpsolvers.solve_qp(P, q, lb=np.zeros(2), solver="nbqp", eps_abs=1e-9).round(6)
    array([1., 0.])
    """
    # The table that qpsolvers.solve_problem looks in; before 4.11 that of qpsolvers.solvers is another one.
    table = importlib.import_module("qpsolvers.solve_problem").solve_function
    table[NAME] = solve_problem
    for names in (available_solvers, dense_solvers, sparse_solvers):
        if NAME not in names:
            names.append(NAME)


def solve_problem(
    problem: qpsolvers.Problem,
    initvals: Floats | None = None,
    verbose: bool = False,
    **settings: Any,
) -> qpsolvers.Solution:
    """Solve a problem of qpsolvers; what `qpsolvers.solve_problem(problem, "nbqp")` calls.

    Parameters
    ----------
    problem
        Matrices dense or scipy.sparse, P symmetric positive semidefinite.
    initvals
        A point x (n,) to start from, with multipliers of 0.
    verbose
        Whether to print a line.
    **settings
        Those of `nbqp.Settings`: eps_abs=1e-9, time_limit=1.0, ...

    Returns
    -------
    qpsolvers.Solution
        found where the status is SOLVED, otherwise without a point. `extras["solution"]` is the
        `nbqp.Solution` with status, certificate and best point, which `vjp`, `jvp` and `jacobian` take.

    Raises
    ------
    qpsolvers.ParamError
        There is no such setting, or it is out of its range.
    qpsolvers.ProblemError
        The data or initvals are none that `nbqp.solve_qp` takes, or P is not convex.
    """
    start = time.perf_counter()
    try:
        chosen = Settings(verbose=verbose, **settings)
    except (SettingsError, TypeError) as error:
        raise qpsolvers.ParamError(str(error)) from error
    try:
        found = solve_qp(
            problem.P,
            problem.q,
            problem.A,
            problem.b,
            problem.G,
            None,
            problem.h,
            problem.lb,
            problem.ub,
            settings=chosen,
            warm_start=None if initvals is None else _start(problem, initvals),
        )
    except QPError as error:
        raise qpsolvers.ProblemError(str(error)) from error
    solution = qpsolvers.Solution(problem, extras={"solution": found})
    solution.found = found.status is Status.SOLVED
    solution.solve_time = found.info.run_time
    solution.build_time = time.perf_counter() - start - found.info.run_time
    if solution.found:
        bounded = problem.lb is not None or problem.ub is not None
        solution.x, solution.y, solution.z = found.x, found.y, found.z
        solution.z_box = found.z_box if bounded else np.empty(0)
        solution.obj = float(0.5 * found.x @ (problem.P @ found.x) + problem.q @ found.x)
    return solution


def _start(problem: qpsolvers.Problem, x: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """The point with multipliers of 0."""
    n_eq, n_in = (0 if M is None else M.shape[0] for M in (problem.A, problem.G))
    return x, np.zeros(n_eq), np.zeros(n_in), np.zeros(len(problem.q))
