"""Solvers of sparse quadratic programs, each brought to one statement of problem and solution.

A solver is imported when it is first used, since it may be missing.
"""

from __future__ import annotations

import abc
import dataclasses
import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse

import nbqp
from benchmarks.isolated import forget_peak_memory, peak_memory
from benchmarks.peers import PROXSUITE_INFINITY
from benchmarks.programs import Floats, Program, Sparse
from nbqp.analysis import analyse_qp, analyses
from nbqp.watch import Watch

Settings: TypeAlias = dict[str, Any]

REPEATS = 5
SHORT = 0.1
"""Seconds: once solves have taken so many together there is no further one."""


@dataclasses.dataclass
class Answer:
    """What a solver returned: x (n,), y (rows + n,) as in `Program`, its own status and counts.

    seconds: of set-up and solution. memory: most bytes of the process during these.
    """

    solved: bool
    status: str
    x: Floats
    y: Floats
    counts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    memory: int = 0


class Adaptor(abc.ABC):
    """A program in a solver's form, made by the constructor; the settings have the solver's names."""

    def __init__(self, program: Program, settings: Settings) -> None:
        self.program = program
        self.settings = settings

    @abc.abstractmethod
    def solve(self) -> None:
        """Set up and solve: what is timed."""

    @abc.abstractmethod
    def answer(self) -> Answer:
        """Read the solution."""


def solve_program(
    adaptor: Callable[[Program, Settings], Adaptor], program: Program, settings: Settings
) -> Answer:
    """Solve a program and time it, without the conversion of its data.

    A solve that is soon done is repeated, and its least time counts: on small programs one turn of
    another process takes longer than the solver.
    """
    forget_peak_memory()
    samples: list[float] = []
    fastest = adaptor(program, settings)
    while not samples or (len(samples) < REPEATS and sum(samples) < SHORT):
        adapted = adaptor(program, settings) if samples else fastest
        gc.collect()
        begin = time.perf_counter()
        adapted.solve()
        samples.append(time.perf_counter() - begin)
        if samples[-1] == min(samples):
            fastest = adapted
    memory, found = peak_memory(), fastest.answer()
    # Without a solution a solver may return none at all.
    x, y = (np.asarray(part, dtype=np.float64) for part in (found.x, found.y))
    return dataclasses.replace(found, x=x, y=y, seconds=min(samples), memory=memory)


def assign(target: Any, settings: Settings) -> None:
    """Set attributes by name."""
    for name, value in settings.items():
        setattr(target, name, value)


class Split:
    """The rows of a program by kind: Ax = b, l <= Cx <= u, lb <= x <= ub; without a side: none.

    fixed_as_rows: a variable with lb = ub is a row of A, and has no bounds.
    """

    def __init__(self, program: Program, fixed_as_rows: bool) -> None:
        rows = program.rows
        self._rows = rows
        self.equal = program.equal
        fixed = self.equal[rows:].copy()
        if not fixed_as_rows:
            self.equal[rows:] = fixed[:] = False
        self.between = program.bounded & ~self.equal
        self.between[rows:] = False
        self.A, self.b = program.A[self.equal].tocsc(), program.l[self.equal]
        self.C = program.A[self.between].tocsc()
        self.l, self.u = program.l[self.between], program.u[self.between]
        self.lb = np.where(fixed, -np.inf, program.l[rows:])
        self.ub = np.where(fixed, np.inf, program.u[rows:])

    def join(self, y: Floats, z: Floats, z_box: Floats) -> Floats:
        """The multipliers of all rows from those of A, of C and of the bounds."""
        joined = np.zeros(len(self.equal))
        joined[self._rows :] = z_box
        joined[self.equal], joined[self.between] = y, z
        return joined


class Nbqp(Adaptor):
    """nbqp: what `nbqp.solve_qp` does, by a `Solver` that can be asked for the factor's size."""

    def __init__(self, program: Program, settings: Settings) -> None:
        super().__init__(program, settings)
        # A pattern that this process has met before would need no analysis.
        analyses.clear()
        self.split = Split(program, fixed_as_rows=False)
        self.nbqp_settings = nbqp.Settings(**settings)

    def solve(self) -> None:
        """Validate, analyse and solve."""
        rows = self.split
        data = (rows.A, rows.b, rows.C, rows.l, rows.u, rows.lb, rows.ub)
        self.solver = nbqp.Solver(
            self.program.P, self.program.q, *data, settings=self.nbqp_settings
        )
        self.solution = self.solver.solve()

    def answer(self) -> Answer:
        """Read the solution."""
        found, info = self.solution, self.solution.info
        counts = {
            "iterations": info.iter,
            "outer_iterations": info.iter_ext,
            "factorizations": info.factorizations,
            "nnz_factor": analyse_qp(self.solver.problem, Watch()).values,
            # Without validation and analysis.
            "run_time": info.run_time,
        }
        solved = found.status is nbqp.Status.SOLVED
        y = self.split.join(found.y, found.z, found.z_box)
        return Answer(solved, found.status.name, found.x, y, counts)


