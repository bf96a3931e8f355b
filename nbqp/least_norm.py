"""Derivatives where the KKT matrix is singular: the least-norm least-squares ECJ.

At a solution let E be the equalities, the rows whose sides coincide and those with a shift, I the
other rows with a finite side, Pi = Pi_1 their activity. The point v = (x, lam_E, lam_I, s_E, t) solves
the closest feasible QP iff G(v) = 0 (Bambade et al. 2024, section 3), and there

            [ H    M_E'  M_I'           ]
            [ M_E              -1       ]
    dG/dv = [ M_I                   -1  ]
            [            Pi - 1     Pi  ]
            [                 M_E'      ]

The derivative of least norm is dv = -(dG/dv)^+ dG, its adjoint solves (dG/dv)' b = -dL/dv likewise.
The data are not scaled: the answer would depend on it.

Where the adjoint's system is consistent `kernels/consistent_adjoint.py` has solved it; this is the system as it
stands, for the others, for large ones and for directions.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from nbqp.kernels.active import ABSENT, BOTH, LOWER, UPPER, VIOLATED_LOWER, VIOLATED_UPPER
from nbqp.kernels.structure import Floats, Ints
from nbqp.threads import run_apart
from nbqp.watch import Watch

RCOND = 1e-10
"""Singular values below this multiple of the largest count as zero."""
LARGEST_DENSE = 2000
"""Larger systems are solved by LSMR (Fong and Saunders 2011)."""

Parts = tuple[Floats, ...]


class LeastNormSystem:
    """dG/dv of one QP.

    Parameters
    ----------
    H, A, C
        (n, n), (n_eq, n), (n_in, n).
    side, side_box
        (n_in,), (n,), from `nbqp.kernels.adjoint.active_sides`.
    """

    def __init__(
        self,
        H: scipy.sparse.csc_array,
        A: scipy.sparse.csc_array,
        C: scipy.sparse.csc_array,
        side: Ints,
        side_box: Ints,
    ) -> None:
        self.sizes = (H.shape[0], A.shape[0], C.shape[0])
        n, n_eq, _ = self.sizes
        M = scipy.sparse.vstack([A, C, scipy.sparse.eye_array(n)], format="csr")
        sides = np.concatenate([np.full(n_eq, BOTH), side, side_box])
        held = np.isin(sides, (BOTH, VIOLATED_LOWER, VIOLATED_UPPER))
        self.E = np.flatnonzero(held)
        self.I = np.flatnonzero(~held & (sides != ABSENT))
        self.active = (sides[self.I] == LOWER) | (sides[self.I] == UPPER)
        self.H, self.M = H, M
        self.dense = n + 2 * len(self.E) + 2 * len(self.I) <= LARGEST_DENSE

    def solve_adjoint(self, r: Parts, r_s: Parts) -> tuple[Parts, Floats]:
        """(b1, b2 of y, z, z_box) and b4 for the right-hand sides -dL of (x, y, z, z_box) and s."""
        n, e, i = self.sizes[0], len(self.E), len(self.I)
        rows, shifts = np.concatenate(r[1:]), np.concatenate(r_s)[self.E]
        rhs = np.concatenate([r[0], rows[self.E], rows[self.I], shifts, np.zeros(i)])
        b = self._least_squares(self._jacobian().T, rhs)
        b2 = np.zeros(len(rows))
        b2[self.E], b2[self.I] = b[n : n + e], b[n + e : n + e + i]
        return (b[:n], *self._split(b2)), b[n + e + 2 * i :]

    def solve_direction(self, r: Parts, r_4: Floats) -> tuple[Parts, Parts]:
        """(dx, dy, dz, dz_box) and (ds_e, ds_i, ds_box) for the right-hand sides -dG."""
        n, e, i = self.sizes[0], len(self.E), len(self.I)
        rows = np.concatenate(r[1:])
        rhs = np.concatenate([r[0], rows[self.E], rows[self.I], np.zeros(i), r_4])
        v = self._least_squares(self._jacobian(), rhs)
        multipliers, shifts = np.zeros(len(rows)), np.zeros(len(rows))
        multipliers[self.E], multipliers[self.I] = v[n : n + e], v[n + e : n + e + i]
        shifts[self.E] = v[n + e + i : n + 2 * e + i]
        return (v[:n], *self._split(multipliers)), self._split(shifts)

    def _split(self, rows: Floats) -> Parts:
        _, n_eq, n_in = self.sizes
        return tuple(np.split(rows, [n_eq, n_eq + n_in]))

    def _jacobian(self) -> scipy.sparse.csr_array:
        """dG/dv."""
        n, e, i = self.sizes[0], len(self.E), len(self.I)
        M_E, M_I = self.M[self.E], self.M[self.I]
        Pi = scipy.sparse.diags_array(np.where(self.active, 1.0, 0.0))
        one_e, one_i = scipy.sparse.eye_array(e), scipy.sparse.eye_array(i)
        blocks = [
            [self.H, M_E.T, M_I.T, scipy.sparse.csr_array((n, e)), scipy.sparse.csr_array((n, i))],
            [M_E, None, None, -one_e, None],
            [M_I, None, None, None, -one_i],
            [scipy.sparse.csr_array((i, n)), None, Pi - one_i, None, Pi],
            [scipy.sparse.csr_array((n, n)), None, None, M_E.T, None],
        ]
        return scipy.sparse.csr_array(scipy.sparse.block_array(blocks, format="csr"))

    def _least_squares(self, J: scipy.sparse.csr_array, rhs: Floats) -> Floats:
        """The least-norm least-squares solution of J w = rhs."""
        if self.dense:
            # Ctrl-C does not reach LAPACK.
            return run_apart(
                lambda: np.asarray(np.linalg.lstsq(J.toarray(), rhs, rcond=RCOND)[0]), Watch()
            )
        return np.asarray(
            scipy.sparse.linalg.lsmr(
                J, rhs, atol=1e-15, btol=1e-15, conlim=1.0 / RCOND, maxiter=20 * max(J.shape)
            )[0]
        )
