"""Running the compiled solver on one QP or a batch: its inputs, its outputs, threads and limits."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from nbqp.analysis import Analysis
from nbqp.errors import ShapeError
from nbqp.kernels.proxqp import GAP_ROUNDING, solve_range
from nbqp.kernels.scaling import shared_scaling
from nbqp.kernels.side_by_side import MOST_STEPS, solve_lanes_range
from nbqp.kernels.state import Options
from nbqp.kernels.status import ABORTED, INVALID_DATA, NOT_RUN
from nbqp.kernels.structure import Output, Point, Scaling
from nbqp.problem import QP, numbers
from nbqp.settings import METHODS, Settings
from nbqp.threads import split_range, split_range_watched, thread_count

LONG = 0.5
"""Seconds: a call that may take longer, if all Newton steps are taken, minds Ctrl-C."""

LANES_NNZ = 2**15
"""Above this many values of a factor, vectors of eight factors (2 MiB) outgrow the caches."""

SPARE = 10
"""A batch takes lanes where max_iter is at least this many times their steps, which count in it."""

_loaded: set[Any] = set()


def run_solves(
    qp: QP,
    analysis: Analysis,
    settings: Settings,
    warm: Point,
    threads: int | None,
    refused: dict[int, npt.NDArray[np.bool_]] | None = None,
    scaling: Scaling | None = None,
) -> tuple[Output, float]:
    """Solve all samples of `qp`, and time it.

    Samples with invalid data, and those that `refused` marks with a status, are not solved: they
    have NaN throughout. scaling: of the matrices, where it is known.
    """
    out = new_output((qp.n, qp.n_eq, qp.n_in, qp.n), qp.batch)
    for code, samples in {INVALID_DATA: qp.invalid, **(refused or {})}.items():
        if samples.any():
            out.status[samples] = code
            for array in (*out[:7], out.residuals):
                array[samples] = np.nan
    options, data = to_options(settings), qp.data()
    if scaling is None:
        scaling = shared_or_own_scaling(qp)
    abort = np.zeros(1, dtype=np.int64)

    lanes = takes_lanes(qp, analysis) and _smoothed_from_cold(settings)

    def run_kernel(kernel: Any, begin: int, end: int) -> None:
        kernel(*analysis, data, scaling, warm, options, abort, begin, end, out)

    def run(begin: int, end: int) -> None:
        if lanes:
            run_kernel(solve_lanes_range, begin, end)
        # Most batches are done then, and the other kernel need not even be compiled.
        if not lanes or (abort[0] == 0 and (out.status[begin:end] == NOT_RUN).any()):
            run_kernel(solve_range, begin, end)

    timed = settings.time_limit < math.inf
    needed = {solve_lanes_range: lanes, solve_range: timed or not lanes}
    for kernel, used in needed.items():
        if used and kernel not in _loaded:
            # Compiling a kernel, or loading it, is no part of a solve: the clock has not started.
            run_kernel(kernel, 0, 0)
            _loaded.add(kernel)
    count = thread_count(qp.batch, threads)
    # Above the time of a step that docs/benchmarks.md fits.
    step = 1e-6 * float(analysis.factor.val_ptr[-1]) ** 0.75
    long = qp.batch * settings.max_iter * step > LONG
    in_main_thread = threading.current_thread() is threading.main_thread()
    start = time.perf_counter()
    if timed or (in_main_thread and long):
        split_range_watched(run, qp.batch, count, settings.time_limit, abort)
    else:
        split_range(run, qp.batch, count)
    if abort[0] != 0:
        # Begun in a lane, and left there.
        out.status[(out.status == NOT_RUN) & (out.iter > 0)] = ABORTED
    return out, time.perf_counter() - start


def takes_lanes(qp: QP, analysis: Analysis) -> bool:
    """Whether the samples of a batch are worked on eight at a time.

    That depends on the pattern and not on their number: otherwise a sample's results would, too.
    """
    return qp.is_batch and bool(analysis.factor.val_ptr[-1] <= LANES_NNZ)


def _smoothed_from_cold(settings: Settings) -> bool:
    """Whether samples without a warm start begin with the smoothed phase, and have time to end in it."""
    return (
        settings.method != "semismooth"
        and not settings.primal_infeasibility_solving
        and settings.max_iter >= SPARE * MOST_STEPS
    )


def find_scaling(qp: QP) -> Scaling:
    """The scaling of a QP's matrices, which have no batch axis."""
    scaling = Scaling(*(np.empty((1, size)) for size in (qp.n, qp.n_eq, qp.n_in)))
    shared_scaling(qp.pattern(), qp.H.values[0], qp.A.values[0], qp.C.values[0], scaling)
    return scaling


