"""Model predictive control: two plants, and the QPs that their closed loops meet.

    min  1/2 sum_k (u_k' R u_k + s_k+1' Q s_k+1)    s.t.   s_k+1 = A s_k + B u_k,
                                                           |u_k| <= u_max, |s_k+1| <= s_max

over the variables x = (u_0, s_1, u_1, s_2, ..., u_N-1, s_N); the last Q is that of the infinite horizon.
Steps differ in the measured state s_0 alone, which stands in the first rows of b.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.linalg
import scipy.sparse

import nbqp
from benchmarks.arrays import Floats

SEED = 1
GRAVITY = 9.81
REFERENCE_EPS = 1e-10
ACTIVE = 1e-6


@dataclasses.dataclass(frozen=True)
class Plant:
    """s' = A s + B u with a cost, limits and what disturbs it.

    A (states, states), B (states, inputs); Q, R: diagonals of the weights; s_max, u_max: limits of
    the magnitudes, infinite where there are none. Every `period` steps the states `disturbed` are
    pushed by normal numbers of size `push`, in all steps by those of size `noise`.
    """

    A: Floats
    B: Floats
    Q: Floats
    R: Floats
    s_max: Floats
    u_max: Floats
    disturbed: slice
    push: float
    noise: float
    horizon: int
    period: int = 25


@dataclasses.dataclass(frozen=True)
class Sequence:
    """min 1/2 x'Hx + g'x   s.t.   Ax = b[k],   lb <= x <= ub: a QP for each step k.

    H (n, n) and A (n_eq, n) are scipy.sparse.csc_array, b is (steps, n_eq). active: of each step, how many
    bounds hold its solution.
    """

    H: scipy.sparse.csc_array
    g: Floats
    A: scipy.sparse.csc_array
    b: Floats
    lb: Floats
    ub: Floats
    active: list[int]

    @property
    def bounded(self) -> scipy.sparse.csc_array:
        """The rows of the identity that belong to variables with a bound."""
        kept = np.isfinite(self.lb) | np.isfinite(self.ub)
        return scipy.sparse.csc_array(scipy.sparse.eye_array(len(kept)).tocsr()[kept])


def _sampled(A: Floats, B: Floats, seconds: float) -> tuple[Floats, Floats]:
    """ds/dt = A s + B u between samples, u constant: exp of [[A, B], [0, 0]]."""
    states, inputs = B.shape
    both = np.zeros((states + inputs, states + inputs))
    both[:states] = np.hstack([A, B])
    sampled = scipy.linalg.expm(seconds * both)
    return sampled[:states, :states], sampled[:states, states:]


def quadcopter() -> Plant:
    """A quadcopter of 1 kg about its hover, sampled at 10 Hz, horizon 1 s: n = 160, n_eq = 120.

    States: position, angles (roll, pitch, yaw), velocity, angular rates, 3 each; inputs: thrusts of
    the four rotors beyond that of the hover, N. It tilts by at most 0.2 and flies at most 2 m/s up
    or down; gusts change its horizontal velocity.
    """
    arm, drag, inertia = 0.2, 0.02, np.array([0.01, 0.01, 0.02])
    A, B = np.zeros((12, 12)), np.zeros((12, 4))
    A[:6, 6:] = np.eye(6)
    A[6, 4], A[7, 3] = GRAVITY, -GRAVITY
    B[8] = 1.0
    torques = [[0, arm, 0, -arm], [-arm, 0, arm, 0], [drag, -drag, drag, -drag]]
    B[9:] = np.array(torques) / inertia[:, None]
    s_max = np.full(12, np.inf)
    s_max[3:5], s_max[8] = 0.2, 2.0
    A, B = _sampled(A, B, 0.1)
    return Plant(
        A=A,
        B=B,
        Q=np.repeat([10.0, 1.0, 1.0, 0.1], 3),
        R=np.full(4, 0.1),
        s_max=s_max,
        u_max=np.full(4, 1.5),
        disturbed=slice(6, 8),
        push=1.5,
        noise=0.01,
        horizon=10,
    )


def masses(count: int = 12, horizon: int = 34) -> Plant:
    """A chain of masses between two walls, sampled at 2 Hz: n = 5/2 count horizon, n_eq = 2 count horizon.

    Masses and springs are of size 1 and undamped; states: displacements and velocities; inputs: forces,
    each between two neighbours. Source: Wang & Boyd, *Fast model predictive control using online
    optimization*, 2010, with 6 masses.
    """
    stiffness = 2 * np.eye(count) - np.eye(count, k=1) - np.eye(count, k=-1)
    A, B = np.zeros((2 * count, 2 * count)), np.zeros((2 * count, count // 2))
    A[:count, count:], A[count:, :count] = np.eye(count), -stiffness
    B[count:] = np.kron(np.eye(count // 2), [[1.0], [-1.0]])
    A, B = _sampled(A, B, 0.5)
    return Plant(
        A=A,
        B=B,
        Q=np.ones(2 * count),
        R=np.ones(count // 2),
        s_max=np.concatenate([np.full(count, 2.0), np.full(count, np.inf)]),
        u_max=np.full(count // 2, 0.5),
        disturbed=slice(count, 2 * count),
        push=0.5,
        noise=0.01,
        horizon=horizon,
    )


def closed_loop(plant: Plant, steps: int) -> Sequence:
    """The QPs of a run in which the plant follows the first input of each solution.

    Raises
    ------
    RuntimeError
        A QP was not solved to 1e-10, so that there is no run to follow.
    """
    random = np.random.default_rng(SEED)
    states, inputs = plant.B.shape
    stages = scipy.sparse.eye_array(plant.horizon)
    earlier = scipy.sparse.eye_array(plant.horizon, k=-1)
    A = scipy.sparse.kron(stages, np.hstack([-plant.B, np.eye(states)]))
    A = A + scipy.sparse.kron(earlier, np.hstack([np.zeros((states, inputs)), -plant.A]))
    weights = np.tile(np.concatenate([plant.R, plant.Q]), plant.horizon)[:-states]
    last = scipy.linalg.solve_discrete_are(plant.A, plant.B, np.diag(plant.Q), np.diag(plant.R))
    last = scipy.sparse.csc_array(0.5 * (last + last.T))
    H = scipy.sparse.block_diag([scipy.sparse.diags_array(weights), last])
    ub = np.tile(np.concatenate([plant.u_max, plant.s_max]), plant.horizon)
    b = np.zeros((steps, A.shape[0]))
    sequence = Sequence(
        scipy.sparse.csc_array(H), np.zeros(len(ub)), scipy.sparse.csc_array(A), b, -ub, ub, []
    )
    settings = nbqp.Settings(eps_abs=REFERENCE_EPS)
    solver = nbqp.Solver(
        H=sequence.H, g=sequence.g, A=sequence.A, b=b[0], lb=-ub, ub=ub, settings=settings
    )
    state = np.zeros(states)
    for k in range(steps):
        size = plant.noise + (plant.push if k % plant.period == 0 else 0.0)
        state[plant.disturbed] += size * random.standard_normal(state[plant.disturbed].shape)
        b[k, :states] = plant.A @ state
        solver.update(b=b[k])
        solution = solver.solve()
        if solution.status is not nbqp.Status.SOLVED:
            raise RuntimeError(f"step {k} of the run: {solution}")
        sequence.active.append(int(np.sum(ub - np.abs(solution.x) < ACTIVE)))
        state = plant.A @ state + plant.B @ solution.x[:inputs]
    return sequence
