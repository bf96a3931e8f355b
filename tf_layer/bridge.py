"""The solver's calls as TensorFlow ops: straight on NumPy arrays when eager, a stateless op else.

All that a call needs are its inputs, a description of the problem among them, so that the ops are
pure functions with fixed names: TensorFlow may prune, share and run them side by side, and a saved
graph finds them again in another process. One result is no function of the inputs, the number by which a
gradient finds the problem that was solved; that saves work, and changes no bit of the gradient.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.python.eager import forwardprop_util
from tensorflow.python.ops import script_ops

import nbqp
from nbqp.batch import solve_samples
from nbqp.derivative import DIFFERENTIABLE, warn_of_multipliers
from nbqp.kept import Kept
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
from tf_layer.description import BYTES_KEPT, KEPT, Description

try:
    from tensorflow.python.eager.record import record_operation
except ImportError:  # it is not public
    record_operation = None

Function = Callable[..., list[npt.NDArray[Any]]]

DIFFERENTIABLE_CODES = [status.value for status in DIFFERENTIABLE]
"""The values of the statuses that come with a derivative."""


def _solve(about: Description, *arrays: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Solve a batch.

    Returns
    -------
    list
        x (batch, n); y, z, z_box, s_e, s_i, s_box side by side (batch, .); as int32, the sides of rows
        and bounds (batch, n_in + n), statuses and Newton steps (batch,); and the problem's number in `solved`.
    """
    start = Point(*arrays[-len(Point._fields) :]) if about.warm else None
    qp = about.problem(arrays[: len(arrays) - len(start or ())])
    out, _ = solve_samples(qp, about.settings, start)
    failed = _failed(out.status)
    if about.on_failure == "raise" and failed.any():
        k = int(np.flatnonzero(failed)[0])
        status = nbqp.Status(out.status[k])
        raise nbqp.UnsolvedError(
            f"solve_qp: expected every sample to be SOLVED, got {status.name} for sample {k}; "
            f"{int(failed.sum())} of {len(failed)} failed.{_hint(status)}"
        )
    point = Point(*without_failed(failed, (out.x, out.y, out.z, out.z_box)))
    shifts = Shifts(*without_failed(failed, (out.s_e, out.s_i, out.s_box)))
    tolerance = active_tolerance(about.settings.eps_abs, out.residuals[:, 0])
    active = find_active_set(qp, point, shifts, tolerance)
    rest = np.concatenate((out.y, out.z, out.z_box, out.s_e, out.s_i, out.s_box), axis=1)
    if about.on_failure == "nan":
        out.x[failed] = rest[failed] = np.nan
    sides = np.concatenate(active, axis=1, dtype=np.int32, casting="unsafe")
    number = next(_numbers)
    solved.keep(qp.nbytes(), number, qp)
    counts = out.status.astype(np.int32), out.iter.astype(np.int32)
    return [out.x, rest, sides, *counts, np.array(number, dtype=np.int64)]


def _solve_adjoint(
    about: Description,
    number: npt.NDArray[Any],
    sides: npt.NDArray[Any],
    status: npt.NDArray[Any],
    d_x: npt.NDArray[Any],
    d_rest: npt.NDArray[Any],
    *matrices: npt.NDArray[Any],
) -> list[npt.NDArray[Any]]:
    """Solve the adjoint system of each sample; failed ones by the policy.

    Parameters
    ----------
    number, sides, status
        As `_solve` returns them.
    d_x, d_rest
        Derivatives of the loss by the first two that `_solve` returns.
    matrices
        Those of the data, for a problem that is not kept any longer, or was solved by another process.

    Returns
    -------
    list
        b1; b2 (of y, z, z_box) and b4 side by side.
    """
    n = about.n
    n_in = sides.shape[1] - n
    n_eq = (d_rest.shape[1] - 2 * (n + n_in)) // 2
    parts = _columns(-d_rest, (n_eq, n_in, n, n_eq, n_in, n))
    active = ActiveSet(*_columns(sides, (n_in, n)))
    qp = solved.get(int(number))
    # A vectorised loop may have made one batch of many.
    if qp is None or qp.batch != len(d_x):
        qp = about.problem(matrices, batch=len(d_x))
    failed = _failed(status)
    closest = status == nbqp.Status.SOLVED_CLOSEST_PRIMAL_FEASIBLE.value
    if about.order > 1 and closest.any():
        raise nbqp.UnsolvedError(
            "solve_qp: expected feasible samples for second derivatives, got the closest feasible QP "
            f"of sample {int(np.flatnonzero(closest)[0])}."
        )
    r_point = Point(*without_failed(failed, (-d_x, *parts[:3])))
    r_shifts = Shifts(*without_failed(failed, parts[3:]))
    warn_of_multipliers(closest, r_point)
    b, b4 = solve_adjoint(qp, active, r_point, r_shifts, closest, failed)
    b1, rest = b.x, np.concatenate((*b[1:], b4), axis=1)
    if about.on_failure == "nan":
        b1[failed] = rest[failed] = np.nan
    return [b1, rest]


