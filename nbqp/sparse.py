"""Sparse matrices whose values vary: a pattern, and the values at its entries."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from nbqp.errors import ShapeError
from nbqp.stored_pattern import StoredPattern


def to_pattern(name: str, pattern: Any) -> StoredPattern:
    """The pattern of a scipy.sparse matrix, or one as it is, if it has every entry once."""
    if scipy.sparse.issparse(pattern) and pattern.ndim == 2:
        pattern = StoredPattern(pattern)
    if not isinstance(pattern, StoredPattern):
        raise ShapeError(f"{name}: expected a scipy.sparse matrix, got {type(pattern).__name__}.")
    if pattern.has_duplicates:
        raise ShapeError(f"{name}: expected every entry once, got some that are stored twice.")
    return pattern


def _shape(values: Any) -> tuple[int, ...]:
    try:
        return tuple(values.shape if hasattr(values, "shape") else np.shape(values))
    except ValueError as error:  # nested sequences of unequal lengths, an unknown rank
        raise ShapeError(f"values: expected an array of numbers, got {error}") from None


class Sparse:
    """A sparse matrix, or a batch of them, as a pattern and the values at its entries.

    Parameters
    ----------
    pattern
        A scipy.sparse matrix, of which only the places of the stored entries count, or the pattern of
        another `Sparse`. An entry may be stored once only. CSC, CSR and COO keep the order of their
        entries, other formats become CSC.
    values
        (nnz,), or (batch, nnz) where matrices with a batch axis are allowed, in that order: those of
        `pattern.data` of a CSC, CSR or COO matrix.

    Attributes
    ----------
    pattern : StoredPattern
        `pattern.with_values(values)` is a scipy.sparse matrix, `pattern.entries` the rows and columns.
    values
        As given.
    shape : tuple of int
        (rows, columns), or (batch, rows, columns).

    Raises
    ------
    ShapeError
        The pattern is none, or the values do not fit it.

    Examples
    --------
    >>> import numpy as np, nbqp, scipy.sparse
    >>> H = nbqp.Sparse(scipy.sparse.eye_array(2, format="csc"), [[1.0, 1.0], [2.0, 4.0]])
    >>> nbqp.solve_batch(H, np.array([-4.0, -4.0])).x.round(6)
    array([[4., 4.],
           [2., 1.]])
    """

    def __init__(self, pattern: Any, values: Any) -> None:
        pattern = to_pattern("pattern", pattern)
        shape = _shape(values)
        if len(shape) not in (1, 2) or shape[-1] != pattern.size:
            raise ShapeError(
                f"values: expected shape ({pattern.size},) or (batch, {pattern.size}), as the pattern "
                f"has {pattern.size} entries, got {shape}."
            )
        self.pattern = pattern
        self.values = values
        self.shape = (*shape[:-1], *pattern.shape)

    @property
    def ndim(self) -> int:
        """2, or 3 with a batch axis."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """Of the values."""
        return getattr(self.values, "dtype", np.dtype(np.float64))

    def __repr__(self) -> str:
        """Shape and number of entries: the values would fill a screen."""
        return f"Sparse(shape={self.shape}, nnz={self.pattern.size})"
