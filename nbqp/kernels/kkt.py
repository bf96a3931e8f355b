"""The KKT system of a Newton step: assembled on the factor's pattern, solved and refined.

Bounds are diagonal terms 1/w of the first block, inactive rows are decoupled by their diagonal
alone: between Newton steps only the diagonal changes, so one pattern and one symbolic analysis
serve all of them.
"""

from __future__ import annotations

import numpy as np

from nbqp.kernels.csc import add_products, add_symmetric_product
from nbqp.kernels.dense import largest
from nbqp.kernels.jit import entry, kernel
from nbqp.kernels.lane_ldl import factorise_lanes, solve_lanes
from nbqp.kernels.ldl import factorise
from nbqp.kernels.number import any_of, by_kind, larger, maximum, minimum, where
from nbqp.kernels.structure import Entries
from nbqp.kernels.symbolic import locate
from nbqp.kernels.triangular import solve_permuted

# Diagonal of a decoupled row: its column of L becomes entries of at most 1e-100.
DECOUPLED = 1e100
# Values of L that are set to zero between two looks at whether to stop.
CLEARED = 2**20
# Refinement steps: the factor has only rounding against it here.
REFINEMENTS = 4


@entry
def kkt_pattern(pattern):
    """Upper triangle of the KKT matrix by columns, without its diagonal: Kp (N+1), Ki (nnz).

    Columns 0..n-1 are the variables, then equalities, then inequalities.
    """
    Hp = pattern.Hp
    Ap = pattern.Ap
    Cp = pattern.Cp
    Hi = pattern.Hi
    Ai = pattern.Ai
    Ci = pattern.Ci
    n = pattern.n
    n_eq = pattern.n_eq
    N = n + n_eq + pattern.n_in
    Kp = np.zeros(N + 1, dtype=np.int64)
    for j in range(n):
        for p in range(Hp[j], Hp[j + 1]):
            if Hi[p] < j:
                Kp[j + 1] += 1
        for p in range(Ap[j], Ap[j + 1]):
            Kp[n + Ai[p] + 1] += 1
        for p in range(Cp[j], Cp[j + 1]):
            Kp[n + n_eq + Ci[p] + 1] += 1
    for j in range(N):
        Kp[j + 1] += Kp[j]
    Ki = np.empty(Kp[N], dtype=np.int64)
    fill = Kp[:N].copy()
    for j in range(n):
        for p in range(Hp[j], Hp[j + 1]):
            if Hi[p] < j:
                Ki[fill[j]] = Hi[p]
                fill[j] += 1
        for p in range(Ap[j], Ap[j + 1]):
            k = n + Ai[p]
            Ki[fill[k]] = j
            fill[k] += 1
        for p in range(Cp[j], Cp[j + 1]):
            k = n + n_eq + Ci[p]
            Ki[fill[k]] = j
            fill[k] += 1
    return Kp, Ki


@entry
def locate_entries(pattern, factor):
    """`Entries`: where H, A, C and the diagonal stand among the factor's values, and in which panels."""
    n_eq = pattern.n_eq
    Hi = pattern.Hi
    Ai = pattern.Ai
    Ci = pattern.Ci
    Hp = pattern.Hp
    Ap = pattern.Ap
    Cp = pattern.Cp
    n = pattern.n
    N = n + n_eq + pattern.n_in
    H = np.empty(len(Hi), dtype=np.int64)
    A = np.empty(len(Ai), dtype=np.int64)
    C = np.empty(len(Ci), dtype=np.int64)
    diagonal = np.empty(N, dtype=np.int64)
    for j in range(n):
        for p in range(Hp[j], Hp[j + 1]):
            H[p] = locate(factor, Hi[p], j) if Hi[p] <= j else -1
        for p in range(Ap[j], Ap[j + 1]):
            A[p] = locate(factor, n + Ai[p], j)
        for p in range(Cp[j], Cp[j + 1]):
            C[p] = locate(factor, n + n_eq + Ci[p], j)
    for k in range(N):
        diagonal[k] = locate(factor, k, k)
    panel = np.empty(N, dtype=np.int64)
    for J in range(len(factor.first) - 1):
        for k in range(factor.first[J], factor.first[J + 1]):
            panel[factor.perm[k]] = J
    # With one more on either side, so that each run of others has two ends.
    taken = np.zeros(factor.val_ptr[len(factor.first) - 1] + 2, dtype=np.bool_)
    taken[0] = taken[len(taken) - 1] = True
    for places in (H, A, C):
        for place in places:
            if place >= 0:
                taken[place + 1] = True
    gaps = np.flatnonzero(taken[1:] != taken[: len(taken) - 1])
    return Entries(H, A, C, diagonal, panel, gaps)


