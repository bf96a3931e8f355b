"""Solving one QP: the pattern is analysed once, values may change."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from nbqp.analysis import analyse_qp
from nbqp.errors import PatternError, ShapeError
from nbqp.kernels.proxqp import solve_range
from nbqp.kernels.scaling import shared_scaling
from nbqp.kernels.state import Options
from nbqp.kernels.status import DUAL_INFEASIBLE, NOT_RUN, PRIMAL_INFEASIBLE
from nbqp.kernels.structure import Floats, Output, Point, Scaling
from nbqp.problem import QP, Matrix, Vector
from nbqp.settings import METHODS, Settings
from nbqp.solution import Certificate, Info, Solution, Status

WarmStartLike = Solution | tuple[Floats, Floats, Floats, Floats]


class Solver:
    """A QP whose pattern has been analysed: `update` changes values, `solve` solves.

    Parameters
    ----------
    H, g, A, b, C, l, u, lb, ub
        The data of min 1/2 x'Hx + g'x, Ax = b, l <= Cx <= u, lb <= x <= ub; see `solve_qp`.
    settings
        See `Settings`.

    Examples
    --------
    >>> import numpy as np, nbqp
    >>> solver = nbqp.Solver(np.eye(2), np.array([-1.0, 1.0]), lb=0.0)
    >>> solver.solve().x
    array([1., 0.])
    >>> solver.update(g=np.array([-2.0, -3.0]))
    >>> solver.solve().x
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
        self.settings = settings if settings is not None else Settings()
        self._arguments: dict[str, Any] = {
            "H": H, "g": g, "A": A, "b": b, "C": C, "l": l, "u": u, "lb": lb, "ub": ub,
        }  # fmt: skip
        self.problem = QP(**self._arguments)
        self._analysis = analyse_qp(self.problem)

    def update(self, **data: Any) -> None:
        """Replace some of the nine data, by name.

        Sparse matrices have to keep their pattern. A dense matrix with other nonzeros is welcome:
        its pattern is analysed anew.

        Raises
        ------
        PatternError
            A sparse matrix has another pattern, or an argument another size.
        """
        for name in data:
            if name not in self._arguments:
                raise ShapeError(
                    f"{name}: expected one of {', '.join(self._arguments)}, got another name."
                )
        arguments = {**self._arguments, **data}
        problem = QP(**arguments)
        sizes = (self.problem.n, self.problem.n_eq, self.problem.n_in)
        if (problem.n, problem.n_eq, problem.n_in) != sizes:
            raise PatternError(
                f"{', '.join(data)}: expected the sizes (n, n_eq, n_in) = {sizes} that the solver "
                f"was made for, got {(problem.n, problem.n_eq, problem.n_in)}."
            )
        anew = False
        for name in ("H", "A", "C"):
            mine, its = getattr(self.problem, name), getattr(problem, name)
            same = np.array_equal(mine.p, its.p) and np.array_equal(mine.i, its.i)
            if not same and hasattr(arguments[name], "tocsc"):
                self.problem.require_pattern(problem)
            anew = anew or not same
        self._arguments = arguments
        self.problem = problem
        if anew:
            self._analysis = analyse_qp(problem)

    def solve(self, warm_start: WarmStartLike | None = None) -> Solution:
        """Solve the QP as it stands, from a previous `Solution` or (x, y, z, z_box) if given."""
        qp = self.problem
        sizes = (qp.n, qp.n_eq, qp.n_in, qp.n)
        if isinstance(warm_start, Solution):
            warm_start = (warm_start.x, warm_start.y, warm_start.z, warm_start.z_box)
        point = None
        if warm_start is not None:
            x, y, z, z_box = (np.asarray(part)[None] for part in warm_start)
            point = (x, y, z, z_box)
        out = new_output(sizes, 1)
        start = time.perf_counter()
        solve_range(
            *self._analysis,
            qp.data(),
            shared_or_own_scaling(qp),
            to_warm_start(point, sizes, 1),
            to_options(self.settings),
            np.zeros(1, dtype=np.int64),
            0,
            1,
            out,
        )
        run_time = time.perf_counter() - start
        code = int(out.status[0])
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
        point = out.x[0], out.y[0], out.z[0], out.z_box[0]
        return Solution(qp, *point, Status(code), info, self.settings, certificate)


def shared_or_own_scaling(qp: QP) -> Scaling:
    """One scaling for a batch that shares its matrices, otherwise none: each sample finds its own."""
    H, A, C = qp.H.values, qp.A.values, qp.C.values
    if qp.batch > 1 and len(H) == len(A) == len(C) == 1:
        return Scaling(*shared_scaling(qp.pattern(), H[0], A[0], C[0]))
    return Scaling(*(np.zeros((0, size)) for size in (qp.n, qp.n_eq, qp.n_in)))


def to_options(settings: Settings) -> Options:
    """The scalars of the settings as kernels take them."""
    return Options(
        settings.eps_abs,
        settings.eps_rel,
        settings.check_duality_gap,
        settings.max_iter,
        settings.eps_primal_inf,
        settings.eps_dual_inf,
        METHODS[settings.method],
    )


def new_output(sizes: tuple[int, int, int, int], batch: int) -> Output:
    """Rows of results for `batch` samples that have not run."""
    x, y, z, z_box = (np.zeros((batch, size)) for size in sizes)
    certificate_x, certificate_y, certificate_z, certificate_z_box = (
        np.zeros((batch, size)) for size in sizes
    )
    counts = [np.zeros(batch, dtype=np.int64) for _ in range(4)]
    return Output(
        x=x,
        y=y,
        z=z,
        z_box=z_box,
        status=np.full(batch, NOT_RUN, dtype=np.int64),
        residuals=np.zeros((batch, 3)),
        iter=counts[0],
        iter_ext=counts[1],
        factorizations=counts[2],
        solves=counts[3],
        certificate_x=certificate_x,
        certificate_y=certificate_y,
        certificate_z=certificate_z,
        certificate_z_box=certificate_z_box,
    )


def to_warm_start(
    point: tuple[Floats, Floats, Floats, Floats] | None,
    sizes: tuple[int, int, int, int],
    batch: int,
) -> Point:
    """Starting points (batch, size), or none."""
    if point is None:
        return Point(*(np.zeros((0, size)) for size in sizes))
    parts = []
    for name, part, size in zip(("x", "y", "z", "z_box"), point, sizes, strict=True):
        array = np.ascontiguousarray(part, dtype=np.float64)
        if array.shape != (batch, size):
            raise ShapeError(
                f"warm_start: expected {name} of shape ({batch}, {size}), got {array.shape}."
            )
        if not np.isfinite(array).all():
            raise ShapeError(f"warm_start: expected finite {name}, got NaN or infinite entries.")
        parts.append(array)
    return Point(*parts)


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
        x (n,), y (n_eq,), z (n_in,), z_box (n,), status, info.

    Raises
    ------
    QPError
        Bad input; the first line names the argument, what was expected and what came.

    Examples
    --------
    >>> import numpy as np, nbqp
    >>> sol = nbqp.solve_qp(np.eye(2), np.zeros(2), A=np.ones((1, 2)), b=np.ones(1))
    >>> sol.status.name, sol.x
    ('SOLVED', array([0.5, 0.5]))
    """
    return Solver(H, g, A, b, C, l, u, lb, ub, settings=settings).solve(warm_start)
