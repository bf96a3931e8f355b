"""Swing up the pole of a cart with dry friction: the task, and how a framework learns it.

From START, the pole hanging, to GOAL, the pole standing and all at rest, in HORIZON steps. The loss of
a trajectory with the final state x and the forces u, in N, is

    f(u) = sum_k WEIGHTS[k] (x - GOAL)[k]^2 + EFFORT sum_t u_t^2

Where a joint sticks, x does not depend on u, and its gradient is 0. A sum over perturbed trajectories,

    1/M sum_i grad f(u + sigma eps_i),   eps_i ~ N(0, I),

is an estimate of the gradient of E f(u + sigma eps), which is smooth, and close to f for a small sigma
(Le Lidec, Schramm, Montaut, Schmid, Laptev, Carpentier, *Leveraging randomized smoothing for optimal
control of nonsmooth dynamical systems*, 2022). So sigma falls to 0 during a training by Adam.

`rollout` and `losses` take tensors of NumPy, TensorFlow and torch alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from math import cos, pi
from typing import Any

import numpy as np

from examples.cartpole_simulation import CartPole, Friction

START = (-1.0, 0.0, 0.0, 0.0)
GOAL = (0.0, 0.0, pi, 0.0)
HORIZON = 200
WEIGHTS = (1.0, 0.3, 1.0, 0.3)
EFFORT = 1.5e-7
BOUNDS = (0.05, 0.1, 0.05, 0.1)
"""Success: no coordinate of the final state, in m, m/s, rad and rad/s, is farther from the goal's."""

Control = Callable[[Any, Any], Any]
"""(step, states (batch, 4)) to forces (batch,)."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Adam's step and sigma of the first epoch.

    spread: the standard deviation of a start from START, in each coordinate; clip: the norm at which a
    gradient is cut off.
    """

    learning_rate: float
    sigma: float
    spread: float = 0.0
    clip: float | None = None

    def rate_at(self, epoch: int, epochs: int) -> float:
        """Half a period of a cosine, to 0."""
        return 0.5 * self.learning_rate * (1.0 + cos(pi * epoch / epochs))

    def sigma_at(self, epoch: int, epochs: int) -> float:
        """A parabola, to 0."""
        return self.sigma * (1.0 - epoch / epochs) ** 2


RECIPES = {
    "torques": Recipe(learning_rate=2.0, sigma=5.0),
    "policy": Recipe(learning_rate=0.003, sigma=20.0, spread=0.1, clip=1.0),
}


def noise(seed: int, epoch: int, horizon: int, samples: int) -> tuple[Any, Any]:
    """N(0, 1) of an epoch: eps (horizon, samples), and (samples, 4) for the starts."""
    draw = np.random.default_rng([seed, epoch]).standard_normal
    return draw((horizon, samples)), draw((samples, 4))


def rollout(
    plant: CartPole,
    state: Any,
    control: Control,
    friction: Friction,
    steps: Iterable[Any],
    xp: Any = np,
) -> tuple[Any, Any]:
    """The final states (batch, 4) from these, and the sums of the squared forces (batch,)."""
    squares = 0.0 * state[:, 0]
    for t in steps:
        force = control(t, state)
        state = plant.step(state, force, friction, xp)
        squares = squares + force * force
    return state, squares


def losses(final: Any, squares: Any) -> Any:
    """The loss f (batch,) of what `rollout` returns."""
    distance = sum(
        weight * (final[:, k] - goal) ** 2
        for k, (weight, goal) in enumerate(zip(WEIGHTS, GOAL, strict=True))
    )
    return distance + EFFORT * squares


def succeeds(final: Any) -> Any:
    """Whether states (batch, 4) keep BOUNDS, (batch,)."""
    return (np.abs(np.asarray(final) - GOAL) < BOUNDS).all(axis=1)