@kernel
def outdate_factor(system):
    """The factor is that of another H, A or C: `refactor_system` makes all its panels anew."""
    system.factored[:] = np.nan


@kernel
def _set_diagonal(pattern, system, diagonal):
    """Overwrite `diagonal` (N) by what rho, mu_e and w add to that of H."""
    rho = system.rho[0]
    mu_e = system.mu_e
    w = system.w
    n = pattern.n
    n_eq = pattern.n_eq
    n_in = pattern.n_in
    for j in range(n):
        diagonal[j] = rho + 1.0 / w[n_in + j]
    for i in range(n_eq):
        diagonal[n + i] = -mu_e[i]
    for i in range(n_in):
        diagonal[n + n_eq + i] = -minimum(w[i], DECOUPLED)


@kernel
def _mark_stale(pattern, factor, entries, system):
    """Mark the panels that the system's rho, mu_e and w, or earlier panels, change; returns their number.

    system.factored, permuted and stale are overwritten.
    """
    update_ptr = factor.update_ptr
    update_panel = factor.update_panel
    panel = entries.panel
    factored = system.factored
    diagonal = system.permuted
    stale = system.stale
    stale[:] = False
    _set_diagonal(pattern, system, diagonal)
    for k in range(len(factored)):
        if diagonal[k] != factored[k]:
            factored[k] = diagonal[k]
            stale[panel[k]] = True
    count = 0
    for J in range(len(stale)):
        e = update_ptr[J]
        while e < update_ptr[J + 1] and not stale[J]:
            stale[J] = stale[update_panel[e]]
            e += 1
        count += stale[J]
    return count


@kernel
def _clear(L, abort):
    """Overwrite L by zeros, unless abort[0] is set: at first the system has to find memory for them."""
    for begin in range(0, len(L), CLEARED):
        if abort[0] != 0:
            return
        L[begin : begin + CLEARED] = 0.0


@kernel
def _place(places, values, L):
    """Write the values of a matrix to their places in L; an entry whose mirror image is there has none."""
    for p in range(len(places)):
        if places[p] >= 0:
            L[places[p]] = values[p]


@kernel
def _place_stale(ptr, rows, places, values, panel, row_panel, stale, L):
    """As `_place`, but only in panels that are stale; panel, row_panel: those of columns and of rows.

    An entry stands in the panel that is eliminated first of the two that it couples.
    """
    for j in range(len(ptr) - 1):
        own = panel[j]
        for p in range(ptr[j], ptr[j + 1]):
            if places[p] >= 0 and stale[min(own, row_panel[rows[p]])]:
                L[places[p]] = values[p]


@kernel
def refactor_system(pattern, factor, entries, H, A, C, system):
    """Assemble and factorise the KKT matrix as far as rho, mu_e and w have changed it.

    H, A, C: values on the pattern, those of the last time (not modified). The stale panels of system.L
    and pivots, and the workspaces local and product, are overwritten: the factor is that of
    `factor_system`, bit for bit. Returns how many panels these are, and how many of their pivots were
    replaced; system.factorizations is raised unless there is none. Where system.abort is not 0
    afterwards there is no factor.
    """
    val_ptr = factor.val_ptr
    diagonal = entries.diagonal
    panel = entries.panel
    n = pattern.n
    n_eq = pattern.n_eq
    L = system.L
    factored = system.factored
    stale = system.stale
    count = _mark_stale(pattern, factor, entries, system)
    if count == 0:
        return 0, 0
    if count == len(stale):
        _clear(L, system.abort)
        _place(entries.H, H, L)
        _place(entries.A, A, L)
        _place(entries.C, C, L)
    else:
        for J in range(len(stale)):
            if stale[J]:
                L[val_ptr[J] : val_ptr[J + 1]] = 0.0
        _place_stale(pattern.Hp, pattern.Hi, entries.H, H, panel, panel, stale, L)
        _place_stale(pattern.Ap, pattern.Ai, entries.A, A, panel, panel[n:], stale, L)
        _place_stale(pattern.Cp, pattern.Ci, entries.C, C, panel, panel[n + n_eq :], stale, L)
    for k in range(len(factored)):
        if stale[panel[k]]:
            L[diagonal[k]] += factored[k]
    system.factorizations[0] += 1
    replaced = factorise(
        factor, system.expected, stale, L, system.pivots, system.local, system.product, system.abort
    )
    if system.abort[0] != 0:
        outdate_factor(system)
    return count, replaced


