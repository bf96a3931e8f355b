"""Derivatives where the KKT matrix is singular: the least-norm least-squares ECJ.

At a solution without shifts let E be the equalities and the rows whose sides coincide, I the other
rows with a finite side, Pi = Pi_1 their activity. The point v = (x, lam_E, lam_I, s_E, t) solves the
closest feasible QP iff G(v) = 0 (Bambade et al. 2024, section 3), and there

            [ H    M_E'  M_I'           ]
            [ M_E              -1       ]
    dG/dv = [ M_I                   -1  ]
            [            Pi - 1     Pi  ]
            [                 M_E'      ]

The derivative of least norm is dv = -(dG/dv)^+ dG, its adjoint solves (dG/dv)' b = -dL/dv likewise.
The data are not scaled: the answer would depend on it.

The adjoint b = (b1, b2_E, b2_I, b3, b4) has b2_E = M_E b4, on active rows b2 = b3, on inactive ones
b2 = 0 and b3 = M b1 - r. Where the system is consistent that leaves, with B the active rows of I,

    [ H     M_E'M_E   M_B' ] [ b1 ]   [ r_x ]
    [ M_E                  ] [ b4 ] = [ r_E ]
    [ M_B                  ] [ b_B]   [ r_B ]

of which the solution is wanted that has the least |b1|^2 + |M_N b1 - r_N|^2 + |b4|^2 + |M_E b4|^2 +
2 |b_B|^2 (N: the inactive rows): a small dense problem. An inconsistent system is solved as it stands.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from nbqp.kernels.adjoint import ABSENT, BOTH, LOWER, UPPER
from nbqp.kernels.structure import Floats, Ints

RCOND = 1e-10
"""Singular values below this multiple of the largest count as zero."""
CONSISTENT = 1e-9
"""The residual, relative to the right-hand side, of a system that counts as consistent."""
LARGEST_DENSE = 2000
"""Larger systems are solved by LSMR (Fong and Saunders 2011)."""


def solve_least_norm(
    H: scipy.sparse.csc_array,
    A: scipy.sparse.csc_array,
    C: scipy.sparse.csc_array,
    side: Ints,
    side_box: Ints,
    r: tuple[Floats, Floats, Floats, Floats],
    adjoint: bool,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Least-norm least-squares solution (x, y, z, z_box) for the right-hand side r.

    Parameters
    ----------
    H, A, C
        (n, n), (n_eq, n), (n_in, n).
    side, side_box
        (n_in,), (n,), from `nbqp.kernels.adjoint.active_sides`.
    r
        Entries for x, y, z, z_box.
    adjoint
        Whether to solve with the transpose of dG/dv.
    """
    n, n_eq, n_in = H.shape[0], A.shape[0], C.shape[0]
    M = scipy.sparse.vstack([A, C, scipy.sparse.eye_array(n)], format="csr")
    sides = np.concatenate([np.full(n_eq, BOTH), side, side_box])
    E = np.flatnonzero(sides == BOTH)
    I = np.flatnonzero((sides != BOTH) & (sides != ABSENT))
    active = (sides[I] == LOWER) | (sides[I] == UPPER)
    rows = np.concatenate(r[1:])
    dense = n + 2 * len(E) + 2 * len(I) <= LARGEST_DENSE
    found = None
    if adjoint and dense:
        B, N = I[active], I[~active]
        found = _consistent_adjoint(
            H.toarray(), M[E].toarray(), M[B].toarray(), M[N].toarray(), r[0], rows, (E, B, N)
        )
    if found is None:
        found = _least_squares(H, M[E], M[I], active, r[0], rows, (E, I), adjoint, dense)
    x, multipliers = found
    y, z, z_box = np.split(multipliers, [n_eq, n_eq + n_in])
    return x, y, z, z_box


def _consistent_adjoint(
    H: Floats,
    M_E: Floats,
    M_B: Floats,
    M_N: Floats,
    r_x: Floats,
    rows: Floats,
    indices: tuple[Ints, Ints, Ints],
) -> tuple[Floats, Floats] | None:
    """b1 and the multipliers of all rows (zero on inactive ones); None where inconsistent."""
    E, B, N = indices
    n, e = len(H), len(E)
    # The norm to minimise is |R1 (b1 - start)|^2 + |R4 b4|^2 + 2 |b_B|^2.
    R1 = scipy.linalg.cholesky(np.eye(n) + M_N.T @ M_N)
    R4 = scipy.linalg.cholesky(np.eye(n) + M_E.T @ M_E)
    start = scipy.linalg.cho_solve((R1, False), M_N.T @ rows[N])
    first = np.vstack([H, M_E, M_B])
    second = np.zeros((n + e + len(B), n))
    second[:n] = M_E.T @ M_E
    third = np.zeros((n + e + len(B), len(B)))
    third[:n] = M_B.T
    K = np.hstack(
        [
            scipy.linalg.solve_triangular(R1, first.T, trans="T").T,
            scipy.linalg.solve_triangular(R4, second.T, trans="T").T,
            third / np.sqrt(2.0),
        ]
    )
    rhs = np.concatenate([r_x, rows[E], rows[B]]) - first @ start
    p = scipy.linalg.lstsq(K, rhs, cond=RCOND, lapack_driver="gelsy")[0]
    if np.abs(K @ p - rhs).max(initial=0.0) > CONSISTENT * np.abs(rhs).max(initial=0.0):
        return None
    multipliers = np.zeros(len(rows))
    multipliers[E] = M_E @ scipy.linalg.solve_triangular(R4, p[n : 2 * n])
    multipliers[B] = p[2 * n :] / np.sqrt(2.0)
    return start + scipy.linalg.solve_triangular(R1, p[:n]), multipliers


def _least_squares(
    H: scipy.sparse.csc_array,
    M_E: scipy.sparse.csr_array,
    M_I: scipy.sparse.csr_array,
    active: Ints,
    r_x: Floats,
    rows: Floats,
    indices: tuple[Ints, Ints],
    adjoint: bool,
    dense: bool,
) -> tuple[Floats, Floats]:
    """The system as it stands, in either direction: x and the multipliers of all rows."""
    E, I = indices
    n, e, i = H.shape[0], len(E), len(I)
    Pi = scipy.sparse.diags_array(np.where(active, 1.0, 0.0))
    one_e, one_i = scipy.sparse.eye_array(e), scipy.sparse.eye_array(i)
    J = scipy.sparse.block_array(
        [
            [H, M_E.T, M_I.T, scipy.sparse.csr_array((n, e)), scipy.sparse.csr_array((n, i))],
            [M_E, None, None, -one_e, None],
            [M_I, None, None, None, -one_i],
            [scipy.sparse.csr_array((i, n)), None, Pi - one_i, None, Pi],
            [scipy.sparse.csr_array((n, n)), None, None, M_E.T, None],
        ],
        format="csr",
    )
    if adjoint:
        J = J.T
    rhs = np.zeros(J.shape[0])
    rhs[: n + e + i] = np.concatenate([r_x, rows[E], rows[I]])
    if dense:
        w = np.linalg.lstsq(J.toarray(), rhs, rcond=RCOND)[0]
    else:
        w = scipy.sparse.linalg.lsmr(
            J, rhs, atol=1e-15, btol=1e-15, conlim=1.0 / RCOND, maxiter=20 * max(J.shape)
        )[0]
    multipliers = np.zeros(len(rows))
    multipliers[E], multipliers[I] = w[n : n + e], w[n + e : n + e + i]
    return w[:n], multipliers
