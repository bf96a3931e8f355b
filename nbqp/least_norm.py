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

The adjoint b = (b1, b2_E, b2_I, b3, b4) has b2_E = M_E b4 - r_s, on active rows b2 = b3, on inactive
ones b2 = 0 and b3 = M b1 - r. Where the system is consistent that leaves, with B the active rows of I,

    [ H     M_E'M_E   M_B' ] [ b1 ]   [ r_x + M_E'r_s ]
    [ M_E                  ] [ b4 ] = [ r_E           ]
    [ M_B                  ] [ b_B]   [ r_B           ]

of which the solution is wanted that has the least |b1|^2 + |M_N b1 - r_N|^2 + |b4|^2 +
|M_E b4 - r_s|^2 + 2 |b_B|^2 (N: the inactive rows): a small dense problem. An inconsistent system is
solved as it stands.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from nbqp.kernels.adjoint import ABSENT, BOTH, LOWER, UPPER, VIOLATED_LOWER, VIOLATED_UPPER
from nbqp.kernels.structure import Floats, Ints

RCOND = 1e-10
"""Singular values below this multiple of the largest count as zero."""
CONSISTENT = 1e-9
"""The residual, relative to the right-hand side, of a system that counts as consistent."""
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
        rows, shifts = np.concatenate(r[1:]), np.concatenate(r_s)[self.E]
        found = self._consistent_adjoint(r[0], rows, shifts) if self.dense else None
        if found is None:
            n, e, i = self.sizes[0], len(self.E), len(self.I)
            rhs = np.concatenate([r[0], rows[self.E], rows[self.I], shifts, np.zeros(i)])
            b = self._least_squares(self._jacobian().T, rhs)
            multipliers = np.zeros(len(rows))
            multipliers[self.E], multipliers[self.I] = b[n : n + e], b[n + e : n + e + i]
            found = b[:n], multipliers, b[n + e + 2 * i :]
        b1, b2, b4 = found
        return (b1, *self._split(b2)), b4

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

    def _consistent_adjoint(
        self, r_x: Floats, rows: Floats, r_s: Floats
    ) -> tuple[Floats, Floats, Floats] | None:
        """b1, b2 of all rows (zero on inactive ones) and b4; None where inconsistent."""
        H, M = self.H.toarray(), self.M.toarray()
        B, N = self.I[self.active], self.I[~self.active]
        M_E, M_B, M_N = M[self.E], M[B], M[N]
        n, e = len(H), len(M_E)
        # The norm is |R1 (b1 - start1)|^2 + |R4 (b4 - start4)|^2 + 2 |b_B|^2 and a constant.
        R1 = scipy.linalg.cholesky(np.eye(n) + M_N.T @ M_N)
        R4 = scipy.linalg.cholesky(np.eye(n) + M_E.T @ M_E)
        start1 = scipy.linalg.cho_solve((R1, False), M_N.T @ rows[N])
        start4 = scipy.linalg.cho_solve((R4, False), M_E.T @ r_s)
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
        rhs = np.concatenate([r_x + M_E.T @ r_s, rows[self.E], rows[B]])
        rest = rhs - first @ start1 - second @ start4
        p = scipy.linalg.lstsq(K, rest, cond=RCOND, lapack_driver="gelsy")[0]
        if np.abs(K @ p - rest).max(initial=0.0) > CONSISTENT * np.abs(rhs).max(initial=0.0):
            return None
        b1 = start1 + scipy.linalg.solve_triangular(R1, p[:n])
        b4 = start4 + scipy.linalg.solve_triangular(R4, p[n : 2 * n])
        b2 = np.zeros(len(rows))
        b2[self.E] = M_E @ b4 - r_s
        b2[B] = p[2 * n :] / np.sqrt(2.0)
        return b1, b2, b4

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
            return np.asarray(np.linalg.lstsq(J.toarray(), rhs, rcond=RCOND)[0])
        return np.asarray(
            scipy.sparse.linalg.lsmr(
                J, rhs, atol=1e-15, btol=1e-15, conlim=1.0 / RCOND, maxiter=20 * max(J.shape)
            )[0]
        )
