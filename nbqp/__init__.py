"""Sparse convex quadratic programs, solved by Numba kernels (the PROX-QP method)."""

from nbqp.batch import BatchInfo, BatchSolution, solve_batch
from nbqp.derivative import Gradients, Tangents, jvp, vjp
from nbqp.errors import (
    DataError,
    NonconvexError,
    PatternError,
    QPError,
    SettingsError,
    ShapeError,
    SymmetryError,
    TooLargeError,
    UnsolvedError,
)
from nbqp.jacobian import jacobian
from nbqp.settings import Settings
from nbqp.solution import Certificate, Info, Solution, Status
from nbqp.solver import Solver, solve_qp
from nbqp.sparse import Sparse
from nbqp.warmup import warmup

__version__ = "0.1.0"

__all__ = [
    "BatchInfo",
    "BatchSolution",
    "Certificate",
    "DataError",
    "Gradients",
    "Info",
    "NonconvexError",
    "PatternError",
    "QPError",
    "Settings",
    "SettingsError",
    "ShapeError",
    "Solution",
    "Solver",
    "Sparse",
    "Status",
    "SymmetryError",
    "Tangents",
    "TooLargeError",
    "UnsolvedError",
    "jacobian",
    "jvp",
    "solve_batch",
    "solve_qp",
    "vjp",
    "warmup",
]
