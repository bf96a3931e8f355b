"""A pole, a mass at the end of a rod, on a cart with dry friction in both joints, step by step.

The state is (p, v, theta, omega): the cart's position and velocity, the pole's angle (0 hangs down, pi
stands up) and angular velocity; SI units. A force acts on the cart. With the mass matrix M, forces tau
and h, and dt a time step, the impulses of friction take away as much kinetic energy as they can:

    v_free = v + dt M^-1 (tau - h)
    lambda = argmin 1/2 lambda' M^-1 lambda + lambda' v_free   s.t.  |lambda| <= friction dt
    v+ = v_free + M^-1 lambda,   q+ = q + dt v+

a QP in the two impulses (Le Lidec, Schramm, Montaut, Schmid, Laptev, Carpentier, *Leveraging randomized
smoothing for optimal control of nonsmooth dynamical systems*, 2022). While a joint sticks, v+ of it
is 0 whatever the force, and so are its derivatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

Friction = Callable[[Any, Any], Any]
"""(M^-1 (batch, 2, 2), v_free (batch, 2)) to lambda (batch, 2)."""


@dataclasses.dataclass(frozen=True)
class CartPole:
    """Masses in kg, length in m, friction in N (cart) and Nm (pole), time step in s."""

    cart_mass: float = 1.0
    pole_mass: float = 0.1
    length: float = 0.5
    gravity: float = 9.81
    friction: float = 0.2
    dt: float = 0.01

    @property
    def largest_impulse(self) -> float:
        """The bound of |lambda|."""
        return self.friction * self.dt

    def step(self, state: Any, force: Any, friction: Friction, xp: Any = np) -> Any:
        """The states (batch, 4) after a step with the forces (batch,).

        xp: the module that the tensors are of: numpy, tensorflow or torch.
        """
        p, v, theta, omega = (state[:, k] for k in range(4))
        sin, cos = xp.sin(theta), xp.cos(theta)
        moment = self.pole_mass * self.length
        mass, inertia, coupling = (
            self.cart_mass + self.pole_mass,
            moment * self.length,
            moment * cos,
        )
        determinant = mass * inertia - coupling * coupling
        off_diagonal = -coupling / determinant
        inverse = xp.stack(
            [
                xp.stack([inertia / determinant, off_diagonal], -1),
                xp.stack([off_diagonal, mass / determinant], -1),
            ],
            -2,
        )
        forces = xp.stack([force + moment * omega * omega * sin, -moment * self.gravity * sin], -1)
        v_free = xp.stack([v, omega], -1) + self.dt * times(inverse, forces)
        v_next = v_free + times(inverse, friction(inverse, v_free))
        v, omega = v_next[:, 0], v_next[:, 1]
        return xp.stack([p + self.dt * v, v, theta + self.dt * omega, omega], -1)


def times(matrix: Any, vector: Any) -> Any:
    """The products (batch, 2) of matrices (batch, 2, 2) and vectors (batch, 2)."""
    return matrix[:, :, 0] * vector[:, :1] + matrix[:, :, 1] * vector[:, 1:]