class ProxqpSparse(Adaptor):
    """ProxSuite's sparse back-end, which takes bounds as rows."""

    def __init__(self, program: Program, settings: Settings) -> None:
        super().__init__(program, settings)
        from proxsuite import proxqp

        self.proxqp = proxqp
        self.equal = program.equal
        self.between = program.bounded & ~self.equal
        self.sides = [
            np.clip(side[self.between], -PROXSUITE_INFINITY, PROXSUITE_INFINITY)
            for side in (program.l, program.u)
        ]
        self.A, self.C = (program.A[kept].tocsc() for kept in (self.equal, self.between))

    def solve(self) -> None:
        """Set up and solve."""
        program = self.program
        self.qp = self.proxqp.sparse.QP(program.n, self.A.shape[0], self.C.shape[0])
        assign(self.qp.settings, self.settings)
        self.qp.init(program.P, program.q, self.A, program.l[self.equal], self.C, *self.sides)
        self.qp.solve()

    def answer(self) -> Answer:
        """Read the solution."""
        results = self.qp.results
        y = np.zeros(len(self.equal))
        y[self.equal], y[self.between] = results.y, results.z
        status = results.info.status
        solved = status == self.proxqp.PROXQP_SOLVED
        return Answer(
            solved, status.name, np.array(results.x), y, {"iterations": results.info.iter}
        )


class ProxqpDense(Adaptor):
    """ProxSuite's dense back-end."""

    def __init__(self, program: Program, settings: Settings) -> None:
        super().__init__(program, settings)
        from proxsuite import proxqp

        self.proxqp = proxqp
        self.split = Split(program, fixed_as_rows=True)
        self.dense = [part.toarray() for part in (program.P, self.split.A, self.split.C)]
        split = self.split
        self.sides = [
            np.clip(side, -PROXSUITE_INFINITY, PROXSUITE_INFINITY)
            for side in (split.l, split.u, split.lb, split.ub)
        ]

    def solve(self) -> None:
        """Set up and solve."""
        P, A, C = self.dense
        self.qp = self.proxqp.dense.QP(len(P), len(A), len(C), True)
        assign(self.qp.settings, self.settings)
        self.qp.init(P, self.program.q, A, self.split.b, C, *self.sides)
        self.qp.solve()

    def answer(self) -> Answer:
        """Read the solution."""
        results = self.qp.results
        z, z_box = np.split(np.array(results.z), [len(self.split.l)])
        y = self.split.join(results.y, z, z_box)
        status = results.info.status
        solved = status == self.proxqp.PROXQP_SOLVED
        return Answer(
            solved, status.name, np.array(results.x), y, {"iterations": results.info.iter}
        )


class Piqp(Adaptor):
    """PIQP, sparse or dense."""

    def __init__(self, program: Program, settings: Settings, dense: bool) -> None:
        super().__init__(program, settings)
        import piqp

        self.make = piqp.DenseSolver if dense else piqp.SparseSolver
        self.split = split = Split(program, fixed_as_rows=True)

        def convert(matrix: Sparse) -> Any:
            return np.asfortranarray(matrix.toarray()) if dense else matrix

        P, A, C = (convert(matrix) for matrix in (program.P, split.A, split.C))
        self.data = (P, program.q, A, split.b, C, split.l, split.u, split.lb, split.ub)

    def solve(self) -> None:
        """Set up and solve."""
        self.solver = self.make()
        assign(self.solver.settings, self.settings)
        self.solver.setup(*self.data)
        self.solver.solve()

    def answer(self) -> Answer:
        """Read the solution."""
        result = self.solver.result
        y = self.split.join(result.y, result.z_u - result.z_l, result.z_bu - result.z_bl)
        status = result.info.status.name
        counts = {"iterations": result.info.iter}
        return Answer(status == "PIQP_SOLVED", status, np.array(result.x), y, counts)


