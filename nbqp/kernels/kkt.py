"""The KKT system of a Newton step: assembled on the factor's pattern, solved and refined.

Bounds are diagonal terms 1/w of the first block, inactive rows are decoupled by their diagonal
alone: between Newton steps only the diagonal changes, so one pattern and one symbolic analysis
serve all of them.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.csc import add_product, add_transposed_product
from nbqp.kernels.dense import largest
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.ldl import factorise, solve_permuted
from nbqp.kernels.structure import Entries
from nbqp.kernels.symbolic import locate

# Diagonal of a decoupled row: its column of L becomes entries of at most 1e-100.
DECOUPLED = 1e100
REFINEMENTS = 4


@entry
def kkt_pattern(pattern):
    """Upper triangle of the KKT matrix by columns, without its diagonal: Kp (N+1), Ki (nnz).

    Columns 0..n-1 are the variables, then equalities, then inequalities.
    """
    n = pattern.n
    n_eq = pattern.n_eq
    N = n + n_eq + pattern.n_in
    Kp = np.zeros(N + 1, dtype=np.int64)
    for j in range(n):
        for p in range(pattern.Hp[j], pattern.Hp[j + 1]):
            if pattern.Hi[p] < j:
                Kp[j + 1] += 1
        for p in range(pattern.Ap[j], pattern.Ap[j + 1]):
            Kp[n + pattern.Ai[p] + 1] += 1
        for p in range(pattern.Cp[j], pattern.Cp[j + 1]):
            Kp[n + n_eq + pattern.Ci[p] + 1] += 1
    for j in range(N):
        Kp[j + 1] += Kp[j]
    Ki = np.empty(Kp[N], dtype=np.int64)
    fill = Kp[:N].copy()
    for j in range(n):
        for p in range(pattern.Hp[j], pattern.Hp[j + 1]):
            if pattern.Hi[p] < j:
                Ki[fill[j]] = pattern.Hi[p]
                fill[j] += 1
        for p in range(pattern.Ap[j], pattern.Ap[j + 1]):
            k = n + pattern.Ai[p]
            Ki[fill[k]] = j
            fill[k] += 1
        for p in range(pattern.Cp[j], pattern.Cp[j + 1]):
            k = n + n_eq + pattern.Ci[p]
            Ki[fill[k]] = j
            fill[k] += 1
    return Kp, Ki


@entry
def locate_entries(pattern, factor):
    """`Entries`: where H, A, C and the diagonal stand among the factor's values."""
    n = pattern.n
    N = n + pattern.n_eq + pattern.n_in
    H = np.empty(len(pattern.Hi), dtype=np.int64)
    A = np.empty(len(pattern.Ai), dtype=np.int64)
    C = np.empty(len(pattern.Ci), dtype=np.int64)
    diagonal = np.empty(N, dtype=np.int64)
    for j in range(n):
        for p in range(pattern.Hp[j], pattern.Hp[j + 1]):
            H[p] = locate(factor, pattern.Hi[p], j) if pattern.Hi[p] <= j else -1
        for p in range(pattern.Ap[j], pattern.Ap[j + 1]):
            A[p] = locate(factor, n + pattern.Ai[p], j)
        for p in range(pattern.Cp[j], pattern.Cp[j + 1]):
            C[p] = locate(factor, n + pattern.n_eq + pattern.Ci[p], j)
    for k in range(N):
        diagonal[k] = locate(factor, k, k)
    return Entries(H, A, C, diagonal)


@kernel
def factor_system(pattern, factor, entries, H, A, C, system):
    """Assemble the KKT matrix for the system's rho, mu_e and w, and factorise it.

    H, A, C: values on the pattern (not modified). system.L, pivots: overwritten.
    """
    n = pattern.n
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    L = system.L
    L[:] = 0.0
    for p in range(len(H)):
        if entries.H[p] >= 0:
            L[entries.H[p]] = H[p]
    for p in range(len(A)):
        L[entries.A[p]] = A[p]
    for p in range(len(C)):
        L[entries.C[p]] = C[p]
    for j in range(n):
        L[entries.diagonal[j]] += system.rho[0] + 1.0 / system.w[n_in + j]
    for i in range(n_eq):
        L[entries.diagonal[n + i]] = -system.mu_e[i]
    for i in range(n_in):
        L[entries.diagonal[n + n_eq + i]] = -min(system.w[i], DECOUPLED)
    system.counts[0] += 1
    system.counts[2] += factorise(
        factor, system.expected, L, system.pivots, system.local, system.product
    )


