"""`solve_qp` on tensors: the solver's forward pass, and its gradient by one linear solve.

The gradients are outer products of the solution with an adjoint b, one linear solve with the KKT matrix
of the active set (see `nbqp.derivative`). TensorFlow forms them itself: those that nobody asks for are
pruned from a graph, and second derivatives follow from the same solve.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

import nbqp
from nbqp.kkt_system import SIDES, Shifts, side_shares
from nbqp.problem import MATRICES
from nbqp.settings import to_settings
from tf_layer.bridge import (
    ADJOINT,
    DIFFERENTIABLE_CODES,
    SOLVE,
    call,
    to_tensor,
    with_gradient,
)
from tf_layer.description import Description, OnFailure, check_on_failure
from tf_layer.patterns import at_entries
from tf_layer.prepared import DOUBLE, POINT, Problem, prepare

PARTS = POINT + len(Shifts._fields)
"""Of the PARTS in real numbers that a solution has, the first POINT are its point, the rest its shifts."""


class QPOutput(NamedTuple):
    """Tensors of a solution, with a leading batch axis where any datum has one.

    x (n), y (n_eq), z (n_in), z_box (n), and the shifts s_e (n_eq), s_i (n_in), s_box (n), zero unless
    the closest feasible QP was solved, in the dtype of g; status and newton_steps int32, status the
    value of an `nbqp.Status` (0: SOLVED).
    """

    x: Any
    y: Any
    z: Any
    z_box: Any
    s_e: Any
    s_i: Any
    s_box: Any
    status: Any
    newton_steps: Any

    def astype(self, dtype: Any) -> QPOutput:
        """The same with all but status and newton_steps cast."""
        if dtype == self.x.dtype:
            return self
        return QPOutput._make([*(tf.cast(part, dtype) for part in self[:PARTS]), *self[PARTS:]])


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def solve_qp(
    H: Any = None,
    g: Any = None,
    A: Any = None,
    b: Any = None,
    C: Any = None,
    l: Any = None,
    u: Any = None,
    lb: Any = None,
    ub: Any = None,
    *,
    settings: nbqp.Settings | None = None,
    on_failure: OnFailure = "raise",
    warm_start: Sequence[Any] | None = None,
) -> QPOutput:
    """Solve min 1/2 x'Hx + g'x  s.t.  Ax = b, l <= Cx <= u, lb <= x <= ub, differentiably.

    Parameters
    ----------
    H, g, A, b, C, l, u, lb, ub
        Tensors, variables, arrays or numbers as in `nbqp.solve_batch`: any may carry a leading
        batch axis. H, A and C may be scipy.sparse constants, and stay sparse, or `nbqp.Sparse` with a
        tensor of values (nnz,) or (batch, nnz), which has a gradient. None where absent.
    settings
        See `nbqp.Settings`.
    on_failure
        About a sample that is not solved: "raise"; "nan": its outputs and gradients are NaN;
        "keep": its outputs are the best iterate, and it contributes no gradient.
    warm_start
        x, y, z, z_box to start at, or a `QPOutput`, with a batch axis where the QP has one; samples
        with NaN start cold. It saves Newton steps, and has no gradient.

    Returns
    -------
    QPOutput
        x, y, z, z_box, s_e, s_i, s_box (differentiable), status, newton_steps.

    Raises
    ------
    nbqp.QPError
        Bad input, or an unsolved sample; inside a graph TensorFlow raises it as an
        `InvalidArgumentError` whose message contains it.
    NotImplementedError
        In a graph, where a `tf.autodiff.ForwardAccumulator` watches one of the data.
    LookupError
        A derivative is taken of a vectorised loop, such as `tf.vectorized_map`: TensorFlow has dropped it.
        AutoGraph makes an error of its own of this one.

    Notes
    -----
    Everything is computed in double precision; the results have the dtype of g. Eager and
    `tf.function`, unknown batch size, reverse mode of any order (of a closest feasible QP the
    first). Not for XLA.

    Examples
    --------
    >>> import tensorflow as tf
    >>> from tf_layer import solve_qp
    >>> g = tf.Variable([-1.0, 1.0])
    >>> with tf.GradientTape() as tape:
    ...     x = solve_qp(tf.eye(2), g, lb=0.0).x
    >>> tape.gradient(x, g).numpy()
    array([-1., -0.], dtype=float32)
    """
    check_on_failure(on_failure)
    if g is None:
        raise nbqp.ShapeError("g: expected a vector, got None.")
    given = {"H": H, "g": g, "A": A, "b": b, "C": C, "l": l, "u": u, "lb": lb, "ub": ub}
    present = {name: value for name, value in given.items() if value is not None}
    problem = prepare(present, to_settings(settings), on_failure, warm_start)
    outputs = _differentiable_solve(problem).astype(problem.dtype)
    return outputs if problem.batched else QPOutput._make(part[0] for part in outputs)


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def solve_for_x(
    data: Mapping[str, Any],
    settings: nbqp.Settings,
    on_failure: OnFailure,
    warm_start: Sequence[Any] | None,
    dtype: Any,
) -> Any:
    """The x that `solve_qp` returns, in this dtype, without the time that all else of a solution takes."""
    present = {name: value for name, value in data.items() if value is not None}
    problem = prepare(present, settings, on_failure, warm_start)
    solved = _solve(problem)

    def gradient(d_x: Any) -> list[Any]:
        rest = solved.rest
        none = (
            to_tensor(np.zeros(rest.shape)) if isinstance(rest, np.ndarray) else tf.zeros_like(rest)
        )
        return _gradients(problem, solved, (d_x, none))

    (x,) = with_gradient((solved.x,), problem.tensors.values(), gradient)
    # As the whole solution, which is rounded to the dtype of g first.
    for kind in (problem.dtype, dtype):
        x = x if x.dtype == kind else tf.cast(x, kind)
    return x if problem.batched else x[0]


class _Solved(NamedTuple):
    """What the solver returned, as tensors, or as arrays when eager: x; the other parts in real numbers side by
    side; the sides of rows and bounds; statuses and Newton steps; and the problem's number.
    """

    x: Any
    rest: Any
    sides: Any
    status: Any
    newton_steps: Any
    number: Any


def _differentiable_solve(problem: Problem) -> QPOutput:
    solved = _with_gradient(problem, _solve(problem))
    counts = map(to_tensor, (solved.status, solved.newton_steps))
    return QPOutput(solved.x, *_split(solved.rest, _value_widths(problem)[1:]), *counts)


def _solve(problem: Problem) -> _Solved:
    n, _, n_in, _ = problem.point_widths()
    batch = problem.batch
    outputs = call(
        SOLVE,
        problem.description,
        [*problem.tensors.values(), *problem.constants.values(), *problem.parts, *problem.start],
        [DOUBLE, DOUBLE, tf.int32, tf.int32, tf.int32, tf.int64],
        [
            (batch, n),
            (batch, _total(_value_widths(problem)[1:])),
            (batch, _total([n_in, n])),
            (batch,),
            (batch,),
            (),
        ],
    )
    return _Solved._make(outputs)


def _with_gradient(problem: Problem, solved: _Solved) -> _Solved:
    """A known solution as a function of the tensors, with every derivative.

    What its gradient needs of the solution is such a function again.
    """

    def gradient(*cotangents: Any) -> list[Any]:
        return _gradients(problem, solved, cotangents)

    x, rest = with_gradient((solved.x, solved.rest), problem.tensors.values(), gradient)
    return solved._replace(x=x, rest=rest)


def _value_widths(problem: Problem) -> tuple[Any, ...]:
    """Columns of x, y, z, z_box, s_e, s_i, s_box."""
    point = problem.point_widths()
    return *point, *point[1:]


def _adjoint_widths(problem: Problem) -> tuple[Any, ...]:
    """Columns of b1, b2 (of y, z, z_box) and b4."""
    return *problem.point_widths(), problem.description.n


def _split(values: Any, widths: Sequence[Any]) -> list[Any]:
    """The parts of these widths, integers or tensors, that stand side by side."""
    known = _total(widths) is not None
    # Half of what tf.split takes of a list.
    parts = tf.raw_ops.SplitV(
        value=values,
        size_splits=np.array(widths) if known else widths,
        axis=1,
        num_split=len(widths),
    )
    if not known:
        for part, width in zip(parts, widths, strict=True):
            if isinstance(width, int):
                part.set_shape([values.shape[0], width])
    return list(parts)


def _total(widths: Sequence[Any]) -> int | None:
    """Their sum, where all are known."""
    return sum(widths) if all(isinstance(width, int) for width in widths) else None


def _gradients(problem: Problem, solved: _Solved, cotangents: Sequence[Any]) -> list[Any]:
    """The gradient of each tensor: outer products of the adjoint with the solution."""
    named = problem.tensors
    g_alone = named.keys() == {"g"}
    b1, *rest = _adjoint(problem, solved, cotangents, parts=1 if g_alone else 2)
    gradients = {"g": b1}
    if not g_alone:
        *b2, b4 = _split(rest[0], _adjoint_widths(problem)[1:])
        gradients |= _side_gradients(problem, named, solved.sides, b2)
    if named.keys() & set(MATRICES):
        x, others, *_ = _with_gradient(problem, solved)
        if problem.description.on_failure != "raise":
            # A sample that failed may hold NaN, which must not enter products with its zero adjoint.
            status = to_tensor(solved.status)[:, tf.newaxis]
            known = tf.reduce_any(tf.equal(status, DIFFERENTIABLE_CODES), axis=1, keepdims=True)
            x, others = (tf.where(known, part, tf.zeros_like(part)) for part in (x, others))
        y, z, _, s_e, s_i, _ = _split(others, _value_widths(problem)[1:])
        gradients |= _matrix_gradients(problem, named, (b1, *b2), (x, y, z), b4, (s_e, s_i))
    return [_summed(gradients[name], tensor) for name, tensor in named.items()]


def _side_gradients(
    problem: Problem, named: Container[str], sides: Any, b2: Sequence[Any]
) -> dict[str, Any]:
    """dL/d(side) = -b2 on the rows that hold on to it, for b, l, u, lb and ub, where they are tensors."""
    b_y, b_z, b_box = b2
    side, side_box = _split(sides, problem.point_widths()[2:])
    held = {
        "l": (side, LOW, b_z),
        "u": (side, HIGH, b_z),
        "lb": (side_box, LOW, b_box),
        "ub": (side_box, HIGH, b_box),
    }
    gradients = {
        name: -_share(of, shares) * part
        for name, (of, shares, part) in held.items()
        if name in named
    }
    return {"b": -b_y, **gradients} if "b" in named else gradients


LOW, HIGH = side_shares(SIDES)


def _share(side: Any, shares: Any) -> Any:
    """`nbqp.kkt_system.side_shares` of a tensor: a look-up, since sides are few."""
    return tf.gather(tf.constant(shares), side - SIDES[0])


def _matrix_gradients(
    problem: Problem,
    named: dict[str, Any],
    b: Sequence[Any],
    point: Sequence[Any],
    b4: Any = None,
    shifts: Sequence[Any] = (),
) -> dict[str, Any]:
    """dL/dM = lambda b1' + b2 x' + s b4' for H, A and C, where they are tensors."""
    x, y, z = point
    pairs = {
        "H": [(0.5 * x, b[0]), (0.5 * b[0], x)],
        "A": [(y, b[0]), (b[1], x)],
        "C": [(z, b[0]), (b[2], x)],
    }
    for name, s in zip(("A", "C"), shifts, strict=False):
        pairs[name].append((s, b4))
    gradients = {}
    for name in pairs:
        if name not in named:
            continue
        if name in problem.entries:
            products = [at_entries(problem.entries[name], *pair) for pair in pairs[name]]
        elif named[name].shape.rank == 2 and name == "H":
            # Exactly symmetric, so that a gradient step leaves H so.
            half = tf.matmul(*pairs[name][0], transpose_a=True)
            products = [half, tf.transpose(half)]
        elif named[name].shape.rank == 2:
            products = [tf.matmul(left, right, transpose_a=True) for left, right in pairs[name]]
        elif name == "H":
            # A matrix product may fuse a multiplication and an addition, and is then not exactly symmetric.
            products = [
                left[:, :, tf.newaxis] * right[:, tf.newaxis] for left, right in pairs[name]
            ]
        else:
            left, right = (tf.stack(parts, axis=1) for parts in zip(*pairs[name], strict=True))
            products = [tf.matmul(left, right, transpose_a=True)]
        gradients[name] = tf.add_n(products)
    return gradients


