"""The pattern of a scipy.sparse datum as the user stored it, for its gradient."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from nbqp.kernels.structure import Floats, Ints


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
        kept = matrix if matrix.format in ("csc", "csr", "coo") else matrix.tocsc()
        self._class, self._format, self._shape = type(kept), kept.format, kept.shape
        self._size = len(kept.data)
        self._index = tuple(part.copy() for part in self._index_arrays(kept))
        # The constructor chooses the integer type of the indices: now, not anew for each gradient.
        self._index = self._index_arrays(self.with_values(np.zeros(self._size)))
        for part in self._index:
            part.flags.writeable = False

    @functools.cached_property
    def entries(self) -> tuple[Ints, Ints]:
        """Row and column (nnz,) of every entry, as kernels take them."""
        coo = self.with_values(np.zeros(self._size)).tocoo()
        return coo.row.astype(np.int64), coo.col.astype(np.int64)

    def with_values(self, values: Floats) -> Any:
        """A matrix that has the values (nnz,) at these entries."""
        index = (self._index,) if self._format == "coo" else self._index
        return self._class((values, *index), shape=self._shape)

    def _index_arrays(self, matrix: Any) -> tuple[Any, Any]:
        if self._format == "coo":
            return matrix.row, matrix.col
        return matrix.indices, matrix.indptr
