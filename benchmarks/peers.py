"""One batch of QPs, and how each differentiable layer solves it.

A peer is imported when it is built, so that a missing one is a line in the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias
from unittest import mock

import numpy as np
import numpy.typing as npt

import nbqp

Floats: TypeAlias = npt.NDArray[np.float64]

PROXSUITE_INFINITY = 1e20
PROXSUITE_EPS_PRIMAL_INF = 1e-13


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

    g and target are (batch, n); the batch shares the other data. Absent are H as None (an LP),
    rows of C by shape (0, n), sides by infinity. The loss is sum((x - target)^2), its gradients
    are those with respect to g, A and b. closest: the closest feasible QP is asked for.
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
    closest: bool = False

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
        """All inequalities as rows."""
        kept = self.bounded
        return Rows(
            np.vstack([self.C, np.eye(len(kept))[kept]]),
            np.concatenate([self.l, self.lb[kept]]),
            np.concatenate([self.u, self.ub[kept]]),
        )


class Peer(Protocol):
    """A layer with its data: each step is timed; the results are read outside the clock."""

    def forward(self) -> None:
        """Solve, evaluate the loss and keep what the backward step needs."""

    def backward(self) -> None:
        """Differentiate the loss of the last forward step."""

    def point(self) -> Point:
        """The last forward step's solution."""

    def gradients(self) -> dict[str, Floats]:
        """The last backward step's gradients, by datum."""


class TensorFlowLayer:
    """`tf_layer.solve_qp` under a gradient tape, eager or as a graph."""

    def __init__(self, problem: Problem, eps: float, graph: bool) -> None:
        import tensorflow as tf

        # Fixed when the first op runs, which importing the layer may do.
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        from tf_layer import solve_qp

        settings = nbqp.Settings(eps_abs=eps, primal_infeasibility_solving=problem.closest)
        constants: dict[str, Any] = {"H": problem.H, "lb": problem.lb, "ub": problem.ub}
        if len(problem.C):
            constants |= {"C": problem.C, "l": problem.l, "u": problem.u}

        def solve(g: Any, A: Any, b: Any) -> tuple[Any, ...]:
            out = solve_qp(g=g, A=A, b=b, **constants, settings=settings)
            return out.x, out.y, out.z, out.z_box

        self._tf = tf
        self._solve = tf.function(solve) if graph else solve
        self._inputs = [tf.constant(datum) for datum in (problem.g, problem.A, problem.b)]
        self._target = tf.constant(problem.target)
        self._bounded = problem.bounded

    def forward(self) -> None:
        """Solve and evaluate the loss."""
        with self._tf.GradientTape() as self._tape:
            self._tape.watch(self._inputs)
            self._out = self._solve(*self._inputs)
            self._loss = self._tf.reduce_sum((self._out[0] - self._target) ** 2)

    def backward(self) -> None:
        """Differentiate the loss."""
        self._gradients = self._tape.gradient(self._loss, self._inputs)

    def point(self) -> Point:
        """Read the solution."""
        x, y, z, z_box = (np.asarray(part) for part in self._out)
        return Point(x, y, np.hstack([z.reshape(len(x), -1), z_box[:, self._bounded]]))

    def gradients(self) -> dict[str, Floats]:
        """Read the gradients."""
        return {name: np.asarray(part) for name, part in zip("gAb", self._gradients, strict=True)}


class TorchLayer:
    """A layer of PyTorch: `solve(g, A, b)` returns x and a function that reads the point."""

    def __init__(
        self,
        torch: Any,
        problem: Problem,
        solve: Callable[[Any, Any, Any], tuple[Any, Callable[[], Point]]],
    ) -> None:
        data = (problem.g, problem.A, problem.b)
        self._inputs = [torch.tensor(datum, requires_grad=True) for datum in data]
        self._target = torch.tensor(problem.target)
        self._torch = torch
        self._solve = solve

    def forward(self) -> None:
        """Solve and evaluate the loss."""
        g, A, b = self._inputs
        # Both peers take batches: expanded here, shared data get the sum over the batch (qpth
        # itself would return the mean).
        batch = len(g)
        x, self._point = self._solve(g, A.expand(batch, *A.shape), b.expand(batch, *b.shape))
        self._loss = ((x - self._target) ** 2).sum()

    def backward(self) -> None:
        """Differentiate the loss."""
        self._gradients = self._torch.autograd.grad(self._loss, self._inputs)

    def point(self) -> Point:
        """Read the solution."""
        return self._point()

    def gradients(self) -> dict[str, Floats]:
        """Read the gradients."""
        return {name: part.numpy() for name, part in zip("gAb", self._gradients, strict=True)}


