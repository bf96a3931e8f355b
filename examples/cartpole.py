"""Learn to swing up a pole on a cart with dry friction: `python -m examples.cartpole --help`.

Friction impulses are the solution of a box QP in each time step (`examples.cartpole_simulation`), which
the layer solves and differentiates, so that a controller learns through the simulator. Two of them:

- `torques`: the forces u (200,) on the cart themselves, 0 at first (Le Lidec et al. 2022);
- `policy`: a network from state and time to the force, whose last layer is 0 at first, trained from
  starts that differ from START by N(0, 0.1^2) in each coordinate, and tested on 200 others.

Both minimise the smoothed loss of `examples.cartpole_task`, by perturbed forces: without smoothing there
is no gradient at START, where cart and pole rest and friction holds them. A controller succeeds where
its trajectory, unperturbed, ends with |p| < 0.05 m, |v| < 0.1 m/s, |theta - pi| < 0.05 rad and
|omega| < 0.1 rad/s. A training takes some minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import nbqp
from examples.cartpole_report import Recorder, animate, draw_curves, training_progress
from examples.cartpole_simulation import CartPole
from examples.cartpole_task import HORIZON, RECIPES, START, losses, noise, rollout, succeeds
from examples.command_line import make_folder, positive_float, positive_int, seed, warm_up
from tf_layer import solve_qp

PLANT = CartPole()
SETTINGS = nbqp.Settings(eps_abs=1e-9)
LARGEST_FORCE = 100.0
"""N, what the output of a policy's network is in units of."""
PROBES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Sigmas at which the gradient of the first controller is shown."""
TESTS = 200


class Torques(keras.layers.Layer):  # type: ignore[misc]
    """The force of a step, whatever the state."""

    def __init__(self, horizon: int) -> None:
        super().__init__(dtype="float64")
        self.forces = self.add_weight(name="forces", shape=(horizon,), initializer="zeros")

    def call(self, step: Any, states: Any) -> Any:
        """The force, for all states (batch, 4)."""
        return tf.fill(tf.shape(states)[:1], tf.gather(self.forces, step))


class Policy(keras.layers.Layer):  # type: ignore[misc]
    """LARGEST_FORCE times a network of p, v, sin theta, cos theta, omega and the time."""

    def __init__(self, horizon: int) -> None:
        super().__init__(dtype="float64")
        self.horizon = horizon
        hidden = functools.partial(keras.layers.Dense, 32, "tanh", dtype="float64")
        last = keras.layers.Dense(1, kernel_initializer="zeros", dtype="float64")
        self.network = keras.Sequential(
            [keras.Input((6,), dtype="float64"), hidden(), hidden(), last]
        )

    def call(self, step: Any, states: Any) -> Any:
        """The forces (batch,) at states (batch, 4)."""
        p, v, theta, omega = tf.unstack(states, axis=1)
        elapsed = tf.fill(tf.shape(p), tf.cast(step, states.dtype) / self.horizon)
        seen = tf.stack([p, v, tf.sin(theta), tf.cos(theta), omega, elapsed], axis=1)
        return LARGEST_FORCE * self.network(seen)[:, 0]


CONTROLLERS: dict[str, Callable[[int], Any]] = {"torques": Torques, "policy": Policy}


def friction(inverse_mass: Any, v_free: Any) -> Any:
    """The impulses (batch, 2), by the layer."""
    bound = PLANT.largest_impulse
    return solve_qp(inverse_mass, v_free, lb=-bound, ub=bound, settings=SETTINGS).x


def gradient_of(controller: Any, horizon: int) -> Any:
    """A function of starts (samples + 1, 4), sigma and eps (horizon, samples + 1), the force's noise.

    It returns the mean of the losses of all samples but the last, its gradient with respect to the
    controller's weights, and the loss of the last one, which is for show.
    """

    @tf.function  # type: ignore[untyped-decorator]
    def gradient(starts: Any, sigma: Any, eps: Any) -> Any:
        def perturbed(step: Any, states: Any) -> Any:
            return controller(step, states) + sigma * eps[step]

        with tf.GradientTape() as tape:
            final, squares = rollout(PLANT, starts, perturbed, friction, tf.range(horizon), tf)
            each = losses(final, squares)
            smoothed = tf.reduce_mean(each[:-1])
        return smoothed, tape.gradient(smoothed, controller.trainable_variables), each[-1]

    return gradient


def trajectories(controller: Any, horizon: int, starts: Any) -> tuple[Any, Any]:
    """The states (horizon + 1, batch, 4) and forces (horizon, batch), unperturbed."""
    states, forces = [tf.constant(starts)], []
    for step in range(horizon):
        forces.append(controller(tf.constant(step), states[-1]))
        states.append(PLANT.step(states[-1], forces[-1], friction, tf))
    return np.asarray(states), np.asarray(forces)


def train(args: argparse.Namespace, out: Path) -> bool:
    """Train, and write history.json, trajectory.npz, curves.png and swing-up.gif.

    Parameters
    ----------
    args
        Holds what the options say.

    Returns
    -------
    bool
        Whether there are results: not where the first epoch was interrupted.
    """
    recipe = RECIPES[args.controller]
    if args.learning_rate is not None:
        recipe = dataclasses.replace(recipe, learning_rate=args.learning_rate)
    keras.utils.set_random_seed(args.seed)
    controller = CONTROLLERS[args.controller](args.horizon)
    gradient = gradient_of(controller, args.horizon)
    adam = keras.optimizers.Adam(recipe.learning_rate, global_clipnorm=recipe.clip)

    def sampled(epoch: int, sigma: float, spread: float) -> Any:
        """The results of `gradient`; the last sample starts at START and is not perturbed."""
        eps, offsets = noise(args.seed, epoch, args.horizon, args.samples)
        starts = START + spread * np.vstack([offsets, np.zeros(4)])
        return gradient(starts, tf.constant(sigma, "float64"), np.pad(eps, ((0, 0), (0, 1))))

    with training_progress() as progress:
        show = functools.partial(progress.console.print, soft_wrap=True, highlight=False)
        recorder = Recorder(out / "history.json", progress, args.epochs)
        try:
            warm_up(show)
            slopes = {s: float(tf.linalg.global_norm(sampled(0, s, spread=0.0)[1])) for s in PROBES}
            show(
                f"at first all rests: |gradient| {slopes[0.0]:.0e} without smoothing, "
                + ", ".join(f"{slopes[s]:.0e} with sigma {s:g}" for s in (1.0, 10.0))
            )
            for epoch in range(args.epochs):
                begin = time.perf_counter()
                sigma = recipe.sigma_at(epoch, args.epochs)
                smoothed, slope, loss = sampled(epoch, sigma, recipe.spread)
                adam.learning_rate = recipe.rate_at(epoch, args.epochs)
                adam.apply(slope, controller.trainable_variables)
                seconds = time.perf_counter() - begin
                recorder.add(
                    loss=float(loss), smoothed=float(smoothed), sigma=sigma, seconds=seconds
                )
        except KeyboardInterrupt:
            show("interrupted: the results are those so far")
    if not recorder.history:
        return False
    _, offsets = noise(args.seed, args.epochs, 1, TESTS if recipe.spread else 0)
    starts = START + recipe.spread * np.vstack([np.zeros(4), offsets])
    states, forces = trajectories(controller, args.horizon, starts)
    np.savez(out / "trajectory.npz", states=states[:, 0], forces=forces[:, 0])
    title = f"swing-up of a cart-pole with dry friction: {args.controller}"
    draw_curves(out / "curves.png", title, recorder.history, slopes, states[:, 0], forces[:, 0])
    animate(out / "swing-up.gif", PLANT, states[:, 0])
    success = succeeds(states[-1])
    show(
        "ends at p {:.3f} m, v {:.3f} m/s, theta {:.3f}, omega {:.3f}: ".format(*states[-1, 0])
        + ("success" if success[0] else "no success")
    )
    if recipe.spread:
        show(f"success from {success[1:].sum()} of {TESTS} other starts")
    show(f"results in {out}")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Train one controller."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.cartpole",
        description="Swing up a cart-pole with dry friction, learned through its simulation.",
    )
    add = parser.add_argument
    add("--controller", choices=RECIPES, default="torques", help="default: %(default)s")
    add("--epochs", type=positive_int, default=800, metavar="N", help="default: %(default)s")
    add(
        "--samples",
        type=positive_int,
        default=32,
        metavar="M",
        help="perturbed trajectories of an epoch (default: %(default)s)",
    )
    add(
        "--horizon",
        type=positive_int,
        default=HORIZON,
        metavar="N",
        help="steps of 0.01 s (default: %(default)s)",
    )
    add("--seed", type=seed, default=0, help="default: %(default)s")
    add("--out", type=Path, metavar="DIR", help="for the results; default: cartpole-CONTROLLER")
    add(
        "--learning-rate",
        type=positive_float,
        metavar="R",
        help="at first; default: the controller's",
    )
    args = parser.parse_args(argv)
    out = args.out or Path(f"cartpole-{args.controller}")
    make_folder(parser, out)
    return 0 if train(args, out) else 130


if __name__ == "__main__":
    sys.exit(main())
