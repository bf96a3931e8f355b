"""Integer codes of what a phase of the solver ended with; `nbqp.Status` names them for users."""

SOLVED = CONVERGED = 0
MAX_ITER_REACHED = OUT_OF_STEPS = 1
TIME_LIMIT_REACHED = ABORTED = 2
PRIMAL_INFEASIBLE = 3
SOLVED_CLOSEST_PRIMAL_FEASIBLE = 4
DUAL_INFEASIBLE = 5
NONCONVEX = 6
INVALID_DATA = 7
NUMERICAL_ERROR = STALLED = 8
NOT_RUN = 9
# Of a search for certificates of infeasibility; no phase ends with it.
NO_CERTIFICATE = -1
