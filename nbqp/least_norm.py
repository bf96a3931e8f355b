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
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from nbqp.kernels.adjoint import ABSENT, BOTH, LOWER, UPPER
from nbqp.kernels.structure import Floats, Ints

RCOND = 1e-10
"""Singular values below this multiple of the largest count as zero."""
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
    e, i = len(E), len(I)
    M_E, M_I = M[E], M[I]
    Pi = scipy.sparse.diags_array(np.where((sides[I] == LOWER) | (sides[I] == UPPER), 1.0, 0.0))
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
    rows = np.concatenate(r[1:])
    rhs = np.zeros(J.shape[0])
    rhs[: n + e + i] = np.concatenate([r[0], rows[E], rows[I]])
    if max(J.shape) <= LARGEST_DENSE:
        w = np.linalg.lstsq(J.toarray(), rhs, rcond=RCOND)[0]
    else:
        w = scipy.sparse.linalg.lsmr(
            J, rhs, atol=1e-15, btol=1e-15, conlim=1.0 / RCOND, maxiter=20 * max(J.shape)
        )[0]
    multipliers = np.zeros(n_eq + n_in + n)
    multipliers[E], multipliers[I] = w[n : n + e], w[n + e : n + e + i]
    y, z, z_box = np.split(multipliers, [n_eq, n_eq + n_in])
    return w[:n], y, z, z_box
