"""Compiling or loading every kernel before it is needed."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from nbqp.batch import solve_batch
from nbqp.derivative import vjp
from nbqp.solver import solve_qp


def warmup() -> None:
    """Compile all kernels, or load them from the cache, so that later calls only compute.

    The first call on a machine takes as long as the README says, later processes well below a
    second. Where no cache folder is writable (see Numba's NUMBA_CACHE_DIR) every process compiles.

    Examples
    --------
    >>> import nbqp
    >>> nbqp.warmup()
    """
    H = np.array([[2.0, 1.0], [1.0, 2.0]])
    batch = solve_batch(H, np.ones((2, 2)), np.ones((1, 2)), np.ones(1), np.eye(2), -9.0, 9.0)
    solve_batch(np.stack([H, H]), np.ones(2))
    sparse = scipy.sparse.csc_array(H)
    batch.primal_residual()
    vjp(batch, dL_dx=np.ones((2, 2)))
    vjp(solve_qp(sparse, np.ones(2)), dL_dx=np.ones(2))
    # Two rows that are one: no unique multipliers.
    vjp(solve_qp(H, -np.ones(2), C=np.ones((2, 2)), u=0.0), dL_dx=np.ones(2))
