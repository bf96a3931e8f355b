"""What a solve returns: a point, a status, and residuals computed from the data alone."""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple

import numpy as np

from nbqp.kernels import status as codes
from nbqp.kernels.residuals import batch_residuals
from nbqp.kernels.structure import Floats
from nbqp.problem import QP
from nbqp.settings import Settings


class Status(enum.Enum):
    """How a solve ended; SOLVED and SOLVED_CLOSEST_PRIMAL_FEASIBLE come with a solution.

    Attributes
    ----------
    SOLVED
        The residuals are within the tolerances.
    SOLVED_CLOSEST_PRIMAL_FEASIBLE
        So are those of the QP with its sides moved by the shifts; as given it is infeasible.
    MAX_ITER_REACHED, TIME_LIMIT_REACHED
        A limit of the settings ended the solve.
    PRIMAL_INFEASIBLE, DUAL_INFEASIBLE
        No feasible point, or no bounded objective; a `Certificate` proves it.
    NONCONVEX
        H of this sample has a negative eigenvalue.
    INVALID_DATA
        The sample has NaN, infinite entries, crossed bounds or an H that is not symmetric.
    NUMERICAL_ERROR
        No phase made further progress.
    NOT_RUN
        The time was over before the sample began.
    """

    SOLVED = codes.SOLVED
    MAX_ITER_REACHED = codes.MAX_ITER_REACHED
    TIME_LIMIT_REACHED = codes.TIME_LIMIT_REACHED
    PRIMAL_INFEASIBLE = codes.PRIMAL_INFEASIBLE
    SOLVED_CLOSEST_PRIMAL_FEASIBLE = codes.SOLVED_CLOSEST_PRIMAL_FEASIBLE
    DUAL_INFEASIBLE = codes.DUAL_INFEASIBLE
    NONCONVEX = codes.NONCONVEX
    INVALID_DATA = codes.INVALID_DATA
    NUMERICAL_ERROR = codes.NUMERICAL_ERROR
    NOT_RUN = codes.NOT_RUN


STATUSES = np.array(sorted(Status, key=lambda status: status.value), dtype=object)
"""The `Status` of each value, from 0 on."""


class Certificate(NamedTuple):
    """A proof of infeasibility to within `Settings.eps_primal_inf` or `eps_dual_inf`.

    Primal, with x = 0:

        A'y + C'z + z_box = 0,   b'y + u'z_+ - l'z_- + ub'z_box_+ - lb'z_box_- < 0

    Dual, with y, z, z_box = 0:

        Hx = 0,   Ax = 0,   g'x < 0,   Cx and x <= 0 where the upper side is finite,
                                                >= 0 where the lower side is

    Attributes
    ----------
    x, y, z, z_box
        float64 of n, n_eq, n_in and n entries, the largest magnitude among them 1. In a
        `BatchSolution` with a leading batch axis, and zero for samples that have no certificate.
    """

    x: Floats
    y: Floats
    z: Floats
    z_box: Floats


@dataclasses.dataclass(frozen=True)
class Info:
    """What a solve took, and how far its point is from a solution.

    Attributes
    ----------
    iter : int
        Newton steps of all phases.
    iter_ext : int
        Outer (proximal) steps of the semismooth and the closest feasible phases.
    factorizations : int
        Of the KKT matrix: one a Newton step, and those for starting points and repetitions.
    pri_res, dua_res, duality_gap : float
        What `Solution.primal_residual`, `dual_residual` and `duality_gap` return. NaN where
        nothing was solved.
    run_time : float
        Seconds of wall-clock time, without validation and the analysis of the pattern.
    """

    iter: int
    iter_ext: int
    factorizations: int
    pri_res: float
    dua_res: float
    duality_gap: float
    run_time: float


@dataclasses.dataclass(frozen=True)
class Solution:
    """A primal-dual point of a QP; on a failure the best one found, never a certificate.

        Hx + g + A'y + C'z + z_box = 0,   Ax - s_e = b,   l <= Cx - s_i <= u,   lb <= x - s_box <= ub

    Attributes
    ----------
    problem : QP
        The data, in the solver's form.
    x : (n,) float64
    y, z, z_box : (n_eq,), (n_in,), (n,) float64
        Multipliers: z > 0 holds on to an upper side, z < 0 to a lower one; exactly 0 where that
        side is infinite.
    s_e, s_i, s_box : (n_eq,), (n_in,), (n,) float64
        Shifts, in the units of the sides: 0 unless the closest feasible QP was solved.
    status : Status
    info : Info
    settings : Settings
        Those of the solve.
    certificate : Certificate or None
        With the status PRIMAL_INFEASIBLE or DUAL_INFEASIBLE.
    """

    problem: QP
    x: Floats
    y: Floats
    z: Floats
    z_box: Floats
    s_e: Floats
    s_i: Floats
    s_box: Floats
    status: Status
    info: Info
    settings: Settings
    certificate: Certificate | None = None

    def __repr__(self) -> str:
        """Status, sizes and `info`: the arrays would fill a screen."""
        sizes = f"n={len(self.x)}, n_eq={len(self.y)}, n_in={len(self.z)}"
        return f"Solution(status={self.status.name}, {sizes}, info={self.info})"

    def _residuals(self) -> Floats:
        res: Floats = np.empty((1, 3))
        point = self.x[None], self.y[None], self.z[None], self.z_box[None]
        shifts = self.s_e[None], self.s_i[None], self.s_box[None]
        batch_residuals(self.problem.pattern(), self.problem.data(), *point, *shifts, res)
        return res.reshape(3)

    def primal_residual(self) -> float:
        """Max violation of Ax - s_e = b, l <= Cx - s_i <= u, lb <= x - s_box <= ub, from the data."""
        return float(self._residuals()[0])

    def dual_residual(self) -> float:
        """Max |Hx + g + A'y + C'z + z_box|, from the data."""
        return float(self._residuals()[1])

    def duality_gap(self) -> float:
        """Objective of the primal less that of the dual, both with the shifted sides, from the data.

        |x'Hx + g'x + (b + s_e)'y + (u + s_i)'z_+ - (l + s_i)'z_-
         + (ub + s_box)'z_box_+ - (lb + s_box)'z_box_-|,      z_+ = max(z, 0), z_- = max(-z, 0)
        """
        return float(abs(self._residuals()[2]))
