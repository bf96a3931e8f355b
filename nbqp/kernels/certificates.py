"""Certificates of infeasibility, measured in the user's units: found by a phase, then proved.

A phase tests its candidates on products with the scaled matrices, which it has anyway; what it
finds is proved once more from the user's data, with compensated sums, before it becomes a status.

Primal (Farkas): (y, z) with A'y + M'z = 0 and s = b'y + sum hi z_+ - sum lo z_- < 0. For every x,

    |A'y + M'z|_inf |x|_1 + |(y, z)|_1 * (largest violation at x)  >=  -s,

so a residual of eps * (-s) leaves only feasible points with |x|_1 >= 1/eps, and a violation of
-s / |(y, z)|_1 is unavoidable near the origin: below the tolerance that is asked for, the problem
counts as feasible.

Dual: a direction d with H d = 0, A d = 0, M d within the recession cone of the sides, g'd < 0.
Along t d the objective falls until t = -g'd / d'Hd: by |t d| >= 1 / eps, which counts as for ever.
Leaving the cone by `leave` costs about |g| * leave, which has to be small beside the descent. The
curvature is held against the entries of H as well: a long gradient does not make a positive
definite H flat.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.csc import (
    add_exactly,
    add_product_compensated,
    add_transposed_product_compensated,
)
from nbqp.kernels.dense import largest
from nbqp.kernels.jit import exact, kernel
from nbqp.kernels.number import larger

# The share of the sum that must remain after cancellation for its sign to be believed.
SIGNIFICANT = 1e-9
# What a phase asks of its candidates, as a share of what the proof asks: the two round differently.
MARGIN = 0.5


@kernel
def _is_farkas(residual, support, norm, eps, eps_abs):
    """Whether the sizes of A'y + M'z, of s and of (y, z) are those of a certificate."""
    return support < 0.0 and residual <= -eps * support and eps_abs * norm < -support


@kernel
def _is_descent(norm, slope, curvature, leave, largest_g, largest_H, eps):
    """Whether |d|, g'd, |H d|, the distance from the cone, |g| and |H| are those of a certificate."""
    return (
        norm > 0.0
        and slope < 0.0
        and curvature <= -eps * slope
        and curvature <= eps * largest_H * norm
        and leave * largest_g <= -eps * slope
        and leave <= eps * norm
    )


@kernel
def proves_primal_infeasible(pattern, problem, y, z, residual, eps, eps_abs):
    """Whether (y, z) is a Farkas certificate; scaled units in, the user's units compared.

    y (n_eq), residual = A'y + M'z (n): not modified. z (m): parts on infinite sides, and parts of
    bounds that the residual corrects, are changed.
    """
    n = pattern.n
    n_eq = pattern.n_eq
    b = problem.b
    unit_e = problem.unit_e
    unit = problem.unit
    unit_d = problem.unit_d
    hi = problem.hi
    lo = problem.lo
    n_in = pattern.n_in
    residual_norm = 0.0
    for j in range(n):
        i = n_in + j
        r = residual[j]
        # A bound's multiplier enters the residual alone: choose it to cancel.
        wanted = z[i] - r
        if (wanted > 0.0 and hi[i] < np.inf) or (wanted < 0.0 and lo[i] > -np.inf):
            r = 0.0
            z[i] = wanted
        else:
            r -= z[i]
            z[i] = 0.0
        residual_norm = max(residual_norm, abs(r) * unit_d[j])
    support = 0.0
    terms = 0.0
    norm = 0.0
    c = problem.cost[0]
    for i in range(n_eq):
        support += b[i] * y[i]
        terms += abs(b[i] * y[i])
        norm += abs(y[i]) / unit_e[i]
    for i in range(n_in + n):
        if z[i] > 0.0:
            if hi[i] == np.inf:
                return False
            support += hi[i] * z[i]
            terms += abs(hi[i] * z[i])
        elif z[i] < 0.0:
            if lo[i] == -np.inf:
                return False
            support += lo[i] * z[i]
            terms += abs(lo[i] * z[i])
        norm += abs(z[i]) / unit[i]
    return support < -SIGNIFICANT * terms and _is_farkas(
        residual_norm, MARGIN * support / c, norm / c, eps, eps_abs
    )