def _import_torch() -> Any:
    import torch

    torch.set_num_threads(1)
    # ProxSuite's layer allocates its gradients in the default type.
    torch.set_default_dtype(torch.float64)
    return torch


def eager_layer(problem: Problem, eps: float) -> Peer:
    """Build the layer of this project, eager."""
    return TensorFlowLayer(problem, eps, graph=False)


def graph_layer(problem: Problem, eps: float) -> Peer:
    """Build the layer of this project in a `tf.function`."""
    return TensorFlowLayer(problem, eps, graph=True)


def proxsuite_layer(problem: Problem, eps: float) -> Peer:
    """Build ProxSuite's QPLayer (Bambade, Schramm, Taylor, Carpentier 2024)."""
    torch = _import_torch()
    from proxsuite import proxqp
    from proxsuite.torch.qplayer import QPFunction

    class StrictBatchQP(proxqp.dense.BatchQP):  # type: ignore[misc]
        """QPs with the settings that the layer has no argument for."""

        def init_qp_in_place(self, n: int, n_eq: int, n_in: int) -> Any:
            qp = super().init_qp_in_place(n, n_eq, n_in)
            qp.settings.eps_primal_inf = PROXSUITE_EPS_PRIMAL_INF
            qp.settings.check_duality_gap = True
            qp.settings.eps_duality_gap_abs = eps
            return qp

    layer = QPFunction(eps=eps, eps_backward=eps, structural_feasibility=not problem.closest)
    rows = problem.rows
    H, G = torch.tensor(problem.hessian), torch.tensor(rows.G)
    lower, upper = (
        torch.tensor(np.clip(side, -PROXSUITE_INFINITY, PROXSUITE_INFINITY)) for side in rows[1:]
    )

    def solve(g: Any, A: Any, b: Any) -> tuple[Any, Callable[[], Point]]:
        with mock.patch.object(proxqp.dense, "BatchQP", StrictBatchQP):
            out = layer(H, g, A, b, G, lower, upper)
        return out[0], lambda: Point(*(part.detach().numpy() for part in out[:3]))

    return TorchLayer(torch, problem, solve)


def qpth_layer(problem: Problem, eps: float) -> Peer:
    """Build OptNet (Amos & Kolter 2017), with a one-sided row for each finite side."""
    if problem.closest:
        raise NotImplementedError("has no closest feasible QPs")
    torch = _import_torch()
    from qpth.qp import QPFunction

    # Silent, since the report gives the residuals.
    layer = QPFunction(eps=eps, verbose=-1)
    rows = problem.rows
    below, above = np.isfinite(rows.lower), np.isfinite(rows.upper)
    H = torch.tensor(problem.hessian)
    G = torch.tensor(np.vstack([-rows.G[below], rows.G[above]]))
    h = torch.tensor(np.concatenate([-rows.lower[below], rows.upper[above]]))

    def solve(g: Any, A: Any, b: Any) -> tuple[Any, Callable[[], Point]]:
        x = layer(H, g, G, h, A, b)

        def read() -> Point:
            multipliers = x.grad_fn.lams.numpy()
            z = np.zeros((len(x), len(below)))
            z[:, below] -= multipliers[:, : below.sum()]
            z[:, above] += multipliers[:, below.sum() :]
            return Point(x.detach().numpy(), x.grad_fn.nus.numpy(), z)

        return x, read

    return TorchLayer(torch, problem, solve)


@dataclasses.dataclass(frozen=True)
class PeerEntry:
    """How a peer is built, and what a reader of the figures should know."""

    build: Callable[[Problem, float], Peer]
    note: str


OURS = "nbqp"
PEERS = {
    OURS: PeerEntry(eager_layer, "tf_layer.solve_qp, eager under a gradient tape."),
    "nbqp, graph": PeerEntry(graph_layer, "The same in a tf.function."),
    "ProxSuite": PeerEntry(
        proxsuite_layer,
        "QPLayer in float64; bounds as inequality rows, since its backward pass crashes on boxes; "
        f"set from outside: eps_primal_inf = {PROXSUITE_EPS_PRIMAL_INF:g}, since the default 1e-4 "
        "calls feasible LPs infeasible, and the duality gap counts, as for nbqp; "
        "eps_backward = eps_abs; structural_feasibility=False for the closest feasible QP.",
    ),
    "OptNet": PeerEntry(
        qpth_layer,
        "qpth.qp.QPFunction in float64; needs a positive definite H: it cannot solve LPs.",
    ),
}
