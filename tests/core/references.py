"""Other people's solvers, brought to one problem statement, tightened and checked.

A reference that does not reach its tolerance raises, so that nothing is compared with rubbish.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import clarabel
import highspy
import numpy as np
import piqp
import proxsuite
import scipy.sparse as sp
from numpy.typing import NDArray

from tests.core.oracles import Array, Data, Point, kkt_error, objective, stack_rows

Raw = tuple[Array, Array, Array, Array]


def _clarabel(d: Data, tol: float) -> Raw:
    st = stack_rows(d)
    equal = st.equal
    low = ~equal & np.isfinite(st.lower)
    upp = ~equal & np.isfinite(st.upper)
    rows = np.vstack([st.M[equal], st.M[upp], -st.M[low]])
    rhs = np.concatenate([st.lower[equal], st.upper[upp], -st.lower[low]])
    cones = [
        clarabel.ZeroConeT(int(equal.sum())),
        clarabel.NonnegativeConeT(int(upp.sum() + low.sum())),
    ]
    s = clarabel.DefaultSettings()
    s.verbose = False
    s.max_threads = 1
    s.presolve_enable = False
    s.max_iter = 500
    s.tol_gap_abs = s.tol_gap_rel = s.tol_feas = tol
    s.tol_infeas_abs = s.tol_infeas_rel = 1e-13
    solver = clarabel.DefaultSolver(
        sp.csc_matrix(np.triu(d.H)), d.g, sp.csc_matrix(rows), rhs, cones, s
    )
    out = solver.solve()
    dual = np.array(out.z)
    lam = np.zeros(len(st.M))
    e, k = int(equal.sum()), int(equal.sum() + upp.sum())
    lam[equal] = dual[:e]
    lam[upp] += dual[e:k]
    lam[low] -= dual[k:]
    return np.array(out.x), *st.split(lam, d)


def _proxqp(d: Data, tol: float) -> Raw:
    qp = proxsuite.proxqp.dense.QP(d.n, len(d.b), len(d.l), True)
    s = qp.settings
    s.eps_abs, s.eps_rel = tol, 0.0
    s.check_duality_gap, s.eps_duality_gap_abs, s.eps_duality_gap_rel = True, tol, 0.0
    s.eps_primal_inf = s.eps_dual_inf = 1e-13
    s.max_iter, s.max_iter_in = 2000, 1500
    sides = (np.clip(v, -1e30, 1e30) for v in (d.l, d.u, d.lb, d.ub))
    qp.init(d.H, d.g, d.A, d.b, d.C, *sides)
    qp.solve()
    z = np.array(qp.results.z)
    return np.array(qp.results.x), np.array(qp.results.y), z[: len(d.l)], z[len(d.l) :]


def _piqp(d: Data, tol: float) -> Raw:
    solver = piqp.DenseSolver()
    s = solver.settings
    s.eps_abs, s.eps_rel = tol, 0.0
    s.check_duality_gap, s.eps_duality_gap_abs, s.eps_duality_gap_rel = True, tol, 0.0
    s.max_iter = 1000
    fortran = np.asfortranarray
    solver.setup(fortran(d.H), d.g, fortran(d.A), d.b, fortran(d.C), d.l, d.u, d.lb, d.ub)
    solver.solve()
    r = solver.result
    z, z_box = np.array(r.z_u) - np.array(r.z_l), np.array(r.z_bu) - np.array(r.z_bl)
    return np.array(r.x), np.array(r.y), z, z_box


def _highs(d: Data, tol: float) -> Raw:
    """The dual simplex method, for LPs."""
    if d.H.any():
        raise ValueError("highs: expected an LP")
    rows = sp.csc_matrix(np.vstack([d.A, d.C]))
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = d.n, rows.shape[0]
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = d.g, d.lb, d.ub
    lp.row_lower_, lp.row_upper_ = np.concatenate([d.b, d.l]), np.concatenate([d.b, d.u])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_ = rows.indptr, rows.indices
    lp.a_matrix_.value_ = rows.data
    solver = highspy.Highs()
    solver.silent()
    for name in ("primal_feasibility_tolerance", "dual_feasibility_tolerance"):
        solver.setOptionValue(name, max(tol, 1e-10))
    solver.setOptionValue("solver", "simplex")
    solver.setOptionValue("threads", 1)
    solver.passModel(lp)
    solver.run()
    out = solver.getSolution()
    dual = -np.array(out.row_dual)
    return np.array(out.col_value), dual[: len(d.b)], dual[len(d.b) :], -np.array(out.col_dual)


SOLVERS: dict[str, Callable[[Data, float], Raw]] = {
    "proxqp": _proxqp,
    "clarabel": _clarabel,
    "piqp": _piqp,
    "highs": _highs,
}


def reference_solve(
    data: Data,
    solver: str = "clarabel",
    tol: float = 1e-10,
    accept: float = 1e-6,
) -> Point:
    """Solve a feasible QP by another solver on its dense data, and polish what it found.

    Parameters
    ----------
    solver
        ``"proxqp"``, ``"clarabel"``, ``"piqp"``, or ``"highs"`` for an LP.
    tol
        Tolerance asked of the solver.
    accept
        Largest `kkt_error` returned.

    Raises
    ------
    RuntimeError
        If the point does not satisfy the KKT conditions to within ``accept``.
    """
    d = data.full()
    x, y, z, z_box = SOLVERS[solver](d, tol)
    point = Point(x, y, _on_sides(z, d.l, d.u), _on_sides(z_box, d.lb, d.ub))
    point = polished(d, point)
    error = kkt_error(d, point)
    if not error <= accept:
        raise RuntimeError(f"reference {solver}: expected a KKT error of {accept}, got {error}")
    return replace(point, objective=objective(d, point.x))


def _on_sides(lam: Array, lower: Array, upper: Array) -> Array:
    low = np.where(np.isfinite(lower), np.minimum(lam, 0), 0)
    return low + np.where(np.isfinite(upper), np.maximum(lam, 0), 0)


def polished(data: Data, point: Point, steps: int = 4, rcond: float = 1e-13) -> Point:
    """Least-norm corrections by the KKT system of the predicted active set, while they help.

    A row is active where its multiplier exceeds its slack. Feasible QPs only.
    """
    d = data.full()
    best, error = point, kkt_error(d, point)
    for _ in range(steps):
        st = stack_rows(d, best)
        value = st.M @ best.x
        upp = ~st.equal & (st.lam + value - st.upper > 0)
        low = ~st.equal & ~upp & (st.lower - value - st.lam > 0)
        on = st.equal | upp | low
        M, k = st.M[on], int(on.sum())
        bound = np.where(upp, st.upper, st.lower)[on]
        K = np.block([[d.H, M.T], [M, np.zeros((k, k))]])
        rhs = np.concatenate([-(d.H @ best.x + d.g + M.T @ st.lam[on]), bound - M @ best.x])
        step = np.linalg.lstsq(K, rhs, rcond=rcond)[0]
        lam = np.zeros(len(st.M))
        lam[on] = st.lam[on] + step[d.n :]
        new = Point(best.x + step[: d.n], *st.split(lam, d))
        new_error = kkt_error(d, new)
        if not new_error < error:
            break
        best, error = new, new_error
    return best


def closest_feasible_reference(
    data: Data, solver: str = "clarabel", tol: float = 1e-7, accept: float = 1e-8
) -> Point:
    """Solve a QP, feasible or not, by the two stages of its definition.

    1. min 1/2 ||s||^2 over (x, s) tells the rows V that have a shift (among them every row whose
       sides coincide). On them s = M_V x - bound is the residual of a least-squares problem, which
       `least_squares` solves: exact, whatever the solver.
    2. The QP on the closest feasible set, where M_V x is fixed and the other rows are as given. It
       is left out where M_V x determines x.

    The multipliers returned are the least-norm ones with the right signs. The columns of both
    stages, and the rows of the second, are brought to one size.

    Parameters
    ----------
    solver
        For both stages.
    tol
        Smallest shift of an inequality that counts.
    accept
        Largest KKT error of the shifted QP, and of ``||M's||``.

    Raises
    ------
    RuntimeError
        A stage does not end with an error of at most ``accept``.
    """
    d = data.full()
    st = stack_rows(d)
    m, n = len(st.M), d.n
    unit = 1.0 / np.abs(st.M).max(axis=0)
    M, H, g = st.M * unit, d.H * unit * unit[:, None], d.g * unit
    wide = np.hstack([M, -np.eye(m)])
    others = st.present & ~st.equal
    first = reference_solve(
        Data(
            H=np.diag(np.concatenate([np.zeros(n), np.ones(m)])),
            A=wide[st.equal],
            b=st.lower[st.equal],
            C=wide[others],
            l=st.lower[others],
            u=st.upper[others],
        ),
        solver,
        accept=accept,
    ).x
    V = st.equal | others & (np.abs(first[n:]) > tol)
    _, size, Vt = np.linalg.svd(M[V], full_matrices=False)
    basis = Vt[size > 1e-11 * size.max(initial=0.0)]
    s = np.zeros(m)
    bound = np.where(first[n:] > 0.0, st.upper, st.lower)[V]
    along, s[V] = least_squares(M[V] @ basis.T.astype(np.longdouble), bound)
    x = basis.T @ along
    if len(basis) < n:
        rest = others & ~V
        norm = np.linalg.norm(M[rest], axis=1)
        x = reference_solve(
            Data(
                H=H,
                g=g,
                A=basis,
                b=basis @ x,
                C=M[rest] / norm[:, None],
                l=st.lower[rest] / norm,
                u=st.upper[rest] / norm,
            ),
            solver,
            accept=accept,
        ).x
    x = unit * x
    lam = least_norm_multipliers(d, x, s, solver)
    point = Point(x, *st.split(lam, d), *st.split(s, d), objective(d, x))
    error = max(kkt_error(d, point), float(np.abs(st.M.T @ s).max()))
    if not error <= accept:
        raise RuntimeError(f"closest feasible reference: KKT error {error} above {accept}")
    return point


def least_squares(M: NDArray[np.longdouble], bound: Array) -> tuple[Array, Array]:
    """The x of least |M x - bound|, and M x - bound, M of full column rank, in extended precision.

    By Gram-Schmidt, twice: the error of x grows with the square of M's condition number, which
    leaves of double precision too little to compare with.
    """
    Q, size = M.copy(), M.shape[1]
    R = np.zeros((size, size), np.longdouble)
    for j in range(size):
        for _ in range(2):
            share = Q[:, :j].T @ Q[:, j]
            R[:j, j] += share
            Q[:, j] -= Q[:, :j] @ share
        R[j, j] = np.sqrt(Q[:, j] @ Q[:, j])
        Q[:, j] /= R[j, j]
    x = Q.T @ bound
    residual = Q @ x - bound
    for j in reversed(range(size)):
        x[j] = (x[j] - R[j, j + 1 :] @ x[j + 1 :]) / R[j, j]
    return x.astype(float), residual.astype(float)


def least_norm_multipliers(
    data: Data, x: Array, s: Array, solver: str = "clarabel", tol: float = 1e-7
) -> Array:
    """Multipliers (y, z, z_box) of least l2 norm, of the right signs, at a solution.

    ``s`` stacks the shifts of all rows. Solves ``min 1/2 ||lam||^2`` subject to stationarity,
    lam = 0 on inactive rows and lam >= 0, <= 0 on upper, lower sides.
    """
    d = data.full()
    st = stack_rows(d)
    value = st.M @ x - s
    upp = ~st.equal & (np.abs(value - st.upper) <= tol)
    low = ~st.equal & (np.abs(value - st.lower) <= tol)
    on = np.flatnonzero(st.equal | upp | low)
    lam = np.zeros(len(st.M))
    U, size, Wt = np.linalg.svd(st.M[on].T, full_matrices=False)
    keep = size > 1e-11 * size.max(initial=0.0)
    if keep.any():
        lam[on] = reference_solve(
            Data(
                H=np.eye(len(on)),
                A=Wt[keep],
                b=-(U[:, keep].T @ (d.H @ x + d.g)) / size[keep],
                lb=np.where((st.equal | low)[on], -np.inf, 0.0),
                ub=np.where((st.equal | upp)[on], np.inf, 0.0),
            ),
            solver,
        ).x
    return lam