@kernel
def proves_dual_infeasible(pattern, problem, d, Hd, Ad, Md, eps):
    """Whether d is a direction of unbounded descent; scaled units in, the user's units compared.

    d (n), Hd (n), Ad (n_eq), Md (m): not modified.
    """
    n = pattern.n
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    g = problem.g
    hi = problem.hi
    lo = problem.lo
    D = problem.D
    unit_d = problem.unit_d
    unit_e = problem.unit_e
    unit = problem.unit
    norm = 0.0
    slope = 0.0
    terms = 0.0
    largest_g = 0.0
    curvature = 0.0
    c = problem.cost[0]
    for j in range(n):
        norm = max(norm, abs(d[j]) * D[j])
        slope += g[j] * d[j]
        terms += abs(g[j] * d[j])
        largest_g = max(largest_g, abs(g[j]) * unit_d[j])
        curvature = max(curvature, abs(Hd[j]) * unit_d[j])
    if not slope < -SIGNIFICANT * terms:
        return False
    leave = 0.0
    for i in range(n_eq):
        leave = max(leave, abs(Ad[i]) * unit_e[i])
    for i in range(n_in + n):
        if hi[i] < np.inf:
            leave = max(leave, Md[i] * unit[i])
        if lo[i] > -np.inf:
            leave = max(leave, -Md[i] * unit[i])
    largest_H = 0.0
    for j in range(n):
        for p in range(pattern.Hp[j], pattern.Hp[j + 1]):
            entry = abs(problem.H[p]) * unit_d[j] / D[pattern.Hi[p]]
            largest_H = max(largest_H, entry)
    return _is_descent(norm, slope / c, curvature, leave, largest_g, largest_H, MARGIN * eps)


@exact
def proven_primal_infeasible(pattern, qp, y, z, z_box, options):
    """Whether (y, z, z_box) is a Farkas certificate of the user's data `qp`, in whose units it is.

    y (n_eq), z (n_in): not modified. z_box (n): overwritten by what cancels A'y + C'z best.
    """
    n = pattern.n
    total = np.zeros(n)
    error = np.zeros(n)
    add_transposed_product_compensated(pattern.Ap, pattern.Ai, qp.A, y, total, error)
    add_transposed_product_compensated(pattern.Cp, pattern.Ci, qp.C, z, total, error)
    residual = 0.0
    support = np.zeros(1)
    support_error = np.zeros(1)
    norm = 0.0
    for i in range(pattern.n_eq):
        add_exactly(qp.b[i], y[i], support, support_error, 0)
        norm += abs(y[i])
    for i in range(pattern.n_in):
        # On an absent side the sum becomes infinite, or NaN, and proves nothing.
        if z[i] != 0.0:
            side = qp.u[i] if z[i] > 0.0 else qp.l[i]
            add_exactly(side, z[i], support, support_error, 0)
        norm += abs(z[i])
    for j in range(n):
        wanted = -(total[j] + error[j])
        side = qp.ub[j] if wanted > 0.0 else qp.lb[j]
        z_box[j] = wanted if abs(side) < np.inf else 0.0
        residual = larger(residual, abs((total[j] + z_box[j]) + error[j]))
        if z_box[j] != 0.0:
            add_exactly(side, z_box[j], support, support_error, 0)
        norm += abs(z_box[j])
    return _is_farkas(
        residual, support[0] + support_error[0], norm, options.eps_primal_inf, options.eps_abs
    )


@exact
def proven_dual_infeasible(pattern, qp, d, options):
    """Whether d (n, not modified) is a direction of unbounded descent of the user's data `qp`."""
    n = pattern.n
    slope = np.zeros(1)
    slope_error = np.zeros(1)
    for j in range(n):
        add_exactly(qp.g[j], d[j], slope, slope_error, 0)
    Hd = _product(pattern.Hp, pattern.Hi, qp.H, d, n)
    Ad = _product(pattern.Ap, pattern.Ai, qp.A, d, pattern.n_eq)
    Cd = _product(pattern.Cp, pattern.Ci, qp.C, d, pattern.n_in)
    leave = largest(Ad)
    for i in range(pattern.n_in):
        leave = larger(leave, _distance_from_cone(Cd[i], qp.l[i], qp.u[i]))
    for j in range(n):
        leave = larger(leave, _distance_from_cone(d[j], qp.lb[j], qp.ub[j]))
    return _is_descent(
        largest(d),
        slope[0] + slope_error[0],
        largest(Hd),
        leave,
        largest(qp.g),
        largest(qp.H),
        options.eps_dual_inf,
    )


@kernel
def _distance_from_cone(value, lo, hi):
    """How far a row's change along a direction is from staying within finite sides for ever."""
    above = value if hi < np.inf else 0.0
    below = -value if lo > -np.inf else 0.0
    return max(max(above, below), 0.0)


@exact
def _product(Mp, Mi, Mx, d, rows):
    """M d, from compensated sums."""
    total = np.zeros(rows)
    error = np.zeros(rows)
    add_product_compensated(Mp, Mi, Mx, d, total, error)
    for i in range(rows):
        total[i] += error[i]
    return total
