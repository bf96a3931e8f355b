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
    """How a solve ended; SOLVED and SOLVED_CLOSEST_PRIMAL_FEASIBLE come with a solution."""

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


class Certificate(NamedTuple):
    """A proof of infeasibility, its largest entry 1; zeros in the parts that do not take part.

    Primal: (y, z, z_box) with A'y + C'z + z_box = 0 and b'y + u'z_+ - l'z_- + ... < 0.
    Dual: x with Hx = 0, Ax = 0, g'x < 0 that leaves no finite side.
    """

    x: Floats
    y: Floats
    z: Floats
    z_box: Floats


@dataclasses.dataclass(frozen=True)
class Info:
    """Counts and residuals of a solve, as its kernel saw them."""

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

    Hx + g + A'y + C'z + z_box = 0; z > 0 holds on to an upper side, z < 0 to a lower one.
    Ax - s_e = b, l <= Cx - s_i <= u, lb <= x - s_box <= ub: the shifts are 0 unless the closest feasible
    QP was solved.
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
        """|x'Hx + g'x + b'y + u'z_+ - l'z_- + ub'z_box_+ - lb'z_box_-|, from the data."""
        return float(abs(self._residuals()[2]))
