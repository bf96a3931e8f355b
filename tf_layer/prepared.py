"""A problem as the op takes it: what may have gradients as tensors, the rest as arrays, in double precision."""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import scipy.sparse
import tensorflow as tf

import nbqp
from nbqp.kkt_system import Point
from nbqp.problem import MATRICES, ROUNDINGS
from nbqp.stored_pattern import StoredPattern
from tf_layer.declarations import in_double_precision, require_sparse
from tf_layer.description import Description, OnFailure
from tf_layer.patterns import by_columns, mirrored

DOUBLE = tf.float64
POINT = len(Point._fields)


class Problem(NamedTuple):
    """A problem in double precision with a batch.

    tensors: the data that may have gradients, by name; constants: dense ones without, which are arrays;
    parts: the arrays of sparse constants and of patterns; entries: rows and columns of what the values of
    each pattern are, by name; start: x, y, z, z_box of a warm start, or nothing; rows: of A and C, integers
    or tensors; batch: its size, where it is known before the graph runs; dtype: of the results; batched:
    whether the user gave a batch.
    """

    description: Description
    tensors: dict[str, Any]
    constants: dict[str, Any]
    parts: tuple[Any, ...]
    entries: dict[str, tuple[Any, Any]]
    start: tuple[Any, ...]
    rows: tuple[Any, Any]
    batch: int | None
    dtype: tf.DType
    batched: bool

    def point_widths(self) -> tuple[Any, ...]:
        """Columns of x, y, z, z_box, integers or tensors."""
        n, (n_eq, n_in) = self.description.n, self.rows
        return n, n_eq, n_in, n


def prepare(
    given: Mapping[str, Any],
    settings: nbqp.Settings,
    on_failure: OnFailure,
    warm_start: Sequence[Any] | None,
) -> Problem:
    """What the user gave, by name, checked as far as it can be before its numbers are known."""
    sparse = {k: _columns(k, v) for k, v in given.items() if scipy.sparse.issparse(v)}
    patterns = {k: v.pattern for k, v in given.items() if isinstance(v, nbqp.Sparse)}
    # Arrays stay arrays: they have no gradient, and as tensors they would go there and back.
    dense = {k: _numbers(k, v) for k, v in given.items() if k not in sparse}
    kind = tf.as_dtype(dense["g"].dtype)
    if "H" in dense:
        dense["H"] = _widened(dense["H"], patterns.get("H"))
    for name, pattern in patterns.items():
        dense[name] = by_columns(nbqp.Sparse(pattern, dense[name]))
    n = dense["g"].shape[-1]
    if n is None:
        raise nbqp.ShapeError(f"g: expected a known last dimension, got {dense['g'].shape}.")
    full = set(MATRICES) - patterns.keys()
    batched = any(len(t.shape) == (3 if k in full else 2) for k, t in dense.items())
    if not batched:
        dense["g"] = dense["g"][tf.newaxis]
    rows: dict[str, Any] = {k: _rows(dense[k]) for k in full if k in dense}
    rows |= {k: matrix.shape[0] for k, matrix in (*sparse.items(), *patterns.items())}
    for name in ("lb", "ub", "l", "u"):
        if name in dense and len(dense[name].shape) == 0:
            size = n if name in ("lb", "ub") else rows.get("C", 0)
            fill = np.full if isinstance(size, int) and _is_array(dense[name]) else tf.fill
            dense[name] = fill([size], dense[name])
    constants = {k: dense.pop(k).astype(np.float64) for k in [*dense] if _is_array(dense[k])}
    tensors = {k: tf.cast(tensor, DOUBLE) for k, tensor in dense.items()}
    index = [(p.columns.i, p.columns.p) for p in patterns.values()]
    return Problem(
        description=Description(
            n,
            (*tensors, *constants),
            tuple((k, tuple(matrix.shape)) for k, matrix in sparse.items()),
            settings,
            on_failure,
            patterns=tuple((k, pattern.shape) for k, pattern in patterns.items()),
            warm=warm_start is not None,
        ),
        tensors=tensors,
        constants=constants,
        parts=tuple(
            part
            for arrays in (*((m.data, m.indices, m.indptr) for m in sparse.values()), *index)
            for part in arrays
        ),
        entries={k: _entries(pattern) for k, pattern in patterns.items()},
        start=() if warm_start is None else _start(warm_start, batched),
        rows=(rows.get("A", 0), rows.get("C", 0)),
        batch=_batch_size([*tensors.items(), *constants.items()], full),
        dtype=kind if kind.is_floating else DOUBLE,
        batched=batched,
    )