def _summed(gradient: Any, tensor: Any) -> Any:
    """The gradient of a datum that the batch shares is the sum over the batch.

    A batch axis of 1 is shared by a larger batch, too.
    """
    if gradient.shape.rank > tensor.shape.rank:
        return tf.reduce_sum(gradient, axis=0)
    size = tensor.shape[0]
    if size not in (None, 1) or size == gradient.shape[0] == 1:
        return gradient
    return tf.cond(
        tf.equal(tf.shape(tensor)[0], 1),
        lambda: tf.reduce_sum(gradient, axis=0, keepdims=True),
        lambda: gradient,
    )


@functools.lru_cache(maxsize=256)
def _of_adjoint(about: Description, matrices: tuple[str, ...], order: int) -> Description:
    """The description of an adjoint solve, whose dense data are these matrices."""
    return dataclasses.replace(about, dense=matrices, order=order, warm=False)


def _adjoint(
    problem: Problem, solved: _Solved, cotangents: Sequence[Any], order: int = 1, parts: int = 2
) -> list[Any]:
    """b1, and b2 and b4 side by side, of the adjoint system K b = -d; cotangents: d, of x and of the rest.

    parts: 1 for b1 alone, since the others as tensors take time.

    Its own gradient, where no sample has shifts, is one more solve: with K a = -dL/db, dL/dd = a and
    dL/dK = a b'; d of shifts has no effect then, as rows of V are independent.
    """
    matrices = {name: part for name, part in problem.tensors.items() if name in MATRICES}
    constant = {name: part for name, part in problem.constants.items() if name in MATRICES}
    description = _of_adjoint(problem.description, (*matrices, *constant), order)
    widths = _adjoint_widths(problem)[1:]

    inputs = [*cotangents, *matrices.values()]
    found = call(
        ADJOINT,
        description,
        [solved.number, solved.sides, solved.status, *inputs, *constant.values(), *problem.parts],
        [DOUBLE, DOUBLE],
        [(problem.batch, problem.description.n), (problem.batch, _total(widths))],
    )

    def known(parts: int) -> list[Any]:
        return with_gradient(found[:parts], inputs, gradient)

    def gradient(d_b1: Any, d_b: Any = None) -> list[Any]:
        b1, rest = known(2)
        if d_b is None:
            d_b = tf.zeros_like(rest)
        shifts = _split(cotangents[1], _value_widths(problem)[1:])[POINT - 1 :]
        no_shifts = [tf.zeros_like(part) for part in shifts]
        *d_b2, _ = _split(d_b, widths)
        d_b = tf.concat([*d_b2, *no_shifts], axis=1)
        a1, a = _adjoint(problem, solved, (d_b1, d_b), order + 1)
        *a2, _ = _split(a, widths)
        *b2, _ = _split(rest, widths)
        by_name = _matrix_gradients(problem, matrices, (a1, *a2), (b1, *b2[:2]))
        by_matrix = [_summed(by_name[name], matrix) for name, matrix in matrices.items()]
        return [a1, tf.concat([*a2, *no_shifts], axis=1), *by_matrix]

    return known(parts)