def _columns(array: npt.NDArray[Any], widths: Sequence[int]) -> list[npt.NDArray[Any]]:
    """Its parts of these widths, which stand side by side."""
    ends = itertools.accumulate(widths)
    return [array[:, end - width : end] for end, width in zip(ends, widths, strict=True)]


def _hint(status: nbqp.Status) -> str:
    if status == nbqp.Status.NONCONVEX:
        return (
            " H has a negative eigenvalue: single precision leaves some where a product such as L'L has low "
            "rank, double precision does not."
        )
    return ""


def _failed(status: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    failed: npt.NDArray[np.bool_] = status != DIFFERENTIABLE_CODES[0]
    for code in DIFFERENTIABLE_CODES[1:]:
        failed &= status != code
    return failed


def _described(function: Function) -> Function:
    """The function of a graph's op, whose first input is a description as text."""
    return lambda text, *arrays: function(
        Description.from_json(bytes(np.asarray(text).item())), *arrays
    )


NO_GRADIENT = (
    "solve_qp: expected no derivative of a vectorised loop (tf.vectorized_map, or tape.jacobian within another "
    "tape), from which TensorFlow has dropped the gradients of its calls. Solve the samples in one call, as a "
    "batch, or take tape.jacobian(..., experimental_use_pfor=False)."
)
solved = Kept[QP](KEPT, BYTES_KEPT)
"""Problems of the latest solves, for their gradients: copied, checked and scaled once."""
_numbers = itertools.count(int.from_bytes(os.urandom(7), "little"))
"""Those of the problems, none of which is used twice: results of a graph may go on to another process.

After a fork both processes go on alike, each with the problems that are its own.
"""

SOLVE = "nbqp_solve_v5"
ADJOINT = "nbqp_adjoint_v5"
_functions: dict[str, Function] = {SOLVE: _solve, ADJOINT: _solve_adjoint}
_ops = {name: _described(function) for name, function in _functions.items()}
# The registry has no public face for a fixed name; the names that it makes up are counters, and a
# saved graph that holds a counter calls whatever function has it in the process that loads it.
script_ops._py_funcs._funcs.update(_ops)


def call(
    name: str,
    description: Description,
    tensors: Sequence[Any],
    dtypes: Sequence[tf.DType],
    shapes: Sequence[Sequence[int | None]],
) -> list[Any]:
    """Run SOLVE or ADJOINT on tensors or arrays; the results are arrays when eager."""
    differentiable = [t for t in tensors if not isinstance(t, np.ndarray)]
    if _is_eager(differentiable):
        return _functions[name](description, *map(np.asarray, tensors))
    # No public face tells whether an accumulator watches.
    if forwardprop_util.pack_tangents(differentiable).tangents:
        raise NotImplementedError(
            "solve_qp: expected reverse mode in a graph, got a ForwardAccumulator, which would be told that "
            "all derivatives are 0; take it outside tf.function and solve_qp eagerly, or differentiate a "
            "gradient by its output_gradients."
        )
    outputs = tf.raw_ops.PyFuncStateless(
        input=[tf.constant(description.to_json()), *tensors], token=name, Tout=list(dtypes)
    )
    for output, shape in zip(outputs, shapes, strict=True):
        output.set_shape(shape)
    return list(outputs)


def with_gradient(
    results: Sequence[Any], tensors: Collection[Any], gradient: Callable[..., list[Any]]
) -> list[Any]:
    """The results of `call` as functions of the tensors, with this gradient: from theirs to one for each tensor.

    `tf.custom_gradient` is that; it examines its functions at each call, which would take longer than a small
    QP, so that an eager call records the gradient as it does.
    """
    if record_operation is not None and _is_eager(tensors):
        outputs = [to_tensor(result) for result in results]
        record_operation("nbqp", outputs, list(tensors), gradient)
        return outputs

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def known(*tensors: Any) -> Any:
        # The gradient goes past this, unless a loop has been vectorised since: that drops it without a word.
        guarded = [
            tf.raw_ops.PreventGradient(input=result, message=NO_GRADIENT) for result in results
        ]
        return guarded, gradient

    return list(known(*tensors))


def to_tensor(result: Any) -> Any:
    """A result of `call` as a tensor; tf.convert_to_tensor takes half as long again."""
    return tf.constant(result) if isinstance(result, np.ndarray) else result


def _is_eager(tensors: Iterable[Any]) -> bool:
    return tf.executing_eagerly() and not any(map(tf.is_symbolic_tensor, tensors))
