"""Solving one QP: the pattern is analysed once, values may change."""

from __future__ import annotations

import copy
import functools
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from nbqp.analysis import Analysis, analyse_qp
from nbqp.convexity import find_nonconvex
from nbqp.errors import NonconvexError, PatternError, ShapeError
from nbqp.execution import new_output, read_qp, run_solves, to_warm_start
from nbqp.kernels.status import (
    DUAL_INFEASIBLE,
    NOT_RUN,
    PRIMAL_INFEASIBLE,
    TIME_LIMIT_REACHED,
)
from nbqp.kernels.structure import Floats, Output
from nbqp.problem import NAMES, QP, Matrix, Vector
from nbqp.settings import Settings, to_settings
from nbqp.solution import Certificate, Info, Solution, Status
from nbqp.sparse import Sparse
from nbqp.watch import OutOfTime, Watch, start_watch

WarmStartLike = Solution | tuple[Floats, Floats, Floats, Floats]


class _State(NamedTuple):
    """What a `Solver` holds, replaced as a whole: nothing that interrupts an update leaves a half of it."""

    problem: QP
    matrices: dict[str, Matrix]  # copies: what the user does to them in place is no update


class Solver:
    """A QP whose pattern has been analysed: `update` changes values, `solve` solves.

    Parameters
    ----------
    H, g, A, b, C, l, u, lb, ub
        The data of min 1/2 x'Hx + g'x, Ax = b, l <= Cx <= u, lb <= x <= ub; see `solve_qp`.
    settings
        See `Settings`.

    Attributes
    ----------
    settings : Settings

    Raises
    ------
    ShapeError, DataError, SymmetryError, NonconvexError, SettingsError, TooLargeError
        As in `solve_qp`.

    Examples
    --------
    >>> import numpy as np, nbqp
    >>> solver = nbqp.Solver(np.eye(2), np.array([-1.0, 1.0]), lb=0.0)
    >>> solver.solve().x.round(6)
    array([1., 0.])
    >>> solver.update(g=np.array([-2.0, -3.0]))
    >>> solver.solve().x.round(6)
    array([2., 3.])
    """

    def __init__(
        self,
        H: Matrix = None,
        g: Vector = None,
        A: Matrix = None,
        b: Vector = None,
        C: Matrix = None,
        l: Vector = None,
        u: Vector = None,
        lb: Vector = None,
        ub: Vector = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        self.settings = to_settings(settings)
        arguments = {"H": H, "g": g, "A": A, "b": b, "C": C, "l": l, "u": u, "lb": lb, "ub": ub}
        problem, watch = read_qp(arguments), Watch()
        _require_convex(problem, analyse_qp(problem, watch), watch)
        self._state = _State(problem, copy.deepcopy({"H": H, "A": A, "C": C}))

    @property
    def problem(self) -> QP:
        """The data as they stand, in the solver's form."""
        return self._state.problem

    def update(self, **data: Any) -> None:
        """Replace some of the nine data, by name; on an error, Ctrl-C included, nothing has changed.

        Sparse matrices have to keep their pattern. A dense matrix with other nonzeros is welcome:
        its pattern is analysed anew.

        Raises
        ------
        PatternError
            A sparse matrix has another pattern, or an argument another size.
        ShapeError, DataError, SymmetryError, NonconvexError, TooLargeError
            As in `solve_qp`.
        """
        held = self._state
        for name in data:
            if name not in NAMES:
                raise ShapeError(f"{name}: expected one of {', '.join(NAMES)}, got another name.")
        matrices = data.keys() & held.matrices
        if not matrices:
            self._state = held._replace(problem=held.problem.with_vectors(data))
            return
        for name in matrices:
            size, given = getattr(held.problem, name).shape, getattr(data[name], "shape", ())
            # What else an argument may be is judged with the others.
            if len(given) == 2 and given != size:
                raise PatternError(
                    f"{name}: expected the shape {size} that the solver was made for, got {given}."
                )
        arguments = {**held.problem.given_vectors(), **held.matrices, **data}
        problem = read_qp(arguments)
        sizes = (held.problem.n, held.problem.n_eq, held.problem.n_in)
        if (problem.n, problem.n_eq, problem.n_in) != sizes:
            raise PatternError(
                f"{', '.join(data)}: expected the sizes (n, n_eq, n_in) = {sizes} that the solver "
                f"was made for, got {(problem.n, problem.n_eq, problem.n_in)}."
            )
        anew = False
        for name in held.matrices:
            mine, its = getattr(held.problem, name), getattr(problem, name)
            same = np.array_equal(mine.p, its.p) and np.array_equal(mine.i, its.i)
            given = arguments[name]
            if not same and (scipy.sparse.issparse(given) or isinstance(given, Sparse)):
                held.problem.require_pattern(name, problem)
            anew = anew or not same
        watch = Watch()
        analysis = analyse_qp(problem, watch, None if anew else held.problem)
        if "H" in data:
            _require_convex(problem, analysis, watch)
        # Nothing has changed before all of it has been found good.
        copies = copy.deepcopy({name: data[name] for name in matrices})
        self._state = _State(problem, held.matrices | copies)

    def solve(self, warm_start: WarmStartLike | None = None) -> Solution:
        """Solve the QP as it stands, from a previous `Solution` or (x, y, z, z_box) if given.

        Raises
        ------
        ShapeError
            `warm_start` does not fit the QP, or is not finite.
        TooLargeError
            The solve would take more memory than there is.
        """
        qp = self.problem
        watch = start_watch(self.settings.time_limit, _load)
        warm = to_warm_start(warm_start, (qp.n, qp.n_eq, qp.n_in, qp.n), None)
        out = new_output(qp)
        run_time = run_solves(qp, analyse_qp(qp, watch), self.settings, warm, watch, 1, out)
        return _solution(qp, self.settings, out, run_time)


@functools.cache
def _load() -> None:
    """Compile the kernels of a solve, or load them."""
    solve_qp([[2.0, 1.0], [1.0, 2.0]], np.ones(2))


def _solution(qp: QP, settings: Settings, out: Output, run_time: float) -> Solution:
    """The results of one solve for users."""
    # The only sample of a call that has run out of time.
    code = TIME_LIMIT_REACHED if out.status[0] == NOT_RUN else int(out.status[0])
    certificate = None
    if code in (PRIMAL_INFEASIBLE, DUAL_INFEASIBLE):
        certificate = Certificate(
            out.certificate_x[0],
            out.certificate_y[0],
            out.certificate_z[0],
            out.certificate_z_box[0],
        )
    primal, dual, gap = (float(r) for r in out.residuals[0])
    info = Info(
        int(out.iter[0]),
        int(out.iter_ext[0]),
        int(out.factorizations[0]),
        primal,
        dual,
        abs(gap),
        run_time,
    )
    status = Status(code)
    if settings.verbose:
        print(
            f"nbqp: {status.name} in {info.iter} steps, {run_time:.3g} s; residuals: primal "
            f"{primal:.1e}, dual {dual:.1e}, gap {abs(gap):.1e}"
        )
    x, y, z, z_box, s_e, s_i, s_box = (part[0] for part in out[:7])
    return Solution(qp, x, y, z, z_box, s_e, s_i, s_box, status, info, settings, certificate)


def _require_convex(problem: QP, analysis: Analysis, watch: Watch) -> None:
    if find_nonconvex(problem, analysis, watch)[0]:
        raise NonconvexError(
            "H: expected a positive semidefinite matrix, got one with a negative eigenvalue."
        )


def solve_qp(
    H: Matrix = None,
    g: Vector = None,
    A: Matrix = None,
    b: Vector = None,
    C: Matrix = None,
    l: Vector = None,
    u: Vector = None,
    lb: Vector = None,
    ub: Vector = None,
    *,
    settings: Settings | None = None,
    warm_start: WarmStartLike | None = None,
) -> Solution:
    """Solve min 1/2 x'Hx + g'x  subject to  Ax = b,  l <= Cx <= u,  lb <= x <= ub.

    Parameters
    ----------
    H, A, C
        Dense arrays or scipy.sparse matrices of shapes (n, n), (n_eq, n), (n_in, n). None where
        absent; without H the problem is an LP. H is symmetric positive semidefinite.
    g, b, l, u, lb, ub
        Vectors of n, n_eq, n_in and n entries; bounds may be scalars, and None where absent.
    settings
        See `Settings`.
    warm_start
        A previous `Solution`, or (x, y, z, z_box).

    Returns
    -------
    Solution
        Whatever the `status`; one that is not SOLVED does not raise.

    Raises
    ------
    ShapeError
        An argument is missing or has the wrong shape or type.
    DataError
        NaN, infinite entries other than absent sides, or crossed bounds.
    SymmetryError, NonconvexError
        H is not symmetric to within the rounding of its dtype, or not positive semidefinite: H + 1e-10 D
        is not positive definite, D_ii = max(|H_ii|, 1e-3 max|H|).
    SettingsError
        `settings` is of another type.
    TooLargeError
        The problem would take more memory than there is.

    References
    ----------
    Bambade, El-Kazdadi, Taylor, Carpentier, *PROX-QP: yet another quadratic programming solver for
    robotics and beyond*, RSS 2022 (algorithm 1: the semismooth phase). Schwan, Jiang, Kuhn, Jones,
    *PIQP: a proximal interior-point quadratic programming solver*, CDC 2023 (the family of the
    smoothed phase). Bambade, Schramm, Taylor, Carpentier, *Leveraging augmented-Lagrangian
    techniques for differentiating over infeasible quadratic programs in machine learning*, ICLR
    2024, section 2 (closest feasible QPs).

    Examples
    --------
    >>> import numpy as np, nbqp
    >>> sol = nbqp.solve_qp(np.eye(2), np.zeros(2), A=np.ones((1, 2)), b=np.ones(1))
    >>> sol.status.name, sol.x
    ('SOLVED', array([0.5, 0.5]))
    """
    settings = to_settings(settings)
    watch = start_watch(settings.time_limit, _load)
    arguments = {"H": H, "g": g, "A": A, "b": b, "C": C, "l": l, "u": u, "lb": lb, "ub": ub}
    qp = read_qp(arguments)
    warm = to_warm_start(warm_start, (qp.n, qp.n_eq, qp.n_in, qp.n), None)
    out = new_output(qp)
    try:
        analysis = analyse_qp(qp, watch)
        _require_convex(qp, analysis, watch)
        run_time = run_solves(qp, analysis, settings, warm, watch, 1, out)
    except OutOfTime:
        run_time = watch.elapsed()
    return _solution(qp, settings, out, run_time)
