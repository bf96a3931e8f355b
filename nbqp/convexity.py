"""The check that H is positive semidefinite, before a solve."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nbqp.analysis import Analysis
from nbqp.execution import takes_lanes
from nbqp.kernels.convexity import TOLERANCE, mark_nonconvex, mark_nonconvex_lanes
from nbqp.problem import QP
from nbqp.threads import split_range, thread_count


def find_nonconvex(qp: QP, analysis: Analysis, threads: int | None = None) -> npt.NDArray[np.bool_]:
    """Which samples (batch,) have an H with an eigenvalue below -1e-10 times its largest entry."""
    H = qp.H.values
    if H.shape[1] == 0:
        return np.zeros(qp.batch, dtype=np.bool_)
    if _is_diagonal(qp):
        nonconvex = H.min(axis=1) < -TOLERANCE * np.abs(H).max(axis=1)
    else:
        nonconvex = np.zeros(len(H), dtype=np.bool_)

        lanes = takes_lanes(qp, analysis) and qp.has_batch_axis("H")

        def run(begin: int, end: int) -> None:
            if lanes:
                mark_nonconvex_lanes(*analysis, H, begin, end, nonconvex)
            else:
                mark_nonconvex(*analysis, H, begin, end, nonconvex)

        split_range(run, len(H), thread_count(len(H), threads))
    found: npt.NDArray[np.bool_] = nonconvex & ~qp.invalid
    return found


def _is_diagonal(qp: QP) -> bool:
    """Whether H has no entry off its diagonal."""
    p, i = qp.H.p, qp.H.i
    return len(i) <= qp.n and np.array_equal(np.repeat(np.arange(qp.n), np.diff(p)), i)