@kernel
def _solve_once(pattern, factor, system, r1, r2, r3, add):
    """One solve with the factor; the solution is stored in (dx, dy, dz), or added to it."""
    n = pattern.n
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    position = factor.position
    t = system.permuted
    w = system.w
    for j in range(n):
        t[position[j]] = r1[j] + r3[n_in + j] / w[n_in + j]
    for i in range(n_eq):
        t[position[n + i]] = r2[i]
    for i in range(n_in):
        t[position[n + n_eq + i]] = r3[i] if w[i] < DECOUPLED else 0.0
    system.counts[1] += 1
    solve_permuted(factor, system.L, system.pivots, t, system.below)
    if not add:
        system.dx[:] = 0.0
        system.dy[:] = 0.0
        system.dz[:] = 0.0
    for j in range(n):
        step = t[position[j]]
        system.dx[j] += step
        system.dz[n_in + j] += (step - r3[n_in + j]) / w[n_in + j]
    for i in range(n_eq):
        system.dy[i] += t[position[n + i]]
    for i in range(n_in):
        if w[i] < DECOUPLED:
            system.dz[i] += t[position[n + n_eq + i]]


@kernel
def _residual(pattern, H, A, C, system, rho, mu_e):
    """E = r - K d for the matrix with rho and mu_e as given; returns its largest entry."""
    n_in = pattern.n_in
    e1 = system.e1
    e2 = system.e2
    e3 = system.e3
    for j in range(pattern.n):
        e1[j] = rho * system.dx[j] + system.dz[n_in + j]
        e3[n_in + j] = system.dx[j]
    for i in range(pattern.n_eq):
        e2[i] = -mu_e * system.mu_e[i] * system.dy[i]
    for i in range(n_in):
        e3[i] = 0.0
    add_transposed_product(pattern.Hp, pattern.Hi, H, system.dx, e1)
    add_transposed_product(pattern.Ap, pattern.Ai, A, system.dy, e1)
    add_transposed_product(pattern.Cp, pattern.Ci, C, system.dz, e1)
    add_product(pattern.Ap, pattern.Ai, A, system.dx, e2)
    add_product(pattern.Cp, pattern.Ci, C, system.dx, e3)
    for j in range(pattern.n):
        e1[j] = system.r1[j] - e1[j]
    for i in range(pattern.n_eq):
        e2[i] = system.r2[i] - e2[i]
    for i in range(n_in + pattern.n):
        if system.w[i] < DECOUPLED:
            e3[i] = system.r3[i] - e3[i] + system.w[i] * system.dz[i]
        else:
            e3[i] = 0.0
    return max(largest(e1), largest(e2), largest(e3))


@kernel
def solve_system(pattern, factor, H, A, C, system, tolerance):
    """Solve the factorised system for (dx, dy, dz), refined until the residual stops halving.

    Right-hand side system.r1, r2, r3 (r3 counts where w is finite): not modified. Refinement ends
    below `tolerance` times the right-hand side. Returns the last residual, relative to it.
    """
    size = max(largest(system.r1), largest(system.r2))
    for i in range(len(system.r3)):
        if system.w[i] < DECOUPLED:
            size = max(size, abs(system.r3[i]))
    if size == 0.0:
        system.dx[:] = 0.0
        system.dy[:] = 0.0
        system.dz[:] = 0.0
        return 0.0
    _solve_once(pattern, factor, system, system.r1, system.r2, system.r3, False)
    error = _residual(pattern, H, A, C, system, system.rho[0], 1.0)
    for _ in range(REFINEMENTS):
        if not error > tolerance * size:
            break
        _solve_once(pattern, factor, system, system.e1, system.e2, system.e3, True)
        previous = error
        error = _residual(pattern, H, A, C, system, system.rho[0], 1.0)
        if not error < 0.5 * previous:
            break
    return error / size
