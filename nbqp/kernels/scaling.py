"""Equilibration: x = D xs, rows A by E, rows C by F, objective by a factor c.

With H_s = c D H D, g_s = c D g, A_s = E A D, b_s = E b, C_s = F C D, the multipliers are
y = E ys / c, z = F zs / c, z_box = zs_box / (c D), and the scaled bounds lb / D, ub / D.
D, E, F come from Ruiz's sweeps on the KKT matrix (Ruiz 2001; Stellato et al. 2020, section 5.1),
from the matrices alone, so that they serve every right-hand side.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.jit import kernel

SWEEPS = 10
# One sweep's factor, and rows that are (nearly) empty keep their scale.
SMALLEST = 1e-8
LARGEST_COST = 1e8


@kernel
def _raise_norms(Mp, Mi, Mx, D, E, columns, rows):
    """columns[j], rows[i] = max with |E_i M_ij D_j|."""
    for j in range(len(Mp) - 1):
        for p in range(Mp[j], Mp[j + 1]):
            value = abs(Mx[p]) * D[j] * E[Mi[p]]
            columns[j] = max(columns[j], value)
            rows[Mi[p]] = max(rows[Mi[p]], value)


@kernel
def _apply_norms(norms, D):
    """D /= sqrt(norms); returns the largest |1 - norm|."""
    worst = 0.0
    for j in range(len(D)):
        if norms[j] > SMALLEST:
            worst = max(worst, abs(1.0 - norms[j]))
            D[j] /= np.sqrt(norms[j])
    return worst


@kernel
def equilibrate(pattern, H, A, C, D, E, F):
    """Ruiz's sweeps. H, A, C: values on the pattern, not modified. D, E, F: overwritten."""
    D[:] = 1.0
    E[:] = 1.0
    F[:] = 1.0
    columns = np.empty(pattern.n)
    mirror = np.empty(pattern.n)
    rows_A = np.empty(pattern.n_eq)
    rows_C = np.empty(pattern.n_in)
    for _ in range(SWEEPS):
        columns[:] = 0.0
        mirror[:] = 0.0
        rows_A[:] = 0.0
        rows_C[:] = 0.0
        _raise_norms(pattern.Hp, pattern.Hi, H, D, D, columns, mirror)
        _raise_norms(pattern.Ap, pattern.Ai, A, D, E, columns, rows_A)
        _raise_norms(pattern.Cp, pattern.Ci, C, D, F, columns, rows_C)
        worst = _apply_norms(columns, D)
        worst = max(worst, _apply_norms(rows_A, E))
        worst = max(worst, _apply_norms(rows_C, F))
        if worst < 0.1:
            break


@kernel
def _scale_values(Mp, Mi, Mx, D, E, c, out):
    """Out = c E M D on the pattern."""
    for j in range(len(Mp) - 1):
        for p in range(Mp[j], Mp[j + 1]):
            out[p] = c * E[Mi[p]] * Mx[p] * D[j]


@kernel
def scale_cost(pattern, H, g, D):
    """C = 1 / max(mean column norm of D H D, |D g|), so that multipliers are near one."""
    total = 0.0
    for j in range(pattern.n):
        largest = 0.0
        for p in range(pattern.Hp[j], pattern.Hp[j + 1]):
            largest = max(largest, abs(H[p]) * D[j] * D[pattern.Hi[p]])
        total += largest
    size = total / max(pattern.n, 1)
    for j in range(pattern.n):
        size = max(size, abs(g[j]) * D[j])
    if size == 0.0:
        return 1.0
    return min(max(1.0 / size, 1.0 / LARGEST_COST), LARGEST_COST)


@kernel
def scale_problem(pattern, H, g, A, b, C, l, u, lb, ub, problem):
    """Fill `problem`, whose D, E, F are set, from the user's data (not modified)."""
    D = problem.D
    E = problem.E
    F = problem.F
    n_in = pattern.n_in
    c = scale_cost(pattern, H, g, D)
    problem.cost[0] = c
    _scale_values(pattern.Hp, pattern.Hi, H, D, D, c, problem.H)
    _scale_values(pattern.Ap, pattern.Ai, A, D, E, 1.0, problem.A)
    _scale_values(pattern.Cp, pattern.Ci, C, D, F, 1.0, problem.C)
    for j in range(pattern.n):
        problem.g[j] = c * D[j] * g[j]
        problem.lo[n_in + j] = lb[j] / D[j]
        problem.hi[n_in + j] = ub[j] / D[j]
        problem.unit[n_in + j] = D[j]
        problem.unit_d[j] = 1.0 / (c * D[j])
    for i in range(pattern.n_eq):
        problem.b[i] = E[i] * b[i]
        problem.unit_e[i] = 1.0 / E[i]
    for i in range(n_in):
        problem.lo[i] = F[i] * l[i]
        problem.hi[i] = F[i] * u[i]
        problem.unit[i] = 1.0 / F[i]


@kernel
def scale_point(pattern, problem, x, y, z, z_box, iterate):
    """The user's (x, y, z, z_box), not modified, in scaled units into `iterate`."""
    c = problem.cost[0]
    for j in range(pattern.n):
        iterate.x[j] = x[j] / problem.D[j]
        iterate.z[pattern.n_in + j] = c * problem.D[j] * z_box[j]
    for i in range(pattern.n_eq):
        iterate.y[i] = c * y[i] / problem.E[i]
    for i in range(pattern.n_in):
        iterate.z[i] = c * z[i] / problem.F[i]


@kernel
def unscale_point(pattern, problem, iterate, x, y, z, z_box):
    """The inverse of `scale_point`: x (n), y (n_eq), z (n_in), z_box (n) are overwritten."""
    c = problem.cost[0]
    for j in range(pattern.n):
        x[j] = iterate.x[j] * problem.D[j]
        z_box[j] = iterate.z[pattern.n_in + j] / (c * problem.D[j])
    for i in range(pattern.n_eq):
        y[i] = iterate.y[i] * problem.E[i] / c
    for i in range(pattern.n_in):
        z[i] = iterate.z[i] * problem.F[i] / c
