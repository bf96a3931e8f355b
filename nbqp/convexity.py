"""The check that H is positive semidefinite, before a solve."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nbqp.analysis import FACTORISATION, Analysis
from nbqp.execution import takes_lanes
from nbqp.kernels.convexity import (
    LEAST_DIAGONAL,
    TOLERANCE,
    mark_nonconvex,
    mark_nonconvex_lanes,
)
from nbqp.kernels.vector import WIDTH
from nbqp.problem import QP
from nbqp.threads import split_range_watched, thread_count
from nbqp.watch import OutOfTime, Watch

CHECKS = 10
"""So many of these take as long as a solve, about."""


def find_nonconvex(
    qp: QP, analysis: Analysis, watch: Watch, threads: int | None = None
) -> npt.NDArray[np.bool_]:
    """Which samples (batch,) have an H that is indefinite beyond its rounding.

    That is H + 1e-10 D with D_ii = max(|H_ii|, 1e-3 max|H|) is not positive definite.

    Raises
    ------
    OutOfTime
        The watch's time limit has struck.
    """

    def judge() -> npt.NDArray[np.bool_]:
        return _find_nonconvex(qp, analysis, watch, threads)

    nonconvex = judge() if qp.has_batch_axis("H") else qp.found.find("nonconvex", judge)
    found: npt.NDArray[np.bool_] = nonconvex & ~qp.invalid
    return found


def _find_nonconvex(
    qp: QP, analysis: Analysis, watch: Watch, threads: int | None
) -> npt.NDArray[np.bool_]:
    """Of each H (1 or batch,), whatever data are invalid."""
    H = qp.H.values
    if H.shape[1] == 0:
        return np.zeros(1, dtype=np.bool_)
    if _is_diagonal(qp):
        diagonal: npt.NDArray[np.bool_] = H.min(axis=1) < -TOLERANCE * LEAST_DIAGONAL * np.abs(
            H
        ).max(axis=1)
        return diagonal
    nonconvex = np.zeros(len(H), dtype=np.bool_)
    lanes = takes_lanes(qp, analysis) and qp.has_batch_axis("H")
    kernel: Callable[..., None] = mark_nonconvex_lanes if lanes else mark_nonconvex

    def run(begin: int, end: int) -> None:
        kernel(*analysis, H, watch.abort, begin, end, nonconvex)

    seconds = len(H) * FACTORISATION * analysis.step_time
    at_once = WIDTH if lanes else 1
    count = thread_count(len(H), threads, len(H) * analysis.solve_time / CHECKS, at_once)
    split_range_watched(run, len(H), count, watch, seconds, kernel)
    if watch.stopped():
        raise OutOfTime
    return nonconvex


def _is_diagonal(qp: QP) -> bool:
    """Whether H has no entry off its diagonal."""
    p, i = qp.H.p, qp.H.i
    return len(i) <= qp.n and np.array_equal(np.repeat(np.arange(qp.n), np.diff(p)), i)
