"""Many steps with other data each time need no more memory and threads than a few."""

from __future__ import annotations

import numba
import pytest

from tests.growth import growth

pytestmark = pytest.mark.skipif(
    bool(numba.config.DISABLE_JIT), reason="as plain Python so many steps take minutes"
)
STEPS = [1_000, pytest.param(10_000, marks=pytest.mark.soak)]

DATA = """
    import nbqp

    rng, n = np.random.default_rng(0), 6
    H = np.eye(n) + 0.1
"""

SOLVER = """
    solver = nbqp.Solver(H, np.ones(n), C=rng.standard_normal((4, n)), u=0.1, lb=-1.0)

    def step(k):
        solver.update(g=rng.standard_normal(n))
        if k % 3 == 0:
            solver.update(C=rng.standard_normal((4, n)))
        solution = solver.solve()
        nbqp.vjp(solution, dL_dx=np.ones(n), on_failure="zero")
        nbqp.jvp(solver.solve(solution), dg=np.ones(n), on_failure="zero")
"""

BATCHES = """
    def step(k):
        '''Some have no feasible point.'''
        C, u = rng.standard_normal((24, 4, n)), 0.3 * rng.standard_normal((24, 4))
        batch = nbqp.solve_batch(H, rng.standard_normal((24, n)), C=C, u=u, lb=-1.0, threads=2)
        nbqp.vjp(batch, dL_dx=rng.standard_normal((24, n)), on_failure="zero")
"""

PATTERNS = """
    def step(k):
        '''Other nonzeros each time, which is another analysis.'''
        C = rng.standard_normal((4, n)) * (rng.random((4, n)) < 0.5)
        solution = nbqp.solve_qp(np.diag(rng.random(n)), rng.standard_normal(n), C=C, u=0.5, lb=-1.0)
        nbqp.vjp(solution, dL_dx=np.ones(n), on_failure="zero")
"""

FAILURES = """
    def step(k):
        try:
            nbqp.solve_qp(H, np.full(n, np.nan))
        except nbqp.DataError:
            pass
        batch = nbqp.solve_batch(H, np.full((8, n), np.nan), lb=-1.0)
        try:
            nbqp.vjp(batch, dL_dx=np.ones((8, n)))
        except nbqp.UnsolvedError:
            pass
"""


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    "script",
    [SOLVER, BATCHES, PATTERNS, FAILURES],
    ids=["solver", "batches", "patterns", "failures"],
)
def test_steps_of_the_solver_leave_nothing_behind(script: str, steps: int) -> None:
    """Less than 100 bytes a step, which an object of Python would be, over ten thousand."""
    grown = growth(DATA + script + "    measure(step, int(sys.argv[1]))\n", steps)
    assert grown.memory <= 1.0
    assert grown.threads <= 0