@kernel
def _factor_one(pattern, factor, entries, H, A, C, system):
    outdate_factor(system)
    _, replaced = refactor_system(pattern, factor, entries, H, A, C, system)
    return replaced


@kernel
def _factor_lanes(pattern, factor, entries, H, A, C, system):
    L = system.L
    diagonal = system.permuted
    places = entries.diagonal
    # All other values are assigned below.
    gaps = entries.gaps
    for k in range(0, len(gaps), 2):
        L[gaps[k] : gaps[k + 1]] = 0.0
    _place(entries.H, H, L)
    _place(entries.A, A, L)
    _place(entries.C, C, L)
    _set_diagonal(pattern, system, diagonal)
    for k in range(len(diagonal)):
        L[places[k]] += diagonal[k]
    return factorise_lanes(factor, system.expected, L, system.pivots, system.local, system.product)


_factor = by_kind(_factor_one, _factor_lanes)


@kernel
def factor_system(pattern, factor, entries, H, A, C, system):
    """Assemble the KKT matrix for the system's rho, mu_e and w, and factorise it.

    As `refactor_system`, but of any H, A and C, and all panels are overwritten. Of eight systems
    factorizations, factored and stale are left alone. Returns how many pivots were replaced. Where
    system.abort is not 0 afterwards there is no factor.
    """
    return _factor(pattern, factor, entries, H, A, C, system)


solve_in_order = by_kind(solve_permuted, solve_lanes)


@kernel
def _clear_solution(system):
    system.dx[:] = 0.0
    system.dy[:] = 0.0
    system.dz[:] = 0.0


@kernel
def _plus(value, change):
    """The sum; where the change is 0 the value keeps its sign, -0 included."""
    return where(change == 0.0, value, value + change)


@kernel
def _add_solution(pattern, factor, system, r1, r2, r3):
    """One solve with the factor; its solution is added to (dx, dy, dz)."""
    dx = system.dx
    dy = system.dy
    dz = system.dz
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
        t[position[n + n_eq + i]] = where(w[i] < DECOUPLED, r3[i], 0.0)
    solve_in_order(factor, system.L, system.pivots, t, system.gathered)
    for j in range(n):
        step = t[position[j]]
        dx[j] = _plus(dx[j], step)
        dz[n_in + j] = _plus(dz[n_in + j], (step - r3[n_in + j]) / w[n_in + j])
    for i in range(n_eq):
        dy[i] = _plus(dy[i], t[position[n + i]])
    for i in range(n_in):
        dz[i] = _plus(dz[i], where(w[i] < DECOUPLED, t[position[n + n_eq + i]], 0.0))


@kernel
def _residual(pattern, H, A, C, system, keep):
    """Set e = r - K d; keep = 0 leaves rho, mu_e and w out of K. Returns the largest entry."""
    rho = keep * system.rho[0]
    n = pattern.n
    n_eq = pattern.n_eq
    dx = system.dx
    dy = system.dy
    dz = system.dz
    r1 = system.r1
    r2 = system.r2
    w = system.w
    mu_e = system.mu_e
    r3 = system.r3
    n_in = pattern.n_in
    e1 = system.e1
    e2 = system.e2
    e3 = system.e3
    for j in range(n):
        e1[j] = rho * dx[j] + dz[n_in + j]
        e3[n_in + j] = dx[j]
    for i in range(n_eq):
        e2[i] = -keep * mu_e[i] * dy[i]
    for i in range(n_in):
        e3[i] = 0.0
    add_symmetric_product(pattern.Hp, pattern.Hi, H, dx, e1)
    add_products(pattern.Ap, pattern.Ai, A, dx, dy, e2, e1)
    add_products(pattern.Cp, pattern.Ci, C, dx, dz, e3, e1)
    for j in range(n):
        e1[j] = r1[j] - e1[j]
    for i in range(n_eq):
        e2[i] = r2[i] - e2[i]
    for i in range(n_in + n):
        e3[i] = where(w[i] < DECOUPLED, r3[i] - e3[i] + keep * w[i] * dz[i], 0.0)
    return maximum(maximum(largest(e1), largest(e2)), largest(e3))


