"""The pattern of a scipy.sparse datum as the user stored it, for its gradient."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from nbqp.kernels.structure import Floats, Ints


class Columns(NamedTuple):
    """A pattern by columns (CSC), rows ascending: p, i, and which stored entry stands at each place."""

    p: Ints
    i: Ints
    order: Ints


FORMATS = ("csc", "csr", "coo")
"""Those of scipy.sparse that have an order of entries to keep."""


def with_order(matrix: Any) -> Any:
    """A scipy.sparse matrix in one of `FORMATS`: its own, or CSC."""
    return matrix if matrix.format in FORMATS else matrix.tocsc()


class StoredPattern:
    """The entries that a scipy.sparse matrix had when its QP was made, in its class and order.

    The index arrays are copies, so that what the user does to the matrix later does not count. All
    gradients share them, and they are read-only: no gradient can change the pattern of another.

    Parameters
    ----------
    matrix
        CSC, CSR and COO are kept as they are, other formats become CSC.
    """

    def __init__(self, matrix: Any) -> None:
        kept = with_order(matrix)
        self._class, self._format, self.shape = type(kept), kept.format, kept.shape
        self.size = len(kept.data)
        self._index = tuple(part.copy() for part in self._index_arrays(kept))
        # The constructor chooses the integer type of the indices: now, not anew for each gradient.
        self._index = self._index_arrays(self.with_values(np.zeros(self.size)))
        for part in self._index:
            part.flags.writeable = False

    @functools.cached_property
    def entries(self) -> tuple[Ints, Ints]:
        """Row and column (nnz,) of every entry, as kernels take them."""
        coo = self.with_values(np.zeros(self.size)).tocoo()
        return coo.row.astype(np.int64), coo.col.astype(np.int64)

    @functools.cached_property
    def columns(self) -> Columns:
        """The pattern as kernels take it, where every entry is stored once; read-only."""
        i, j = self.entries
        order = np.lexsort((i, j))
        p = np.zeros(self.shape[1] + 1, dtype=np.int64)
        np.cumsum(np.bincount(j, minlength=self.shape[1]), out=p[1:])
        columns = Columns(p, i[order], order)
        for part in columns:
            part.flags.writeable = False
        return columns

    @functools.cached_property
    def has_duplicates(self) -> bool:
        """Whether some entry is stored more than once."""
        i, j = self.entries
        return len(np.unique(j * self.shape[0] + i)) < self.size

    def with_values(self, values: Floats) -> Any:
        """A matrix that has the values (nnz,) at these entries."""
        index = (self._index,) if self._format == "coo" else self._index
        return self._class((values, *index), shape=self.shape)

    def _index_arrays(self, matrix: Any) -> tuple[Any, Any]:
        if self._format == "coo":
            return matrix.row, matrix.col
        return matrix.indices, matrix.indptr