def _columns(name: str, matrix: Any) -> Any:
    """A scipy.sparse constant by columns (CSC), in double precision."""
    require_sparse(name, matrix)
    columns = (in_double_precision(matrix) if name == "H" else matrix).tocsc()
    return columns.astype(np.float64)


def _rows(matrix: Any) -> Any:
    """The number of rows, a tensor where it is known only when the graph runs."""
    return tf.shape(matrix)[-2] if matrix.shape[-2] is None else matrix.shape[-2]


def _entries(pattern: StoredPattern) -> tuple[Any, Any]:
    """Rows and columns of its entries by columns."""
    p, i, _ = pattern.columns
    return i, np.repeat(np.arange(len(p) - 1), np.diff(p))


def _batch_size(named: Iterable[tuple[str, Any]], dense_matrices: Container[str]) -> int | None:
    """The size of the batch, None where a batch axis that has it may be unknown."""
    sizes = {t.shape[0] for k, t in named if len(t.shape) == (3 if k in dense_matrices else 2)}
    known = sizes - {1, None}
    # An axis of 1 is shared by a larger batch.
    return known.pop() if known else 1 if sizes == {1} else None


def _is_array(found: Any) -> bool:
    """Whether this, an array or a tensor, cannot have a gradient."""
    return isinstance(found, np.ndarray)


def _start(warm_start: Sequence[Any], batched: bool) -> tuple[Any, ...]:
    """The tensors of a warm start, with a batch axis."""
    if not isinstance(warm_start, (tuple, list)) or len(warm_start) < POINT:
        raise nbqp.ShapeError(
            f"warm_start: expected (x, y, z, z_box) or a QPOutput, got {type(warm_start).__name__}."
        )
    parts = [tf.cast(tf.stop_gradient(part), DOUBLE) for part in warm_start[:POINT]]
    return tuple(part if batched else part[tf.newaxis] for part in parts)


def _widened(H: Any, pattern: StoredPattern | None) -> Any:
    """H, or its values on a pattern, in double precision, symmetrised where it is symmetric to within the rounding of its dtype.

    An H that is not stays as it is, for the solver to refuse.
    """
    if _is_array(H) and pattern is None:
        return in_double_precision(H)
    kind = tf.as_dtype(H.dtype)
    if not kind.is_floating or kind == DOUBLE:
        return H
    double = tf.cast(H, DOUBLE)
    axes: Any
    if pattern is None:
        transposed, axes = tf.linalg.matrix_transpose(double), (-2, -1)
    else:
        transposed, axes = mirrored(nbqp.Sparse(pattern, double)), -1
    size, skew = (
        tf.reduce_max(tf.abs(part), axis=axes, keepdims=True)
        for part in (double, double - transposed)
    )
    allowed = ROUNDINGS * float(ml_dtypes.finfo(kind.as_numpy_dtype).eps)
    return tf.where(skew <= allowed * size, 0.5 * (double + transposed), double)


@functools.lru_cache(maxsize=64)
def _kind(dtype: Any) -> tf.DType | None:
    """TensorFlow's dtype of numbers that may be, None for others."""
    try:
        kind = tf.as_dtype(dtype)
    except TypeError:
        return None
    return kind if kind.is_floating or kind.is_integer else None


def _numbers(name: str, value: Any) -> Any:
    """A datum, or its values on a pattern, as an array or a tensor, of a rank that it may have."""
    if isinstance(value, tf.SparseTensor):
        raise nbqp.ShapeError(
            f"{name}: expected numbers, a scipy.sparse matrix or an nbqp.Sparse of a pattern and its values, "
            "got a SparseTensor."
        )
    sparse = isinstance(value, nbqp.Sparse)
    if sparse and name not in MATRICES:
        raise nbqp.ShapeError(f"{name}: expected a dense vector, got Sparse.")
    numbers = value.values if sparse else value
    try:
        # A list may hold tensors, which have gradients.
        fixed = isinstance(numbers, (np.ndarray, np.generic, Real))
        found: Any = np.asarray(numbers) if fixed else tf.convert_to_tensor(numbers)
    except (TypeError, ValueError) as error:
        raise nbqp.ShapeError(
            f"{name}: expected numbers, got {type(value).__name__}: {error}"
        ) from None
    ranks = (2, 3) if name in MATRICES else (1, 2) if name in ("g", "b") else (0, 1, 2)
    ranks = (1, 2) if sparse else ranks
    rank = found.ndim if _is_array(found) else found.shape.rank
    if rank not in ranks or _kind(found.dtype) is None:
        raise nbqp.ShapeError(
            f"{name}: expected numbers of rank {' or '.join(map(str, ranks))}, got "
            f"{getattr(found.dtype, 'name', found.dtype)} of shape {found.shape}."
        )
    return found
