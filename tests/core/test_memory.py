"""Compiled code frees what it asks for: it counts references itself (`nbqp.kernels.jit`)."""

from __future__ import annotations

import numba
import pytest

from tests import processes

COUNT = """
    import numpy as np
    from numba.core.runtime import rtsys
    import nbqp

    rng = np.random.default_rng(0)
    H, g, C = np.eye(6) + 0.1, rng.standard_normal((40, 6)), rng.standard_normal((40, 4, 6))
    closest = nbqp.Settings(primal_infeasibility_solving=True)

    def solve_and_differentiate():
        batch = nbqp.solve_batch(H, g, C=C, u=0.1)
        batch.primal_residual()
        nbqp.vjp(batch, dL_dx=g)
        nbqp.jvp(batch, dg=g)
        single = nbqp.solve_qp(H, g[0], C=C[0], u=np.full(4, 0.1))
        nbqp.vjp(single, dL_dx=g[0])
        moved = nbqp.solve_qp(None, g[0], C=C[0], u=np.full(4, -1.0), lb=0.0, ub=0.1, settings=closest)
        nbqp.vjp(moved, dL_dx=g[0])

    def held():
        counts = rtsys.get_allocation_stats()
        return counts.alloc - counts.free, counts.mi_alloc - counts.mi_free

    solve_and_differentiate()
    before = held()
    for _ in range(20):
        solve_and_differentiate()
    print(rtsys.get_allocation_stats().alloc > 1000, held() == before)
"""


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="there is no compiled code")
def test_no_array_is_left_behind() -> None:
    assert processes.run(COUNT, NUMBA_NRT_STATS="1").split() == ["True", "True"]
