"""The factor of a KKT matrix whose diagonal has changed in places: made anew only there."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from nbqp.analysis import analyse_qp
from nbqp.kernels.jit import entry
from nbqp.kernels.kkt import factor_system, refactor_system
from nbqp.kernels.state import new_system
from nbqp.kernels.structure import EntriesReference, FactorReference, PatternReference
from nbqp.problem import QP
from nbqp.watch import Watch


@entry
def factor_twice(pattern_values, factor_values, entries_values, H, A, C, weights, out):
    """Factorise with weights[0], then with weights[1] (2, n_in + n): partly, and again as a whole.

    out (3, values of the factor): overwritten by the first factor, the second one made from it, and
    the second one made anew. Returns the panels that the second factorisation found stale, and those
    of a third one with the same weights.
    """
    pattern = PatternReference(*pattern_values)
    factor = FactorReference(*factor_values)
    entries = EntriesReference(*entries_values)
    system = new_system(0.0, pattern, factor, np.zeros(1, dtype=np.int64))
    system.rho[0] = 1e-8
    system.mu_e[:] = 1e-6
    size = out.shape[1]
    system.w[:] = weights[0]
    factor_system(pattern, factor, entries, H, A, C, system)
    out[0] = system.L[:size]
    system.w[:] = weights[1]
    count, _ = refactor_system(pattern, factor, entries, H, A, C, system)
    out[1] = system.L[:size]
    repeated, _ = refactor_system(pattern, factor, entries, H, A, C, system)
    factor_system(pattern, factor, entries, H, A, C, system)
    out[2] = system.L[:size]
    return count, repeated


def joined_problems(count: int) -> QP:
    """QPs of 8 variables and 6 rows that know nothing of each other, as one."""
    rng = np.random.default_rng(0)
    C = sp.block_diag([sp.coo_array(rng.random((6, 8))) for _ in range(count)], format="csc")
    return QP(H=sp.eye_array(8 * count, format="csc"), g=np.ones(8 * count), C=C, u=1.0)


def stale_panels(qp: QP, changed: list[int]) -> tuple[int, int]:
    """How many panels are made anew when these stacked rows lose their weights; and how many exist."""
    analysis = analyse_qp(qp, Watch())
    weights = np.full((2, qp.n_in + qp.n), 1e-3)
    weights[1, changed] = np.inf
    out = np.zeros((3, analysis.factor.val_ptr[-1]))
    matrices = (qp.H.values[0], qp.A.values[0], qp.C.values[0])
    count, repeated = factor_twice(*analysis, *matrices, weights, out)
    assert repeated == 0
    assert bool(changed) == (out[0] != out[2]).any()
    np.testing.assert_array_equal(out[1], out[2])
    return count, len(analysis.factor.first) - 1


def test_a_changed_row_makes_only_those_panels_anew_that_it_reaches() -> None:
    qp = joined_problems(20)
    for row in (0, 55, 119, 120, 200):
        count, panels = stale_panels(qp, [row])
        assert 0 < count <= panels / 20
    assert stale_panels(qp, [])[0] == 0
    count, panels = stale_panels(qp, list(range(qp.n_in + qp.n)))
    assert count == panels


def test_any_rows_may_change_at_once() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        n, rows = int(rng.integers(5, 60)), int(rng.integers(1, 40))
        C = sp.random_array((rows, n), density=0.1, rng=rng, format="csc")
        qp = QP(H=sp.eye_array(n, format="csc"), g=np.ones(n), C=C, u=1.0)
        stale_panels(qp, list(rng.permutation(rows + n)[: rng.integers(0, 6)]))