@kernel
def solve_system(pattern, factor, H, A, C, system, tolerance):
    """Solve the factorised system for (dx, dy, dz), refined until the residual stops halving.

    Right-hand side system.r1, r2, r3 (r3 counts where w is finite): not modified. Refinement ends
    below `tolerance` times the right-hand side. Returns the last residual, relative to it.
    """
    r3 = system.r3
    w = system.w
    size = maximum(largest(system.r1), largest(system.r2))
    for i in range(len(r3)):
        size = maximum(size, where(w[i] < DECOUPLED, abs(r3[i]), 0.0))
    solve_regularised(pattern, factor, system)
    error = _residual(pattern, H, A, C, system, 1.0)
    going = error > tolerance * size
    for _ in range(REFINEMENTS):
        if not any_of(going) or system.abort[0] != 0:
            break
        _refine(pattern, factor, system, going)
        previous = error
        error = _residual(pattern, H, A, C, system, 1.0)
        going = going & (error > tolerance * size) & (error < 0.5 * previous)
    return where(size > 0.0, error / size, 0.0)


@kernel
def _largest_errors(problem, system):
    """The largest entries of e1 and of (e2, e3), in the user's units."""
    e1 = system.e1
    e2 = system.e2
    e3 = system.e3
    unit_d = problem.unit_d
    unit_e = problem.unit_e
    unit = problem.unit
    dual = 0.0
    for j in range(len(e1)):
        dual = larger(dual, abs(e1[j]) * unit_d[j])
    primal = 0.0
    for i in range(len(e2)):
        primal = larger(primal, abs(e2[i]) * unit_e[i])
    for i in range(len(e3)):
        primal = larger(primal, abs(e3[i]) * unit[i])
    return dual, primal


@kernel
def solve_blocks(pattern, factor, problem, system, dual_tolerance, primal_tolerance):
    """Solve the factorised system as `solve_system`, but for errors of each block by themselves.

    The tolerances are those of e1 and of (e2, e3), in the user's units: what is left of the dual and of
    the primal residual after a full step. Returns both errors.
    """
    H = problem.H
    A = problem.A
    C = problem.C
    solve_regularised(pattern, factor, system)
    _residual(pattern, H, A, C, system, 1.0)
    dual, primal = _largest_errors(problem, system)
    worst = maximum(dual / dual_tolerance, primal / primal_tolerance)
    going = worst > 1.0
    for _ in range(REFINEMENTS):
        if not any_of(going) or system.abort[0] != 0:
            break
        _refine(pattern, factor, system, going)
        _residual(pattern, H, A, C, system, 1.0)
        dual, primal = _largest_errors(problem, system)
        previous = worst
        worst = maximum(dual / dual_tolerance, primal / primal_tolerance)
        going = going & (worst > 1.0) & (worst < 0.5 * previous)
    return dual, primal


@kernel
def solve_regularised(pattern, factor, system):
    """One solve for (dx, dy, dz) with the factor, not refined; see `System`."""
    _clear_solution(system)
    _add_solution(pattern, factor, system, system.r1, system.r2, system.r3)


@kernel
def _refine(pattern, factor, system, going):
    """Add the solution for the residual (e1, e2, e3) where refinement is `going` on."""
    e1 = system.e1
    e2 = system.e2
    e3 = system.e3
    for j in range(len(e1)):
        e1[j] = where(going, e1[j], 0.0)
    for i in range(len(e2)):
        e2[i] = where(going, e2[i], 0.0)
    for i in range(len(e3)):
        e3[i] = where(going, e3[i], 0.0)
    _add_solution(pattern, factor, system, e1, e2, e3)


@kernel
def refine_unregularised(pattern, factor, H, A, C, system, tolerance, steps):
    """Solve the system without rho and mu: (dx, dy, dz) by refinement with the factor.

    Rows have w = inf (decoupled), or a small w that stands for 0. A variable of a bound with
    w = 1 / DECOUPLED is fixed at r3. Refinement ends below `tolerance` times the right-hand side,
    after `steps` solves, or when the residual no longer halves. Returns the last residual,
    relative to the right-hand side.
    """
    n_in = pattern.n_in
    w = system.w
    r3 = system.r3
    dx = system.dx
    _clear_solution(system)
    size = maximum(maximum(largest(system.r1), largest(system.r2)), largest(r3))
    for j in range(pattern.n):
        dx[j] = where(w[n_in + j] < DECOUPLED, r3[n_in + j], 0.0)
    error = _residual(pattern, H, A, C, system, 0.0)
    going = error > tolerance * size
    for _ in range(steps):
        if not any_of(going) or system.abort[0] != 0:
            break
        _refine(pattern, factor, system, going)
        previous = error
        error = _residual(pattern, H, A, C, system, 0.0)
        going = going & (error > tolerance * size) & (error < 0.5 * previous)
    return where(size > 0.0, error / size, 0.0)