def shared_or_own_scaling(qp: QP) -> Scaling:
    """One scaling for a batch that shares its matrices, otherwise none: each sample finds its own."""
    if qp.batch > 1 and len(qp.H.values) == len(qp.A.values) == len(qp.C.values) == 1:
        return find_scaling(qp)
    return Scaling(*(np.zeros((0, size)) for size in (qp.n, qp.n_eq, qp.n_in)))


def to_options(settings: Settings) -> Options:
    """The scalars of the settings as kernels take them."""
    return Options(
        settings.eps_abs,
        settings.eps_rel,
        settings.check_duality_gap,
        settings.max_iter,
        settings.eps_primal_inf,
        settings.eps_dual_inf,
        METHODS[settings.method],
        settings.primal_infeasibility_solving,
        GAP_ROUNDING,
    )


def new_output(sizes: tuple[int, int, int, int], batch: int) -> Output:
    """Rows of results for `batch` samples that have not run."""
    x, y, z, z_box = (np.zeros((batch, size)) for size in sizes)
    s_e, s_i, s_box = (np.zeros((batch, size)) for size in sizes[1:])
    certificate_x, certificate_y, certificate_z, certificate_z_box = (
        np.zeros((batch, size)) for size in sizes
    )
    counts = [np.zeros(batch, dtype=np.int64) for _ in range(3)]
    return Output(
        x=x,
        y=y,
        z=z,
        z_box=z_box,
        s_e=s_e,
        s_i=s_i,
        s_box=s_box,
        status=np.full(batch, NOT_RUN, dtype=np.int64),
        residuals=np.full((batch, 3), np.nan),
        iter=counts[0],
        iter_ext=counts[1],
        factorizations=counts[2],
        certificate_x=certificate_x,
        certificate_y=certificate_y,
        certificate_z=certificate_z,
        certificate_z_box=certificate_z_box,
    )


def to_warm_start(start: Any, sizes: tuple[int, int, int, int], batch: int | None) -> Point:
    """Starting points (batch, size) from a solution or from (x, y, z, z_box); none for None.

    batch: None where the arrays have no batch axis. A sample of a solution that failed with NaN has none
    to start from: its x is NaN.
    """
    if start is None:
        return Point(*(np.zeros((0, size)) for size in sizes))
    names = ("x", "y", "z", "z_box")
    from_solution = all(hasattr(start, name) for name in names)
    if from_solution:
        start = tuple(getattr(start, name) for name in names)
    if not isinstance(start, (tuple, list)) or len(start) != len(names):
        raise ShapeError(
            f"warm_start: expected a solution or (x, y, z, z_box), got {type(start).__name__}."
        )
    parts = []
    for name, part, size in zip(names, start, sizes, strict=True):
        array = numbers("warm_start", part)
        shape = (size,) if batch is None else (batch, size)
        if array.shape != shape:
            raise ShapeError(f"warm_start: expected {name} of shape {shape}, got {array.shape}.")
        if not from_solution and not np.isfinite(array).all():
            raise ShapeError(f"warm_start: expected finite {name}, got NaN or infinite entries.")
        parts.append(array.reshape(1 if batch is None else batch, size))
    failed = np.any([~np.isfinite(part).all(axis=1) for part in parts], axis=0)
    if failed.any():
        parts[0] = np.where(failed[:, None], np.nan, parts[0])
    return Point(*parts)
