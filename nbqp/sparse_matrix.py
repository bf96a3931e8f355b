"""A matrix by columns, with the values of one QP or of a batch."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from nbqp.arrays import numbers
from nbqp.errors import ShapeError
from nbqp.kernels.structure import Floats, Ints
from nbqp.kernels.symmetry import find_mirror
from nbqp.memory import NUMBER, require_memory
from nbqp.sparse import Sparse

COPIES = 4
"""Arrays of the size of a matrix that exist while it is brought into the solver's form."""
SMALL = 2**12
"""A dense matrix of at most so many entries has its pattern kept."""


class SparseMatrix:
    """One matrix by columns: its pattern, and the values of one QP or of a batch.

    Attributes
    ----------
    shape : (rows, columns)
    p, i : int64, the CSC pattern with ascending rows
    values : float64, (1 or batch, nnz)
    """

    def __init__(self, shape: tuple[int, int], p: Ints, i: Ints, values: Floats) -> None:
        self.shape = shape
        self.p = p
        self.i = i
        self.values = values

    @classmethod
    def empty(cls, rows: int, columns: int) -> SparseMatrix:
        """A matrix without entries."""
        return cls(
            (rows, columns),
            np.zeros(columns + 1, dtype=np.int64),
            np.zeros(0, dtype=np.int64),
            np.zeros((1, 0)),
        )

    @classmethod
    def from_user(cls, name: str, value: Any, batch: bool) -> SparseMatrix:
        """Take a dense array (.., rows, columns), a scipy.sparse matrix or a `Sparse`.

        A matrix that all samples share has the pattern of its nonzeros, a batched one is full.
        """
        if scipy.sparse.issparse(value):
            if value.dtype.kind not in "fiub":
                raise ShapeError(f"{name}: expected real numbers, got dtype {value.dtype}.")
            if value.ndim != 2:
                raise ShapeError(f"{name}: expected a matrix, got shape {value.shape}.")
            require_memory(name, COPIES * NUMBER * value.nnz)
            columns = scipy.sparse.csc_array(value, copy=True)
            columns.sum_duplicates()
            columns.sort_indices()
            return cls(
                columns.shape,
                columns.indptr.astype(np.int64),
                columns.indices.astype(np.int64),
                columns.data.astype(np.float64)[None],
            )
        if isinstance(value, Sparse):
            if value.ndim == 3 and not batch:
                raise ShapeError(f"{name}: expected a matrix, got shape {value.shape}.")
            stored = value.pattern.columns
            # Indexing would leave the array transposed.
            ordered = np.take(np.atleast_2d(numbers(name, value.values)), stored.order, axis=1)
            # Kernels take no read-only arrays, which those that a pattern keeps are.
            return cls(value.pattern.shape, stored.p.copy(), stored.i.copy(), ordered)
        dense = numbers(name, value)
        if dense.ndim == 2:
            rows, columns = dense.shape
            nonzero = dense != 0.0
            if dense.size <= SMALL:
                # Finding a pattern again takes less time than making it.
                p, i, places = _kept_pattern(columns, nonzero.tobytes())
                return cls((rows, columns), p, i, dense.reshape(-1)[places][None])
            count = int(np.count_nonzero(nonzero))
            require_memory(name, COPIES * NUMBER * count)
            if count == dense.size:
                # A tenth of the time that finding and gathering them takes.
                values = np.array(dense.T, order="C").reshape(1, count)
                return cls((rows, columns), *_full_pattern(rows, columns), values)
            p, i, places = _pattern_of(nonzero)
            return cls((rows, columns), p, i, dense.reshape(-1)[places][None])
        if dense.ndim == 3 and batch:
            size, rows, columns = dense.shape
            require_memory(name, NUMBER * dense.size)
            p, i = _shared_full_pattern(rows, columns)
            # A copy even where there is one row or column, whose transpose is contiguous already.
            values = np.array(dense.transpose(0, 2, 1), order="C").reshape(size, rows * columns)
            return cls((rows, columns), p, i, values)
        expected = "(rows, columns)" + (" or (batch, rows, columns)" if batch else "")
        raise ShapeError(f"{name}: expected an array of shape {expected}, got {dense.shape}.")

    def sample(self, k: int) -> scipy.sparse.csc_array:
        """The matrix of sample k."""
        values = self.values[k if len(self.values) > 1 else 0]
        return scipy.sparse.csc_array((values, self.i, self.p), shape=self.shape)

    def transpose_order(self) -> Ints | None:
        """Where each entry's mirror image stands, or None if the pattern is not symmetric."""
        mirror = np.empty(len(self.i), dtype=np.int64)
        return mirror if find_mirror(self.p, self.i, mirror) else None


def _pattern_of(nonzero: npt.NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """The pattern (p, i) of a dense matrix, and where its entries stand in it by rows."""
    columns = nonzero.shape[1]
    j, i = np.nonzero(nonzero.T)
    p = np.zeros(columns + 1, dtype=np.int64)
    np.cumsum(np.bincount(j, minlength=columns), out=p[1:])
    return p, i.astype(np.int64), i * columns + j


@functools.lru_cache(maxsize=64)
def _kept_pattern(columns: int, nonzero: bytes) -> tuple[Ints, Ints, Ints]:
    """`_pattern_of` a matrix by rows, as it is hashed; none changes its arrays."""
    return _pattern_of(np.frombuffer(nonzero, dtype=np.bool_).reshape(-1, columns))


def _full_pattern(rows: int, columns: int) -> tuple[Ints, Ints]:
    """The pattern of a matrix without zeros."""
    p = np.arange(columns + 1, dtype=np.int64) * rows
    return p, np.tile(np.arange(rows, dtype=np.int64), columns)


@functools.lru_cache(maxsize=8)
def _shared_full_pattern(rows: int, columns: int) -> tuple[Ints, Ints]:
    """As `_full_pattern`, which all batches with one share and none changes."""
    return _full_pattern(rows, columns)


def with_symmetric_pattern(H: SparseMatrix) -> SparseMatrix:
    """The same values on the union of the pattern and its mirror image."""
    n = H.shape[1]
    ones = scipy.sparse.csc_array((np.ones(len(H.i)), H.i, H.p), shape=(n, n))
    union = scipy.sparse.csc_array(ones + ones.T)
    union.sort_indices()
    columns = np.repeat(np.arange(n), np.diff(union.indptr))
    keys = columns * n + union.indices
    places = np.searchsorted(keys, np.repeat(np.arange(n), np.diff(H.p)) * n + H.i)
    values = np.zeros((len(H.values), len(keys)))
    values[:, places] = H.values
    return SparseMatrix(
        H.shape, union.indptr.astype(np.int64), union.indices.astype(np.int64), values
    )
