"""Running the compiled solver on one QP or a batch: its inputs, its outputs, threads and limits."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from nbqp.analysis import Analysis
from nbqp.arrays import numbers
from nbqp.errors import ShapeError
from nbqp.kernels.proxqp import GAP_ROUNDING, solve_range
from nbqp.kernels.scaling import shared_scaling
from nbqp.kernels.side_by_side import MOST_STEPS, solve_lanes_range
from nbqp.kernels.state import Options
from nbqp.kernels.status import ABORTED, INVALID_DATA, NOT_RUN
from nbqp.kernels.structure import Output, Point, Scaling
from nbqp.kernels.vector import WIDTH
from nbqp.memory import NUMBER, require_memory
from nbqp.problem import QP
from nbqp.settings import METHODS, Settings
from nbqp.sparse import Sparse
from nbqp.threads import load_kernel, run_apart_if_large, split_range_watched, thread_count
from nbqp.watch import Watch

LANES_NNZ = 2**15
"""Above this many values of a factor, vectors of eight factors (2 MiB) outgrow the caches."""

LANE_SPACES = 17
"""Solves that take the memory of a thread's lanes: two workspaces for eight each, and one for one."""

RESULTS = 3
"""Arrays of the sizes of x, y, z and z_box that a sample has: its point, shifts and certificate."""

SPARE = 10
"""A batch takes lanes where max_iter is at least this many times their steps, which count in it."""


def run_solves(
    qp: QP,
    analysis: Analysis,
    settings: Settings,
    warm: Point,
    watch: Watch,
    threads: int | None,
    out: Output,
) -> float:
    """Solve the samples of `qp` that are NOT_RUN in `out`; returns the seconds that it took."""
    options, data, abort = to_options(settings), qp.data(), watch.abort
    scaling = shared_or_own_scaling(qp, watch)
    lanes = takes_lanes(qp, analysis) and _leaves_time_for_lanes(settings)

    def run_kernel(kernel: Any, begin: int, end: int) -> None:
        kernel(*analysis, data, scaling, warm, options, abort, begin, end, out)

    def run(begin: int, end: int) -> None:
        if lanes:
            run_kernel(solve_lanes_range, begin, end)
        # Most batches are done then, and the other kernel need not even be compiled.
        if not lanes or (abort[0] == 0 and (out.status[begin:end] == NOT_RUN).any()):
            run_kernel(solve_range, begin, end)

    at_once = WIDTH if lanes else 1
    count = thread_count(qp.batch, threads, qp.batch * analysis.solve_time, at_once)
    workspaces = count * (LANE_SPACES if lanes else 1)
    require_memory("solve", workspaces * analysis.solve_size)
    seconds = qp.batch * settings.max_iter * analysis.step_time
    kernel = solve_lanes_range if lanes else solve_range
    load_kernel(kernel, run)
    start = watch.elapsed()
    split_range_watched(run, qp.batch, count, watch, seconds, kernel)
    if watch.stopped():
        # Begun in a lane, and left there.
        out.status[(out.status == NOT_RUN) & (out.iter > 0)] = ABORTED
    return watch.elapsed() - start


def takes_lanes(qp: QP, analysis: Analysis) -> bool:
    """Whether the samples of a batch are worked on eight at a time.

    That depends on the pattern and not on their number: otherwise a sample's results would, too.
    """
    return qp.is_batch and analysis.values <= LANES_NNZ


def _leaves_time_for_lanes(settings: Settings) -> bool:
    """Whether the method begins as lanes do, and may take as many steps as they."""
    return (
        settings.method != "semismooth"
        and not settings.primal_infeasibility_solving
        and settings.max_iter >= SPARE * MOST_STEPS
    )


def read_qp(arguments: dict[str, Any], batch: bool = False) -> QP:
    """The problem with these data, which Ctrl-C does not wait for where they are large."""
    size = NUMBER * sum(_size(arguments[name]) for name in "HAC")
    return run_apart_if_large(lambda: QP(**arguments, batch=batch), size, Watch())


def _size(matrix: Any) -> int:
    """How many numbers it holds, as far as it says; `size` of another package's array may be a method."""
    size = getattr(matrix.values if isinstance(matrix, Sparse) else matrix, "size", 0)
    return int(size) if isinstance(size, Integral) else 0


def shared_or_own_scaling(qp: QP, watch: Watch) -> Scaling:
    """One scaling for all samples that share their matrices, otherwise one for each, which a solve finds and keeps."""
    if qp.shares_matrices():
        # One that was stopped may lack sweeps: it does for what little is left of this call.
        return qp.found.find(
            "scaling", lambda: _find_scaling(qp, watch), lambda: not watch.stopped()
        )
    sizes = qp.n, qp.n_eq, qp.n_in
    return qp.found.find(
        "scaling", lambda: Scaling(*(np.zeros((qp.batch, size)) for size in sizes))
    )


def _find_scaling(qp: QP, watch: Watch) -> Scaling:
    """The scaling of a QP's matrices, which have no batch axis."""
    scaling = Scaling(*(np.empty((1, size)) for size in (qp.n, qp.n_eq, qp.n_in)))
    matrices = qp.H.values[0], qp.A.values[0], qp.C.values[0]
    size = sum(values.nbytes for values in matrices)
    run_apart_if_large(
        lambda: shared_scaling(qp.pattern(), *matrices, watch.abort, scaling), size, watch
    )
    return scaling


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


def new_output(qp: QP) -> Output:
    """Rows of results for the samples of `qp`, which have not run, or have invalid data."""
    sizes, batch = (qp.n, qp.n_eq, qp.n_in, qp.n), qp.batch
    require_memory("results", RESULTS * NUMBER * batch * sum(sizes))
    x, y, z, z_box = (np.zeros((batch, size)) for size in sizes)
    s_e, s_i, s_box = (np.zeros((batch, size)) for size in sizes[1:])
    certificate_x, certificate_y, certificate_z, certificate_z_box = (
        np.zeros((batch, size)) for size in sizes
    )
    counts = [np.zeros(batch, dtype=np.int64) for _ in range(3)]
    out = Output(
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
    refuse(out, qp.invalid, INVALID_DATA)
    return out


def refuse(out: Output, samples: npt.NDArray[np.bool_], code: int) -> None:
    """Give samples (batch,) a status that is not to be solved, and NaN throughout."""
    if samples.any():
        out.status[samples] = code
        for array in (*out[:7], out.residuals):
            array[samples] = np.nan


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
