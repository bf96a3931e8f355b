"""Operations on sparse matrices that TensorFlow differentiates: values (..., nnz) on a fixed pattern.

`tf.SparseTensor` is neither a source nor a target of gradients, and has no batches of one pattern.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf

import nbqp
from nbqp.stored_pattern import StoredPattern

DOUBLE = tf.float64


def _take(values: Any, places: Any) -> Any:
    """Values (..., nnz) at these places of their last axis; of an array an array.

    The gradient by the first axis would be `tf.IndexedSlices`, which weights had better not get.
    """
    if isinstance(values, np.ndarray):
        return np.take(values, places, axis=-1)
    if values.shape.rank > 1:
        return tf.gather(values, places, axis=-1)
    return tf.gather(values[tf.newaxis], places, axis=1)[0]


def by_columns(sparse: nbqp.Sparse) -> Any:
    """Its values in the order that the solver has them."""
    order = sparse.pattern.columns.order
    if np.array_equal(order, np.arange(len(order))):
        return sparse.values
    return _take(sparse.values, order)


def mirrored(sparse: nbqp.Sparse) -> Any:
    """The values of its transpose at its own entries, 0 where there is none."""
    rows, columns = sparse.pattern.entries
    n = sparse.pattern.shape[0]
    keys, wanted = columns * n + rows, rows * n + columns
    order = np.argsort(keys)
    places = order[np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)]
    there = tf.constant(keys[places] == wanted)
    values = _take(sparse.values, places)
    return tf.where(there, values, tf.zeros_like(values))


def at_entries(entries: tuple[Any, Any], left: Any, right: Any) -> Any:
    """Those of the outer products of the rows of two matrices, (batch, nnz)."""
    rows, columns = entries
    return tf.gather(left, rows, axis=1) * tf.gather(right, columns, axis=1)


def product(M: Any, v: Any) -> Any:
    """M v (..., rows) in double precision; M a tensor, an array, a scipy.sparse matrix or an `nbqp.Sparse`."""
    if scipy.sparse.issparse(M):
        rows = scipy.sparse.csr_array(M, copy=True)
        # A constant may have an entry twice, of which the sum counts.
        rows.sum_duplicates()
        M = nbqp.Sparse(rows, rows.data)
    if not isinstance(M, nbqp.Sparse):
        return tf.linalg.matvec(tf.cast(M, DOUBLE), v)
    rows, columns = M.pattern.entries
    terms = tf.cast(M.values, DOUBLE) * _take(v, columns)
    # Sums are over the first axis.
    sums = tf.math.unsorted_segment_sum(tf.transpose(terms), rows, M.pattern.shape[0])
    return tf.transpose(sums)


def gram(L: Any, eps: float) -> Any:
    """L'L + eps I of a tensor, or of an `nbqp.Sparse` on the pattern that no values of L leave."""
    if not isinstance(L, nbqp.Sparse):
        return tf.matmul(L, L, transpose_a=True) + eps * tf.eye(L.shape[-1], dtype=DOUBLE)
    pattern, left, right, places = _gram_pattern(L.pattern)
    values = tf.cast(L.values, DOUBLE)
    terms = _take(values, left) * _take(values, right)
    shift = tf.fill([pattern.shape[0]], tf.constant(eps, DOUBLE))
    terms = tf.concat([terms, shift], axis=0)
    return nbqp.Sparse(pattern, tf.math.unsorted_segment_sum(terms, places, pattern.size))


@functools.lru_cache(maxsize=32)
def _gram_pattern(pattern: StoredPattern) -> tuple[StoredPattern, Any, Any, Any]:
    """The pattern of L'L + I, and of what its values are sums.

    Returns
    -------
    tuple
        The pattern by columns; left and right, the pairs of entries of L in one row; and the place of each
        pair's product, then of the diagonal's n ones, among the entries of the pattern.
    """
    rows, columns = pattern.entries
    n = pattern.shape[1]
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], np.arange(pattern.shape[0] + 1))
    pairs = [
        np.stack(np.meshgrid(order[a:b], order[a:b], indexing="ij")).reshape(2, -1)
        for a, b in itertools.pairwise(starts)
    ]
    left, right = np.concatenate([*pairs, np.zeros((2, 0), dtype=np.int64)], axis=1)
    diagonal = np.arange(n) * (n + 1)
    keys, places = np.unique(
        np.concatenate([columns[right] * n + columns[left], diagonal]), return_inverse=True
    )
    found = scipy.sparse.csc_array((np.ones(len(keys)), (keys % n, keys // n)), shape=(n, n))
    return StoredPattern(found), left, right, places