class Clarabel(Adaptor):
    """Clarabel: equations, then a row for each finite side of the others."""

    def __init__(self, program: Program, settings: Settings) -> None:
        super().__init__(program, settings)
        import clarabel

        self.clarabel = clarabel
        equal = program.equal
        self.parts = (equal, ~equal & np.isfinite(program.u), ~equal & np.isfinite(program.l))
        at, above, below = self.parts
        A, l, u = program.A, program.l, program.u
        self.P = scipy.sparse.triu(program.P, format="csc")
        self.G = scipy.sparse.vstack([A[at], A[above], -A[below]], format="csc")
        self.h = np.concatenate([u[at], u[above], -l[below]])

    def solve(self) -> None:
        """Set up and solve."""
        clarabel = self.clarabel
        settings = clarabel.DefaultSettings()
        assign(settings, self.settings)
        n_eq = int(self.parts[0].sum())
        cones = [clarabel.ZeroConeT(n_eq), clarabel.NonnegativeConeT(len(self.h) - n_eq)]
        solver = clarabel.DefaultSolver(self.P, self.program.q, self.G, self.h, cones, settings)
        self.found = solver.solve()

    def answer(self) -> Answer:
        """Read the solution."""
        at, above, below = self.parts
        z_at, z_above, z_below = np.split(
            np.array(self.found.z), np.cumsum([at.sum(), above.sum()])
        )
        y = np.zeros(len(at))
        y[at] = z_at
        y[above] += z_above
        y[below] -= z_below
        solved = self.found.status == self.clarabel.SolverStatus.Solved
        counts = {"iterations": self.found.iterations}
        return Answer(solved, str(self.found.status), np.array(self.found.x), y, counts)


class Osqp(Adaptor):
    """OSQP, whose problem statement is that of `Program`."""

    def __init__(self, program: Program, settings: Settings) -> None:
        super().__init__(program, settings)
        import osqp

        self.osqp = osqp
        self.kept = program.bounded
        self.P = scipy.sparse.triu(program.P, format="csc")
        self.A = program.A[self.kept].tocsc()
        self.l, self.u = program.l[self.kept], program.u[self.kept]

    def solve(self) -> None:
        """Set up and solve."""
        solver = self.osqp.OSQP()
        solver.setup(self.P, self.program.q, self.A, self.l, self.u, **self.settings)
        self.found = solver.solve(raise_error=False)

    def answer(self) -> Answer:
        """Read the solution."""
        y = np.zeros(len(self.kept))
        y[self.kept] = self.found.y
        info = self.found.info
        solved = info.status_val == self.osqp.SolverStatus.OSQP_SOLVED
        counts = {"iterations": info.iter}
        return Answer(bool(solved), info.status, np.array(self.found.x), y, counts)


class Highs(Adaptor):
    """HiGHS, whose multipliers have the opposite sign."""

    def __init__(self, program: Program, settings: Settings) -> None:
        super().__init__(program, settings)
        import highspy

        self.highspy: Any = highspy
        rows, A = program.rows, program.A[: program.rows].tocsc()
        self.model = highspy.HighsModel()
        lp, hessian = self.model.lp_, self.model.hessian_
        lp.num_col_, lp.num_row_ = program.n, rows
        lp.col_cost_ = program.q
        lp.row_lower_, lp.col_lower_ = np.split(program.l, [rows])
        lp.row_upper_, lp.col_upper_ = np.split(program.u, [rows])
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_, lp.a_matrix_.index_ = A.indptr, A.indices
        lp.a_matrix_.value_ = A.data
        if program.P.nnz:
            P = scipy.sparse.tril(program.P, format="csc")
            hessian.dim_, hessian.format_ = program.n, highspy.HessianFormat.kTriangular
            hessian.start_, hessian.index_, hessian.value_ = P.indptr, P.indices, P.data

    def solve(self) -> None:
        """Set up and solve."""
        self.solver = self.highspy.Highs()
        for name, value in self.settings.items():
            self.solver.setOptionValue(name, value)
        self.solver.passModel(self.model)
        self.solver.run()

    def answer(self) -> Answer:
        """Read the solution; NaN where there is none."""
        found, status = self.solver.getSolution(), self.solver.getModelStatus()
        n, rows = self.program.n, self.program.rows
        x, y = np.full(n, np.nan), np.full(rows + n, np.nan)
        if found.value_valid and found.dual_valid:
            x = np.array(found.col_value)
            y = -np.concatenate([found.row_dual, found.col_dual])
        solved = status == self.highspy.HighsModelStatus.kOptimal
        info = self.solver.getInfo()
        counts = {"iterations": info.qp_iteration_count + info.simplex_iteration_count}
        return Answer(solved, self.solver.modelStatusToString(status), x, y, counts)
