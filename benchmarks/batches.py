"""Batches of QPs that layers are measured on."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.arrays import Floats
from benchmarks.control import closed_loop, masses

SEED = 1
RANKS = {"H": 2, "g": 1, "A": 2, "b": 1, "C": 2, "l": 1, "u": 1}
"""Of the data of one QP."""


class Rows(NamedTuple):
    """lower <= Gx <= upper: the rows of C, then one for each variable with a finite bound."""

    G: Floats
    lower: Floats
    upper: Floats


class Point(NamedTuple):
    """A primal-dual point: x (batch, n), y (batch, n_eq), z (batch, rows), z < 0: lower side."""

    x: Floats
    y: Floats
    z: Floats


@dataclasses.dataclass(frozen=True)
class Problem:
    """min 1/2 x'Hx + g'x   s.t.   Ax = b,   l <= Cx <= u,   lb <= x <= ub.

    g and target are (batch, n); the batch shares the other data, or they have a leading batch axis, but
    for lb and ub. Absent are H as None (an LP), rows of C by shape (0, n), sides by infinity. The loss is
    sum((x - target)^2), its gradients are those with respect to `inputs`. closest: the closest feasible
    QP is asked for. sparse: H, A and C, no inputs, are given as sparse matrices to who takes them.
    """

    H: Floats | None
    g: Floats
    A: Floats
    b: Floats
    C: Floats
    l: Floats
    u: Floats
    lb: Floats
    ub: Floats
    target: Floats
    inputs: tuple[str, ...] = ("g", "A", "b")
    closest: bool = False
    sparse: bool = False

    @property
    def hessian(self) -> Floats:
        """H, zeros for an LP."""
        n = self.g.shape[1]
        return np.zeros((n, n)) if self.H is None else self.H

    @property
    def bounded(self) -> npt.NDArray[np.bool_]:
        """Which variables have a finite bound."""
        return np.isfinite(self.lb) | np.isfinite(self.ub)

    @property
    def rows(self) -> Rows:
        """All inequalities as rows, with a batch axis where C, l or u have one."""
        kept = self.bounded
        if not kept.any():
            return Rows(self.C, self.l, self.u)
        return Rows(
            np.vstack([self.C, np.eye(len(kept))[kept]]),
            np.concatenate([self.l, self.lb[kept]]),
            np.concatenate([self.u, self.ub[kept]]),
        )

    def sample(self, k: int) -> Problem:
        """QP k alone, as a batch that shares all but g."""
        own = {
            name: getattr(self, name)[k]
            for name in ("H", "A", "b", "C", "l", "u")
            if np.ndim(getattr(self, name)) > RANKS[name]
        }
        return dataclasses.replace(self, g=self.g[k : k + 1], target=self.target[k : k + 1], **own)


def multiply(M: Floats, v: Floats) -> Floats:
    """M v for each of a batch v (batch, columns); M (rows, columns), with or without a batch axis."""
    return np.asarray(np.einsum("...ij,...j->...i", M, v))


def sudoku(batch: int, curvature: float) -> Problem:
    """4x4 Sudoku with learned rules: x(p) = argmin curvature/2 |x|^2 - p'x, Ax = A z0, x >= 0.

    A is 40 x 64, uniform on (0, 1); p is one-hot for 4 to 8 of the 16 cells, 0 elsewhere; z0 > 0.
    Source: Bambade, Schramm, Taylor, Carpentier 2024, after Amos & Kolter 2017.
    """
    random = np.random.default_rng(SEED)
    n, n_eq = 64, 40
    A = random.uniform(size=(n_eq, n))
    puzzles = np.zeros((batch, 16, 4))
    for puzzle in puzzles:
        cells = random.permutation(16)[: random.integers(4, 9)]
        puzzle[cells, random.integers(4, size=len(cells))] = 1.0
    return Problem(
        H=curvature * np.eye(n) if curvature else None,
        g=-puzzles.reshape(batch, n),
        A=A,
        b=A @ random.uniform(0.1, 1.0, size=n),
        C=np.zeros((0, n)),
        l=np.zeros(0),
        u=np.zeros(0),
        lb=np.zeros(n),
        ub=np.full(n, np.inf),
        target=random.uniform(size=(batch, n)),
    )


def learned_rules(batch: int) -> Problem:
    """Sudoku with A alone to learn, b = 1, H = 0: the closest feasible LP (the paper's setting ii)."""
    problem = sudoku(batch, 0.0)
    return dataclasses.replace(problem, b=np.ones(len(problem.b)), closest=True)


def random_rows(batch: int, feasible: bool) -> Problem:
    """Dense rows, n = 100, n_eq = 25, n_in = 100; infeasible by three equations and three rows."""
    random = np.random.default_rng(SEED)
    n, n_eq, n_in = 100, 25, 100
    L, A, C = (random.standard_normal((rows, n)) for rows in (n, n_eq, n_in))
    x0 = random.standard_normal(n)
    b, low, high = A @ x0, C @ x0 - random.random(n_in), C @ x0 + random.random(n_in)
    if not feasible:
        A[-3:] = random.standard_normal((3, n_eq - 3)) @ A[:-3] / np.sqrt(n_eq)
        b[-3:] = A[-3:] @ x0 + random.uniform(0.5, 1.0, 3)
        C[:3] = C[3:6]
        low[:3], high[:3] = high[3:6] + 0.5, high[3:6] + 2.0
    return Problem(
        H=L.T @ L / n + 0.1 * np.eye(n),
        g=random.standard_normal((batch, n)),
        A=A,
        b=b,
        C=C,
        l=low,
        u=high,
        lb=np.full(n, -np.inf),
        ub=np.full(n, np.inf),
        target=random.standard_normal((batch, n)),
        closest=True,
    )


def random_dense(batch: int, n: int) -> Problem:
    """Random dense QPs with n/4 equations and n rows below a side, that share nothing; all data learn.

    Source: the random QPs of Amos & Kolter 2017, with x0 feasible.
    """
    random = np.random.default_rng(SEED)
    n_eq, n_in = n // 4, n
    L, A, C = (random.standard_normal((batch, rows, n)) for rows in (n, n_eq, n_in))
    x0 = random.standard_normal((batch, n))
    return Problem(
        H=np.swapaxes(L, 1, 2) @ L / n + 0.1 * np.eye(n),
        g=random.standard_normal((batch, n)),
        A=A,
        b=multiply(A, x0),
        C=C,
        l=np.full((batch, n_in), -np.inf),
        u=multiply(C, x0) + random.random((batch, n_in)),
        lb=np.full(n, -np.inf),
        ub=np.full(n, np.inf),
        target=random.standard_normal((batch, n)),
        inputs=("H", "g", "A", "b", "C", "u"),
    )


def control(batch: int, horizon: int) -> Problem:
    """Model predictive control of a chain of 6 masses: 15 variables and 12 equations a stage.

    The first QPs of a closed loop, with sparse H and A, that differ in b; g and b learn.
    """
    sequence = closed_loop(masses(6, horizon), batch)
    n = len(sequence.g)
    return Problem(
        H=sequence.H.toarray(),
        g=np.zeros((batch, n)),
        A=sequence.A.toarray(),
        b=sequence.b,
        C=np.zeros((0, n)),
        l=np.zeros(0),
        u=np.zeros(0),
        lb=sequence.lb,
        ub=sequence.ub,
        target=np.zeros((batch, n)),
        inputs=("g", "b"),
        sparse=True,
    )
