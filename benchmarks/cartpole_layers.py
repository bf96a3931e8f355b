"""A cart-pole with dry friction by each differentiable layer, with clocks for its two passes.

A layer's time runs from where its inputs are there to where its results are, with all that the framework
adds to the call; backward from the derivative by its results to the derivatives by its inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import nbqp
from benchmarks.arrays import Floats
from benchmarks.peers import import_torch, proxsuite_function
from examples.cartpole_simulation import CartPole, times
from examples.cartpole_task import START, losses, rollout


class Rollout(NamedTuple):
    """Of all samples at once.

    loss: their mean; gradient: by the forces (horizon, samples); forward, backward: seconds of the layer
    in all time steps; residual: the largest |x - clip(x - (H x + g))| of all QPs.
    """

    loss: float
    gradient: Floats
    forward: float
    backward: float
    residual: float


Simulate = Callable[[Floats], Rollout]
"""Forces (horizon, samples) to what they lead to."""


def _residual(plant: CartPole, H: Any, g: Any, x: Any) -> Any:
    bound = plant.largest_impulse
    moved = x - times(H, x) - g
    clipped = 0.5 * (abs(moved + bound) - abs(moved - bound))
    return abs(x - clipped)


def nbqp_simulator(plant: CartPole, eps: float) -> Simulate:
    """Build that of `tf_layer.solve_qp`: one `tf.function` over the horizon, clocks within."""
    import tensorflow as tf

    from tf_layer import solve_qp

    bound, settings = plant.largest_impulse, nbqp.Settings(eps_abs=eps)
    origin = time.time()
    forward, worst = tf.Variable(0.0, dtype=tf.float64), tf.Variable(0.0, dtype=tf.float64)

    def stamp(*tensors: Any) -> tuple[Any, ...]:
        """The time when these are there, and they, for use after it."""
        with tf.control_dependencies(tensors):
            now = tf.timestamp() - origin
        with tf.control_dependencies([now]):
            return now, *(tf.identity(tensor) for tensor in tensors)

    # The backward passes' times add up as the derivative by a clock that nothing depends on.
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def end_of_backward(clock: Any, H: Any, g: Any) -> Any:
        return (tf.identity(H), tf.identity(g)), stamp

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def begin_of_backward(clock: Any, x: Any) -> Any:
        def gradient(dx: Any) -> tuple[Any, Any]:
            now, dx = stamp(dx)
            return -now, dx

        return tf.identity(x), gradient

    @tf.function  # type: ignore[untyped-decorator]
    def run(forces: Any) -> tuple[Any, Any, Any]:
        clock = tf.constant(0.0, tf.float64)

        def friction(H: Any, g: Any) -> Any:
            begin, H, g = stamp(*end_of_backward(clock, H, g))
            end, x = stamp(solve_qp(H, g, lb=-bound, ub=bound, settings=settings).x)
            forward.assign_add(end - begin)
            worst.assign(tf.maximum(worst, tf.reduce_max(_residual(plant, H, g, x))))
            return begin_of_backward(clock, x)

        horizon, samples = forces.shape
        with tf.GradientTape() as tape:
            tape.watch((forces, clock))
            start = tf.tile(tf.constant([START], tf.float64), (samples, 1))
            steps = tf.range(horizon)
            loss = losses(*rollout(plant, start, lambda t, _: forces[t], friction, steps, tf))
            loss = tf.reduce_mean(loss)
        return loss, *tape.gradient(loss, (forces, clock))

    def simulate(forces: Floats) -> Rollout:
        forward.assign(0.0)
        worst.assign(0.0)
        loss, gradient, backward = run(tf.constant(forces))
        parts = float(forward), float(backward), float(worst)
        return Rollout(float(loss), gradient.numpy(), *parts)

    return simulate


def _torch_simulator(plant: CartPole, solve: Callable[[Any, Any], Any]) -> Simulate:
    """solve(H, g) in PyTorch, clocks around it."""
    torch = import_torch()

    class Clock:
        """Adds up the times between `begin` and `end`."""

        total = 0.0

        def begin(self) -> None:
            self.total -= time.perf_counter()

        def end(self) -> None:
            self.total += time.perf_counter()

    class Passed(torch.autograd.Function):  # type: ignore[misc, name-defined]
        """Calls `then` when the derivatives of all these tensors pass."""

        @staticmethod
        def forward(ctx: Any, then: Callable[[], None], *tensors: Any) -> Any:
            ctx.then = then
            return tensors

        @staticmethod
        def backward(ctx: Any, *derivatives: Any) -> Any:
            ctx.then()
            return None, *derivatives

    def simulate(values: Floats) -> Rollout:
        ahead, back, worst = Clock(), Clock(), 0.0

        def friction(H: Any, g: Any) -> Any:
            nonlocal worst
            H, g = Passed.apply(back.end, H, g)
            ahead.begin()
            x = solve(H, g)
            ahead.end()
            with torch.no_grad():
                worst = max(worst, float(_residual(plant, H, g, x).max()))
            return Passed.apply(back.begin, x)[0]

        forces = torch.tensor(values, requires_grad=True)
        horizon, samples = values.shape
        start = torch.tensor([START]).expand(samples, len(START))
        steps = range(horizon)
        loss = losses(*rollout(plant, start, lambda t, _: forces[t], friction, steps, torch))
        loss = loss.mean()
        loss.backward()
        gradient: Floats = forces.grad.numpy()
        return Rollout(float(loss.detach()), gradient, ahead.total, back.total, worst)

    return simulate


def proxsuite_simulator(plant: CartPole, eps: float) -> Simulate:
    """Build that of ProxSuite's QPLayer, the bounds as rows."""
    torch = import_torch()
    layer = proxsuite_function(eps, structural_feasibility=True)

    def solve(H: Any, g: Any) -> Any:
        batch = len(g)
        A, b = torch.zeros((batch, 0, 2)), torch.zeros((batch, 0))
        C, u = torch.eye(2).expand(batch, 2, 2), torch.full((batch, 2), plant.largest_impulse)
        return layer(H, g, A, b, C, -u, u)[0]

    return _torch_simulator(plant, solve)


def qpth_simulator(plant: CartPole, eps: float) -> Simulate:
    """Build that of OptNet (qpth)."""
    torch = import_torch()
    from qpth.qp import QPFunction

    layer = QPFunction(eps=eps, verbose=-1)
    G, h = torch.cat([torch.eye(2), -torch.eye(2)]), torch.full((4,), plant.largest_impulse)
    none = torch.zeros(0)
    return _torch_simulator(plant, lambda H, g: layer(H, g, G, h, none, none))


SIMULATORS: dict[str, Callable[[CartPole, float], Simulate]] = {
    "nbqp": nbqp_simulator,
    "ProxSuite": proxsuite_simulator,
    "OptNet": qpth_simulator,
}
