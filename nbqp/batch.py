"""Many QPs of one pattern: one analysis, a thread pool, a status per sample."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter

import numpy as np
import numpy.typing as npt

from nbqp.analysis import analyse_qp
from nbqp.convexity import find_nonconvex
from nbqp.execution import new_output, read_qp, refuse, run_solves, to_warm_start
from nbqp.kernels.residuals import batch_residuals
from nbqp.kernels.status import NONCONVEX
from nbqp.kernels.structure import Floats, Ints, Output
from nbqp.problem import QP, Matrix, Vector
from nbqp.settings import Settings, to_settings
from nbqp.solution import STATUSES, Certificate
from nbqp.watch import OutOfTime, Watch, start_watch


@dataclasses.dataclass(frozen=True)
class BatchInfo:
    """The counts and residuals of `Info` per sample, and the run time of the batch.

    Attributes
    ----------
    iter, iter_ext, factorizations : (batch,) int64
    pri_res, dua_res, duality_gap : (batch,) float64
    run_time : float
        Seconds of wall-clock time, as in `Info`.
    """

    iter: Ints
    iter_ext: Ints
    factorizations: Ints
    pri_res: Floats
    dua_res: Floats
    duality_gap: Floats
    run_time: float


@dataclasses.dataclass(frozen=True)
class BatchSolution:
    """The fields of a `Solution` with a leading batch axis.

    Attributes
    ----------
    problem : QP
        The data of all samples, in the solver's form.
    x : (batch, n) float64
    y, z, z_box : (batch, n_eq), (batch, n_in), (batch, n) float64
    s_e, s_i, s_box : (batch, n_eq), (batch, n_in), (batch, n) float64
        NaN, as x and the multipliers, where the status is INVALID_DATA or NONCONVEX.
    status : (batch,) object
        A `Status` per sample.
    info : BatchInfo
    settings : Settings
        Those of the solve.
    certificate : Certificate
        Of the infeasible samples.
    """

    problem: QP
    x: Floats
    y: Floats
    z: Floats
    z_box: Floats
    s_e: Floats
    s_i: Floats
    s_box: Floats
    status: npt.NDArray[np.object_]
    info: BatchInfo
    settings: Settings
    certificate: Certificate

    def __repr__(self) -> str:
        """How many samples have which status, and sizes: the arrays would fill a screen."""
        counts = Counter(status.name for status in self.status)
        sizes = f"n={self.x.shape[1]}, n_eq={self.y.shape[1]}, n_in={self.z.shape[1]}"
        return f"BatchSolution(status={dict(counts)}, {sizes}, run_time={self.info.run_time:.3g})"

    def _residuals(self) -> Floats:
        qp = self.problem
        res: Floats = np.full((qp.batch, 3), np.nan)
        point = self.x, self.y, self.z, self.z_box
        shifts = self.s_e, self.s_i, self.s_box
        batch_residuals(qp.pattern(), qp.data(), *point, *shifts, res)
        return np.where(qp.invalid[:, None], np.nan, np.abs(res))

    def primal_residual(self) -> Floats:
        """Per sample: max violation of Ax - s_e = b, l <= Cx - s_i <= u, lb <= x - s_box <= ub."""
        return self._residuals()[:, 0]

    def dual_residual(self) -> Floats:
        """Per sample: max |Hx + g + A'y + C'z + z_box|, from the data."""
        return self._residuals()[:, 1]

    def duality_gap(self) -> Floats:
        """Per sample: the gap of `Solution.duality_gap`, from the data."""
        return self._residuals()[:, 2]


BatchStart = BatchSolution | tuple[Floats, Floats, Floats, Floats]


@functools.cache
def _load() -> None:
    """Compile the kernels of a batch, or load them."""
    H, g = np.array([[2.0, 1.0], [1.0, 2.0]]), np.ones((1, 2))
    solve_batch(H[None], g)
    solve_batch(H, g, settings=Settings(method="semismooth"))


def solve_batch(
    H: Matrix = None,
    g: Vector = None,
    A: Matrix = None,
    b: Vector = None,
    C: Matrix = None,
    l: Vector = None,
    u: Vector = None,
    lb: Vector = None,
    ub: Vector = None,
    *,
    settings: Settings | None = None,
    warm_start: BatchStart | None = None,
    threads: int | None = None,
) -> BatchSolution:
    """Solve a batch of QPs; see `solve_qp` for the problem.

    Parameters
    ----------
    H, g, A, b, C, l, u, lb, ub
        As in `solve_qp`; any dense one, and a `Sparse`, may carry a leading batch axis, the others are
        shared. A shared matrix has the pattern of its nonzeros, a dense one with a batch axis is taken as full.
    settings
        See `Settings`.
    warm_start
        A previous `BatchSolution`, or (x, y, z, z_box) with a leading batch axis.
    threads
        At most this many threads; None: as many as there are processors. Results do not depend
        on it.

    Returns
    -------
    BatchSolution
        A sample that fails has its own status and harms no other.

    Raises
    ------
    ShapeError
        An argument has the wrong shape or type, or batch sizes differ.
    DataError, SymmetryError
        A shared argument has a bad value. A bad value of a single sample is its status.
    SettingsError
        `settings` or `threads` is of the wrong type or out of its range.
    TooLargeError
        The batch, or its results, would take more memory than there is.

    Examples
    --------
    >>> import numpy as np, nbqp
    >>> sol = nbqp.solve_batch(np.eye(2), np.array([[-1.0, 1.0], [-2.0, -3.0]]), lb=0.0)
    >>> sol.x.round(6)
    array([[1., 0.],
           [2., 3.]])
    """
    settings = to_settings(settings)
    watch = start_watch(settings.time_limit, _load)
    arguments = {"H": H, "g": g, "A": A, "b": b, "C": C, "l": l, "u": u, "lb": lb, "ub": ub}
    qp = read_qp(arguments, batch=True)
    out, run_time = solve_samples(qp, settings, warm_start, watch, threads)
    info = BatchInfo(
        out.iter,
        out.iter_ext,
        out.factorizations,
        out.residuals[:, 0],
        out.residuals[:, 1],
        np.abs(out.residuals[:, 2]),
        run_time,
    )
    status = STATUSES[out.status]
    certificate = Certificate(
        out.certificate_x, out.certificate_y, out.certificate_z, out.certificate_z_box
    )
    return BatchSolution(qp, *out[:7], status, info, settings, certificate)


def solve_samples(
    qp: QP,
    settings: Settings,
    warm_start: BatchStart | None,
    watch: Watch | None = None,
    threads: int | None = None,
) -> tuple[Output, float]:
    """What kernels write of a batch, its statuses as integers, and seconds; see `solve_batch`.

    watch: started with the call, None where that is this one.
    """
    watch = watch or start_watch(settings.time_limit, _load)
    warm = to_warm_start(warm_start, (qp.n, qp.n_eq, qp.n_in, qp.n), qp.batch)
    out = new_output(qp)
    try:
        analysis = analyse_qp(qp, watch)
        refuse(out, find_nonconvex(qp, analysis, watch, threads), NONCONVEX)
        run_time = run_solves(qp, analysis, settings, warm, watch, threads, out)
    except OutOfTime:
        run_time = watch.elapsed()
    if settings.verbose:
        counts = Counter(status.name for status in STATUSES[out.status])
        print(f"nbqp: batch of {qp.batch} in {run_time:.3g} s: {dict(counts)}")
    return out, run_time
