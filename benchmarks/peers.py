"""One batch of QPs, and how each differentiable layer solves it.

A peer is imported when it is built, so that a missing one is a line in the report.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol
from unittest import mock

import numpy as np
import scipy.sparse

import nbqp
from benchmarks.arrays import Floats
from benchmarks.batches import RANKS, Point, Problem

PROXSUITE_INFINITY = 1e20
PROXSUITE_EPS_PRIMAL_INF = 1e-13


class Peer(Protocol):
    """A layer with its data: each step is timed; the results are read outside the clock.

    whole: whether `backward` takes the forward step anew, whose time is then subtracted.
    """

    whole: bool

    def forward(self) -> None:
        """Solve, evaluate the loss and keep what the backward step needs."""

    def backward(self) -> None:
        """Differentiate the loss of the last forward step."""

    def point(self) -> Point:
        """The last forward step's solution."""

    def gradients(self) -> dict[str, Floats]:
        """The last backward step's gradients, by datum."""


class TensorFlowLayer:
    """`tf_layer.solve_qp` or `tf_layer.QPLayer`, eager under a gradient tape, or a whole step as a graph."""

    def __init__(
        self, problem: Problem, eps: float, form: Literal["eager", "graph", "layer"]
    ) -> None:
        tf = import_tensorflow()
        from tf_layer import Input, QPLayer, solve_qp

        settings = nbqp.Settings(eps_abs=eps, primal_infeasibility_solving=problem.closest)
        names = ["H", "g", "A", "b", "lb", "ub", *(("C", "l", "u") if problem.C.size else ())]
        inputs = problem.inputs
        constants = {name: getattr(problem, name) for name in names if name not in inputs}
        if problem.sparse:
            for name in constants.keys() & {"H", "A", "C"}:
                constants[name] = scipy.sparse.csc_array(constants[name])

        if form == "layer":
            declared = {**constants, **{name: Input() for name in inputs}}
            layer = QPLayer(**declared, settings=settings, return_solution=True, dtype="float64")

        def solve(*values: Any) -> tuple[Any, ...]:
            given = dict(zip(inputs, values, strict=True))
            if form == "layer":
                out = layer(given)
            else:
                out = solve_qp(**given, **constants, settings=settings)
            return out.x, out.y, out.z, out.z_box

        target = tf.constant(problem.target)

        def evaluate(*values: Any) -> tuple[tuple[Any, ...], Any]:
            out = solve(*values)
            return out, tf.reduce_sum(tf.math.squared_difference(out[0], target))

        def differentiate(*values: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(values)
                _, loss = evaluate(*values)
            return tape.gradient(loss, values)

        self.whole = form == "graph"
        self._tf = tf
        self._evaluate: Any = tf.function(evaluate) if self.whole else evaluate
        self._differentiate = tf.function(differentiate)
        self._names = inputs
        self._inputs = [tf.constant(getattr(problem, name)) for name in inputs]
        self._bounded = problem.bounded

    def forward(self) -> None:
        """Solve and evaluate the loss."""
        if self.whole:
            self._out, _ = self._evaluate(*self._inputs)
            return
        with self._tf.GradientTape() as self._tape:
            self._tape.watch(self._inputs)
            self._out, self._loss = self._evaluate(*self._inputs)

    def backward(self) -> None:
        """Differentiate the loss, after all that `forward` does where the step is whole."""
        if self.whole:
            self._gradients = self._differentiate(*self._inputs)
        else:
            self._gradients = self._tape.gradient(self._loss, self._inputs)

    def point(self) -> Point:
        """Read the solution."""
        x, y, z, z_box = (np.asarray(part) for part in self._out)
        return Point(x, y, np.hstack([z.reshape(len(x), -1), z_box[:, self._bounded]]))

    def gradients(self) -> dict[str, Floats]:
        """Read the gradients."""
        parts = map(np.asarray, self._gradients)
        return dict(zip(self._names, parts, strict=True))


class TorchLayer:
    """A layer of PyTorch: `solve(data)` returns x and a function that reads the point.

    data: H, g, A, b and the rows G, lower, upper, as tensors, all inputs with a batch axis; C and u,
    where they are inputs, are G and upper. names: of the inputs, unless they are the problem's.
    """

    whole = False

    def __init__(
        self,
        torch: Any,
        problem: Problem,
        solve: Callable[[dict[str, Any]], tuple[Any, Callable[[], Point]]],
        names: Sequence[str] | None = None,
    ) -> None:
        self._torch = torch
        self._solve = solve
        self._names = tuple(problem.inputs if names is None else names)
        self._inputs = {
            name: torch.tensor(getattr(problem, name), requires_grad=True) for name in self._names
        }
        data = {name: getattr(problem, name) for name in ("g", "A", "b")}
        rows = dict(zip(("G", "lower", "upper"), problem.rows, strict=True))
        self._constants = {
            name: torch.tensor(value)
            for name, value in {"H": problem.hessian, **data, **rows}.items()
            if name not in self._names
        }
        self._batch = len(problem.g)
        self._target = torch.tensor(problem.target)

    def _expand(self, name: str, tensor: Any) -> Any:
        """Expanded here, shared inputs get the sum over the batch (qpth itself would return the mean)."""
        return tensor if tensor.ndim > RANKS[name] else tensor.expand(self._batch, *tensor.shape)

    def forward(self) -> None:
        """Solve and evaluate the loss."""
        inputs = {name: self._expand(name, tensor) for name, tensor in self._inputs.items()}
        data = {**self._constants, **inputs}
        for row, datum in (("G", "C"), ("upper", "u")):
            if datum in data:
                data[row] = data.pop(datum)
        x, self._point = self._solve(data)
        self._loss = ((x - self._target) ** 2).sum()

    def backward(self) -> None:
        """Differentiate the loss."""
        self._gradients = self._torch.autograd.grad(self._loss, list(self._inputs.values()))

    def point(self) -> Point:
        """Read the solution."""
        return self._point()

    def gradients(self) -> dict[str, Floats]:
        """Read the gradients."""
        return {name: part.numpy() for name, part in zip(self._names, self._gradients, strict=True)}


def import_tensorflow() -> Any:
    """TensorFlow with one thread."""
    import tensorflow as tf

    # Fixed when the first op runs, which importing the layer may do.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def import_torch() -> Any:
    """PyTorch with one thread and in double precision."""
    import torch

    torch.set_num_threads(1)
    # ProxSuite's layer allocates its gradients in the default type.
    torch.set_default_dtype(torch.float64)
    return torch


def eager_layer(problem: Problem, eps: float) -> Peer:
    """Build the layer of this project, eager."""
    return TensorFlowLayer(problem, eps, "eager")


def graph_layer(problem: Problem, eps: float) -> Peer:
    """Build a training step with the layer of this project in a `tf.function`."""
    return TensorFlowLayer(problem, eps, "graph")


def keras_layer(problem: Problem, eps: float) -> Peer:
    """Build the Keras layer of this project, eager."""
    return TensorFlowLayer(problem, eps, "layer")


def proxsuite_closest_layer(problem: Problem, eps: float) -> Peer:
    """Build ProxSuite's QPLayer in its mode for infeasible QPs, on others."""
    if problem.closest:
        raise NotImplementedError("the row above is this mode")
    return proxsuite_layer(problem, eps, structural_feasibility=False)


def proxsuite_layer(
    problem: Problem, eps: float, structural_feasibility: bool | None = None
) -> Peer:
    """Build ProxSuite's QPLayer (Bambade, Schramm, Taylor, Carpentier 2024).

    structural_feasibility: its mode; None for the one that the problem is made for.
    """
    if structural_feasibility is None:
        structural_feasibility = not problem.closest
    torch = import_torch()
    layer = proxsuite_function(eps, structural_feasibility)

    def solve(data: dict[str, Any]) -> tuple[Any, Callable[[], Point]]:
        sides = [
            data[name].clamp(-PROXSUITE_INFINITY, PROXSUITE_INFINITY) for name in ("lower", "upper")
        ]
        out = layer(*(data[name] for name in ("H", "g", "A", "b", "G")), *sides)
        return out[0], lambda: Point(*(part.detach().numpy() for part in out[:3]))

    return TorchLayer(torch, problem, solve)


def proxsuite_function(eps: float, structural_feasibility: bool) -> Callable[..., Any]:
    """ProxSuite's layer as a function of H, g, A, b, C, l, u, which returns x, y, z and more."""
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

    layer = QPFunction(eps=eps, eps_backward=eps, structural_feasibility=structural_feasibility)

    def solve(*data: Any) -> Any:
        with mock.patch.object(proxqp.dense, "BatchQP", StrictBatchQP):
            return layer(*data)

    return solve


def qpth_layer(problem: Problem, eps: float) -> Peer:
    """Build OptNet (Amos & Kolter 2017), with a one-sided row for each finite side."""
    if problem.closest:
        raise NotImplementedError("has no closest feasible QPs")
    torch = import_torch()
    from qpth.qp import QPFunction

    # Silent, since the report gives the residuals.
    layer = QPFunction(eps=eps, verbose=-1)
    _, lower, upper = problem.rows
    below, above = (np.isfinite(np.atleast_2d(side)[0]) for side in (lower, upper))

    def solve(data: dict[str, Any]) -> tuple[Any, Callable[[], Point]]:
        G, lower, upper = (data[name] for name in ("G", "lower", "upper"))
        one_sided = torch.cat([-G[..., below, :], G[..., above, :]], dim=-2)
        sides = torch.cat([-lower[..., below], upper[..., above]], dim=-1)
        x = layer(data["H"], data["g"], one_sided, sides, data["A"], data["b"])

        def read() -> Point:
            multipliers = x.grad_fn.lams.numpy()
            z = np.zeros((len(x), len(below)))
            z[:, below] -= multipliers[:, : below.sum()]
            z[:, above] += multipliers[:, below.sum() :]
            return Point(x.detach().numpy(), x.grad_fn.nus.numpy(), z)

        return x, read

    return TorchLayer(torch, problem, solve)


def cvxpylayers_layer(problem: Problem, eps: float) -> Peer:
    """Build a layer of cvxpylayers (Agrawal et al. 2019), by diffcp; constants are constants to it."""
    if problem.closest:
        raise NotImplementedError("has no closest feasible QPs")
    torch = import_torch()
    cvxpy: Any = importlib.import_module("cvxpy")
    cvxpylayers: Any = importlib.import_module("cvxpylayers.torch")

    x = cvxpy.Variable(problem.g.shape[1])
    G, lower, upper = problem.rows
    # Disciplined parametrised programming takes 1/2 |Lx|^2, but no x'Hx, with a parameter.
    shared = {"A": problem.A, "b": problem.b, "G": G, "lower": lower, "upper": upper}
    given: dict[str, Any] = {}
    parameters: dict[str, Any] = {"g": cvxpy.Parameter(problem.g.shape[1])}
    renamed = {"C": "G", "u": "upper"}
    inputs = {renamed.get(name, name) for name in problem.inputs}
    below, above = (np.isfinite(np.atleast_2d(side)[0]) for side in (lower, upper))
    if not below.any():
        del shared["lower"]
    for name, value in shared.items():
        own = value.ndim > (2 if name in ("A", "G") else 1)
        if own or name in inputs:
            parameters[name] = cvxpy.Parameter(value.shape[own:])
        given[name] = parameters.get(name, value)
    objective = parameters["g"] @ x
    root = None
    if problem.H is not None and problem.H.ndim == 3:
        root = torch.tensor(np.swapaxes(np.linalg.cholesky(problem.H), 1, 2))
        parameters["root"] = cvxpy.Parameter(root.shape[1:])
        objective += 0.5 * cvxpy.sum_squares(parameters["root"] @ x)
    elif problem.H is not None:
        objective += 0.5 * cvxpy.quad_form(x, cvxpy.psd_wrap(problem.H))
    constraints = [given["A"] @ x == given["b"]]
    if below.any():
        constraints.append((given["G"] @ x)[below] >= given["lower"][below])
    if above.any():
        constraints.append((given["G"] @ x)[above] <= given["upper"][above])
    program = cvxpy.Problem(cvxpy.Minimize(objective), constraints)
    layer = cvxpylayers.CvxpyLayer(program, list(parameters.values()), [x])
    arguments = {
        "solve_method": "Clarabel",
        "tol_gap_abs": eps,
        "tol_gap_rel": eps,
        "tol_feas": eps,
    }

    def solve(data: dict[str, Any]) -> tuple[Any, Callable[[], Point]]:
        values = {**data, "root": root}
        (found,) = layer(*(values[name] for name in parameters), solver_args=arguments)
        batch, n_eq = len(found), problem.A.shape[-2]
        nowhere = np.full((batch, n_eq), np.nan), np.full((batch, len(below)), np.nan)
        return found, lambda: Point(found.detach().numpy(), *nowhere)

    names = [name for name in problem.inputs if name != "H"]
    return TorchLayer(torch, problem, solve, names)


@dataclasses.dataclass(frozen=True)
class PeerEntry:
    """How a peer is built, and what a reader of the figures should know."""

    build: Callable[[Problem, float], Peer]
    note: str


OURS = "nbqp"
PEERS = {
    OURS: PeerEntry(eager_layer, "tf_layer.solve_qp, eager under a gradient tape."),
    "nbqp, graph": PeerEntry(
        graph_layer,
        "A whole step, loss and tape included, in a tf.function, as Keras trains; backward is what it takes longer "
        "than a tf.function of the forward step.",
    ),
    "ProxSuite": PeerEntry(
        proxsuite_layer,
        "QPLayer in float64; bounds as inequality rows, since its backward pass crashes on boxes; "
        f"set from outside: eps_primal_inf = {PROXSUITE_EPS_PRIMAL_INF:g}, since the default 1e-4 "
        "calls feasible LPs infeasible, and the duality gap counts, as for nbqp; "
        "eps_backward = eps_abs; structural_feasibility=False for the closest feasible QP.",
    ),
    "ProxSuite, closest": PeerEntry(
        proxsuite_closest_layer,
        "The same with structural_feasibility=False on feasible problems, its other mode.",
    ),
    "cvxpylayers": PeerEntry(
        cvxpylayers_layer,
        "CvxpyLayer of PyTorch by diffcp and Clarabel; shared constants stay out of its parameters; "
        "it returns no multipliers, and H is a constant to it.",
    ),
    "OptNet": PeerEntry(
        qpth_layer,
        "qpth.qp.QPFunction in float64; needs a positive definite H: it cannot solve LPs.",
    ),
}
