"""Certificates of infeasibility, measured in the user's units.

Primal (Farkas): (y, z) with A'y + M'z = 0 and s = b'y + sum hi z_+ - sum lo z_- < 0. For every x,

    |A'y + M'z|_inf |x|_1 + |(y, z)|_1 * (largest violation at x)  >=  -s,

so a residual of eps * (-s) leaves only feasible points with |x|_1 >= 1/eps, and a violation of
-s / |(y, z)|_1 is unavoidable near the origin: below the tolerance that is asked for, the problem
counts as feasible.

Dual: a direction d with H d = 0, A d = 0, M d within the recession cone of the sides, g'd < 0.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.jit import kernel

# The share of the sum that must remain after cancellation for its sign to be believed.
SIGNIFICANT = 1e-9


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
    support /= c
    return (
        support < -SIGNIFICANT * terms / c
        and residual_norm <= -eps * support
        and eps_abs * norm / c < -support
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
    if not slope < -SIGNIFICANT * terms or norm == 0.0:
        return False
    # Along t d the objective falls until t = -g'd / d'Hd: by |t d| >= 1 / eps, which counts as for ever.
    slope /= c
    if curvature > -eps * slope:
        return False
    # Leaving the cone by `leave` costs about |g| * leave: it has to be small beside the descent.
    leave = 0.0
    for i in range(n_eq):
        leave = max(leave, abs(Ad[i]) * unit_e[i])
    for i in range(n_in + n):
        if hi[i] < np.inf:
            leave = max(leave, Md[i] * unit[i])
        if lo[i] > -np.inf:
            leave = max(leave, -Md[i] * unit[i])
    if not (leave * largest_g <= -eps * slope and leave <= eps * norm):
        return False
    # Beside the entries of H as well: a long gradient does not make a positive definite H flat.
    largest_H = 0.0
    for j in range(n):
        for p in range(pattern.Hp[j], pattern.Hp[j + 1]):
            entry = abs(problem.H[p]) * unit_d[j] / D[pattern.Hi[p]]
            largest_H = max(largest_H, entry)
    return curvature <= eps * largest_H * norm
