"""The solver's calls as TensorFlow ops: straight on NumPy arrays when eager, a stateless op else.

All that a call needs are its inputs, a description of the problem among them, so that the ops are
pure functions with fixed names: TensorFlow may prune, share and run them side by side, and a saved
graph finds them again in another process.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse
import tensorflow as tf
from tensorflow.python.ops import script_ops

import nbqp
from nbqp.derivative import DIFFERENTIABLE, warn_of_multipliers
from nbqp.kkt_system import (
    ActiveSet,
    Point,
    Shifts,
    active_tolerance,
    find_active_set,
    solve_adjoint,
    without_failed,
)
from nbqp.problem import QP

OnFailure = Literal["raise", "nan", "keep"]
Arrays = Sequence[npt.NDArray[Any]]

DIFFERENTIABLE_CODES = [status.value for status in DIFFERENTIABLE]
"""The values of the statuses that come with a derivative."""


def check_on_failure(value: Any) -> None:
    """Raise `nbqp.SettingsError` unless this is an `OnFailure`."""
    if value not in get_args(OnFailure):
        *others, last = (f'"{known}"' for known in get_args(OnFailure))
        raise nbqp.SettingsError(
            f"on_failure: expected {', '.join(others)} or {last}, got {value!r}."
        )


@dataclasses.dataclass(frozen=True)
class Description:
    """What is known of a problem before its numbers: hashable, and JSON as an input of the ops.

    Parameters
    ----------
    dense
        Names of the data that are tensors, in the order in which they are passed.
    sparse
        Names and shapes of the constant CSC matrices; each is passed as data, indices, indptr.
    settings, on_failure
        As in `solve_qp`.
    order
        Of the derivative that the linear solve belongs to.
    warm
        Whether a warm start, x, y, z, z_box, follows the data.
    """

    dense: tuple[str, ...]
    sparse: tuple[tuple[str, tuple[int, int]], ...]
    settings: nbqp.Settings
    on_failure: OnFailure
    order: int = 1
    warm: bool = False

    def to_json(self) -> str:
        """A text from which `from_json` makes an equal description."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def from_json(text: bytes) -> Description:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        sparse = tuple((name, (shape[0], shape[1])) for name, shape in fields["sparse"])
        # What a graph that was saved by an earlier version does not name has its default.
        fields |= {
            "dense": tuple(fields["dense"]),
            "sparse": sparse,
            "settings": nbqp.Settings(**fields["settings"]),
        }
        return Description(**fields)

    def arguments(self, arrays: Arrays) -> dict[str, Any]:
        """The arrays by the names of their data, sparse matrices put together."""
        named = dict(zip(self.dense, arrays, strict=False))
        parts = arrays[len(self.dense) :]
        for k, (name, shape) in enumerate(self.sparse):
            named[name] = scipy.sparse.csc_array(tuple(parts[3 * k : 3 * k + 3]), shape=shape)
        return named


def _solve(description: Any, *arrays: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Solve a batch: x, y, z, z_box, s_e, s_i, s_box, status, Newton steps, sides of rows and bounds."""
    about = Description.from_json(_text(description))
    start = Point(*arrays[-len(Point._fields) :]) if about.warm else None
    solution = nbqp.solve_batch(
        **about.arguments(arrays), settings=about.settings, warm_start=start
    )
    status = np.array([s.value for s in solution.status], dtype=np.int32)
    failed = ~np.isin(status, DIFFERENTIABLE_CODES)
    if failed.any() and about.on_failure == "raise":
        k = int(np.flatnonzero(failed)[0])
        raise nbqp.UnsolvedError(
            f"solve_qp: expected every sample to be SOLVED, got {nbqp.Status(status[k]).name} for "
            f"sample {k}; {int(failed.sum())} of {len(failed)} failed."
        )
    point = Point(solution.x, solution.y, solution.z, solution.z_box)
    shifts = Shifts(solution.s_e, solution.s_i, solution.s_box)
    known = Point(*without_failed(failed, point))
    moved = Shifts(*without_failed(failed, shifts))
    active = find_active_set(solution.problem, known, moved, active_tolerance(solution))
    if about.on_failure == "nan":
        for part in (*point, *shifts):
            part[failed] = np.nan
    return [*point, *shifts, status, solution.info.iter.astype(np.int32), *active]


def _solve_kkt(
    description: Any,
    status: npt.NDArray[Any],
    side: npt.NDArray[Any],
    side_box: npt.NDArray[Any],
    r_x: npt.NDArray[Any],
    r_y: npt.NDArray[Any],
    r_z: npt.NDArray[Any],
    r_box: npt.NDArray[Any],
    r_s_e: npt.NDArray[Any],
    r_s_i: npt.NDArray[Any],
    r_s_box: npt.NDArray[Any],
    *matrices: npt.NDArray[Any],
) -> list[npt.NDArray[Any]]:
    """Solve the adjoint system of each sample: b1, b2 (y, z, z_box), b4; failed ones by the policy."""
    about = Description.from_json(_text(description))
    given = about.arguments(matrices)
    no_b = np.zeros((len(r_x), r_y.shape[1])) if "A" in given else None
    qp = QP(**given, g=np.zeros_like(r_x), b=no_b, batch=True)
    failed = ~np.isin(status, DIFFERENTIABLE_CODES)
    closest = status == nbqp.Status.SOLVED_CLOSEST_PRIMAL_FEASIBLE.value
    if about.order > 1 and closest.any():
        raise nbqp.UnsolvedError(
            "solve_qp: expected feasible samples for second derivatives, got the closest feasible QP "
            f"of sample {int(np.flatnonzero(closest)[0])}."
        )
    r = Point(*without_failed(failed, (r_x, r_y, r_z, r_box)))
    r_s = Shifts(*without_failed(failed, (r_s_e, r_s_i, r_s_box)))
    warn_of_multipliers(closest, r)
    b, b4 = solve_adjoint(qp, ActiveSet(side, side_box), r, r_s, closest, failed)
    results = [*b, b4]
    if about.on_failure == "nan":
        for part in results:
            part[failed] = np.nan
    return results


def _text(description: Any) -> bytes:
    return bytes(np.asarray(description).item())


SOLVE = "nbqp_solve_v2"
SOLVE_KKT = "nbqp_solve_kkt_v2"
_functions: dict[str, Callable[..., list[npt.NDArray[Any]]]] = {
    SOLVE: _solve,
    SOLVE_KKT: _solve_kkt,
}
# The registry has no public face for a fixed name; the names that it makes up are counters, and a
# saved graph that holds a counter calls whatever function has it in the process that loads it.
script_ops._py_funcs._funcs.update(_functions)


def call(
    name: str,
    description: Description,
    tensors: Sequence[Any],
    dtypes: Sequence[tf.DType],
    shapes: Sequence[Sequence[int | None]],
) -> list[Any]:
    """Run SOLVE or SOLVE_KKT on tensors."""
    if tf.executing_eagerly() and not any(tf.is_symbolic_tensor(t) for t in tensors):
        arrays = [np.asarray(t) for t in tensors]
        results = _functions[name](description.to_json().encode(), *arrays)
        return [tf.convert_to_tensor(array) for array in results]
    outputs = tf.raw_ops.PyFuncStateless(
        input=[tf.constant(description.to_json()), *tensors], token=name, Tout=list(dtypes)
    )
    for output, shape in zip(outputs, shapes, strict=True):
        output.set_shape(shape)
    return list(outputs)
