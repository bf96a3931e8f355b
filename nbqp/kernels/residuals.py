"""Residuals and duality gap, always measured in the user's units.

With r_d = Hx + g + A'y + M'z, e = Ax - b and the distance of v = Mx to the side that z holds on to,

    gap = x'Hx + g'x + b'y + sum z_i side_i  =  x'r_d - y'e - sum z_i (v_i - side_i)

exactly; the right-hand form is a sum of small terms and has none of the left one's cancellation.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.csc import (
    add_compensated,
    add_exactly,
    add_product_compensated,
    add_products,
    add_symmetric_product,
    add_transposed_product,
    add_transposed_product_compensated,
    two_sum,
)
from nbqp.kernels.jit import entry, exact, kernel, reduction
from nbqp.kernels.number import larger, maximum, where
from nbqp.kernels.structure import sample_data


@kernel
def update_products(pattern, problem, it):
    """Recompute it.Hx, it.dual, it.e and it.v from it.x, it.y and it.z (not modified)."""
    Hx = it.Hx
    x = it.x
    z = it.z
    dual = it.dual
    e = it.e
    v = it.v
    g = problem.g
    b = problem.b
    n_in = pattern.n_in
    Hx[:] = 0.0
    add_symmetric_product(pattern.Hp, pattern.Hi, problem.H, x, Hx)
    for i in range(pattern.n_eq):
        e[i] = -b[i]
    for i in range(n_in):
        v[i] = 0.0
    for j in range(pattern.n):
        v[n_in + j] = x[j]
        dual[j] = Hx[j] + g[j] + z[n_in + j]
    add_products(pattern.Ap, pattern.Ai, problem.A, x, it.y, e, dual)
    add_products(pattern.Cp, pattern.Ci, problem.C, x, z, v, dual)


@kernel
def update_dual(pattern, problem, it):
    """Recompute it.dual from it.Hx, it.y and it.z (not modified)."""
    dual = it.dual
    Hx = it.Hx
    g = problem.g
    for j in range(pattern.n):
        dual[j] = Hx[j] + g[j]
    _add_constraint_forces(pattern, problem, it.y, it.z, dual)


@kernel
def _add_constraint_forces(pattern, problem, y, z, out):
    """Add A'y + M'z to out (n)."""
    n_in = pattern.n_in
    for j in range(pattern.n):
        out[j] += z[n_in + j]
    add_transposed_product(pattern.Ap, pattern.Ai, problem.A, y, out)
    add_transposed_product(pattern.Cp, pattern.Ci, problem.C, z, out)


@kernel
def set_constraint_forces(pattern, problem, it):
    """Set it.dual to A'y + M'z: never as a difference, whose rounding is that of H x and g."""
    it.dual[:] = 0.0
    _add_constraint_forces(pattern, problem, it.y, it.z, it.dual)


@kernel
def side_of(z, lo, hi):
    """The side that a multiplier holds on to; 0 for a multiplier without one (z is then 0)."""
    upper = (z > 0.0) & (hi < np.inf)
    lower = (z < 0.0) & (lo > -np.inf)
    return where(upper, hi, where(lower, lo, 0.0))


@kernel
def clear_absent_sides(lo, hi, z):
    """Set multipliers to 0 whose side is infinite."""
    for i in range(len(z)):
        if (z[i] > 0.0 and hi[i] == np.inf) or (z[i] < 0.0 and lo[i] == -np.inf):
            z[i] = 0.0


@reduction
def measure(pattern, problem, it, shift, res):
    """Residuals of an iterate whose products are up to date, about the shifted sides.

    res (3): overwritten by the primal residual, the dual residual and |gap|; the rest is not
    modified.
    """
    unit_d = problem.unit_d
    unit_e = problem.unit_e
    unit = problem.unit
    hi = problem.hi
    lo = problem.lo
    dual_terms = it.dual
    e = it.e
    v = it.v
    x = it.x
    y = it.y
    z = it.z
    s_e = shift.e
    s = shift.s
    primal = 0.0
    gap = 0.0
    dual = 0.0
    for j in range(pattern.n):
        dual = larger(dual, abs(dual_terms[j]) * unit_d[j])
        gap += x[j] * dual_terms[j]
    for i in range(pattern.n_eq):
        r = e[i] - s_e[i]
        primal = larger(primal, abs(r) * unit_e[i])
        gap -= y[i] * r
    for i in range(len(z)):
        value = v[i] - s[i]
        primal = larger(primal, maximum(value - hi[i], lo[i] - value) * unit[i])
        gap -= z[i] * where(z[i] != 0.0, value - side_of(z[i], lo[i], hi[i]), 0.0)
    res[0] = primal
    res[1] = dual
    res[2] = abs(gap) / problem.cost[0]


@reduction
def _gap_terms(pattern, problem, it):
    """The largest of the terms of the duality gap; as in ProxQP."""
    n_eq = pattern.n_eq
    n = pattern.n
    b = problem.b
    g = problem.g
    lo = problem.lo
    hi = problem.hi
    x = it.x
    y = it.y
    z = it.z
    Hx = it.Hx
    quadratic = 0.0
    linear = 0.0
    for j in range(n):
        quadratic += x[j] * Hx[j]
        linear += x[j] * g[j]
    equalities = 0.0
    for i in range(n_eq):
        equalities += b[i] * y[i]
    sides = 0.0
    for i in range(len(z)):
        sides += abs(side_of(z[i], lo[i], hi[i]) * z[i])
    terms = maximum(maximum(quadratic, abs(linear)), maximum(abs(equalities), sides))
    return terms / problem.cost[0]


@kernel
def set_tolerances(pattern, problem, it, options, tol):
    """Set tol (3) to eps_abs + eps_rel * (size of the terms of each residual); as in ProxQP."""
    eps_rel = options.eps_rel
    n_eq = pattern.n_eq
    n = pattern.n
    problem_b = problem.b
    z = it.z
    lo = problem.lo
    hi = problem.hi
    unit_e = problem.unit_e
    unit = problem.unit
    Hx = it.Hx
    g = problem.g
    unit_d = problem.unit_d
    it_dual = it.dual
    v = it.v
    e = it.e
    tol[:] = options.eps_abs
    if eps_rel == 0.0:
        return
    primal = 0.0
    for i in range(n_eq):
        b = problem_b[i]
        primal = maximum(primal, maximum(abs(b), abs(e[i] + b)) * unit_e[i])
    for i in range(len(z)):
        side = side_of(z[i], lo[i], hi[i])
        primal = maximum(primal, maximum(abs(side), abs(v[i])) * unit[i])
    dual = 0.0
    for j in range(n):
        terms = maximum(abs(Hx[j]), abs(g[j]))
        terms = maximum(terms, abs(Hx[j] + g[j] - it_dual[j]))
        dual = maximum(dual, terms * unit_d[j])
    tol[0] += eps_rel * primal
    tol[1] += eps_rel * dual
    tol[2] += eps_rel * _gap_terms(pattern, problem, it)


@kernel
def set_aims(pattern, problem, it, options, tol):
    """The tolerances of a phase: a gap below the rounding of its terms is left to `rounding`."""
    set_tolerances(pattern, problem, it, options, tol)
    if options.gap_rounding > 0.0:
        tol[2] = maximum(tol[2], options.gap_rounding * _gap_terms(pattern, problem, it))


@kernel
def worst_ratio(res, tol, counted):
    """The largest residual relative to its tolerance; infinity where one is NaN.

    counted: 3, or 2 to leave the duality gap out.
    """
    worst = 0.0
    for k in range(counted):
        ratio = abs(res[k]) / tol[k]
        if not ratio <= worst:
            worst = ratio if ratio > worst else np.inf
    return worst


@kernel
def within(res, tol, options):
    """Whether the residuals that count are within their tolerances."""
    return worst_ratio(res, tol, 3 if options.check_duality_gap else 2) <= 1.0


@exact
def set_exact_dual(pattern, qp, x, y, z, z_box, total, error):
    """Total + error (n) = Hx + g + A'y + C'z + z_box, in twice the working precision."""
    for j in range(pattern.n):
        total[j] = qp.g[j]
        error[j] = 0.0
        add_compensated(z_box[j], total, error, j)
    add_product_compensated(pattern.Hp, pattern.Hi, qp.H, x, total, error)
    add_transposed_product_compensated(pattern.Ap, pattern.Ai, qp.A, y, total, error)
    add_transposed_product_compensated(pattern.Cp, pattern.Ci, qp.C, z, total, error)


@exact
def exact_residuals(pattern, qp, x, y, z, z_box, s_e, s_i, s_box, res):
    """Residuals of an unscaled point from the user's data `qp`, with compensated sums.

    s_e, s_i, s_box: shifts of the constraints (zeros for the QP as given). Every argument but
    res (3) is not modified: primal residual, dual residual, duality gap (with its sign).
    """
    Ap = pattern.Ap
    Ai = pattern.Ai
    Cp = pattern.Cp
    Ci = pattern.Ci
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    n = pattern.n
    b = qp.b
    l = qp.l
    u = qp.u
    lb = qp.lb
    ub = qp.ub
    total = np.zeros(n)
    error = np.zeros(n)
    set_exact_dual(pattern, qp, x, y, z, z_box, total, error)
    e = np.zeros(n_eq)
    e_error = np.zeros(n_eq)
    for i in range(n_eq):
        e[i] = -b[i]
        add_compensated(-s_e[i], e, e_error, i)
    add_product_compensated(Ap, Ai, qp.A, x, e, e_error)
    v = np.zeros(n_in)
    v_error = np.zeros(n_in)
    for i in range(n_in):
        v[i] = -s_i[i]
    add_product_compensated(Cp, Ci, qp.C, x, v, v_error)

    gap = np.zeros(1)
    gap_error = np.zeros(1)
    primal = 0.0
    dual = 0.0
    for j in range(n):
        r = total[j] + error[j]
        dual = larger(dual, abs(r))
        add_exactly(x[j], r, gap, gap_error, 0)
        value, value_error = two_sum(x[j], -s_box[j])
        above = (value - ub[j]) + value_error
        below = (lb[j] - value) - value_error
        primal = larger(primal, max(above, below))
        if z_box[j] > 0.0:
            add_exactly(-z_box[j], above, gap, gap_error, 0)
        elif z_box[j] < 0.0:
            add_exactly(z_box[j], below, gap, gap_error, 0)
    for i in range(n_eq):
        r = e[i] + e_error[i]
        primal = larger(primal, abs(r))
        add_exactly(-y[i], r, gap, gap_error, 0)
    for i in range(n_in):
        above = (v[i] - u[i]) + v_error[i]
        below = (l[i] - v[i]) - v_error[i]
        primal = larger(primal, max(above, below))
        if z[i] > 0.0:
            add_exactly(-z[i], above, gap, gap_error, 0)
        elif z[i] < 0.0:
            add_exactly(z[i], below, gap, gap_error, 0)
    res[0] = primal
    res[1] = dual
    res[2] = gap[0] + gap_error[0]


@entry
def batch_residuals(pattern, data, x, y, z, z_box, s_e, s_i, s_box, res):
    """`exact_residuals` of every sample. data: `Data` (not modified). res (batch, 3)."""
    for k in range(len(x)):
        exact_residuals(
            pattern,
            sample_data(data, k),
            x[k],
            y[k],
            z[k],
            z_box[k],
            s_e[k],
            s_i[k],
            s_box[k],
            res[k],
        )
