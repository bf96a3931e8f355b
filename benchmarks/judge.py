"""What a layer's solutions and gradients are worth: NumPy on the data, and exact active sets."""

from __future__ import annotations

import dataclasses

import numpy as np

import nbqp
from benchmarks.arrays import Floats
from benchmarks.batches import Point, Problem, multiply

REFERENCE_RESIDUAL = 1e-9
ACTIVE_SET_STEPS = 10
SHIFTED = 1e-7
RCOND = 1e-11


def _shifts(problem: Problem, x: Floats) -> tuple[Floats, Floats]:
    """How far the rows of A and of G are from their sides: (batch, n_eq), (batch, rows)."""
    G, lower, upper = problem.rows
    Gx = multiply(G, x)
    return multiply(problem.A, x) - problem.b, Gx - np.clip(Gx, lower, upper)


def residuals(problem: Problem, point: Point) -> dict[str, float]:
    """Worst primal and dual residuals and duality gap of the batch, from the data alone.

    primal  |Ax - b|, lower - Gx, Gx - upper; of a closest feasible QP |A's_e + G's|
    dual    |Hx + g + A'y + G'z|, and |z| on an infinite side
    gap     |x'(Hx + g) + (b + s_e)'y + (upper + s)'z_+ + (lower + s)'z_-|
    """
    (x, y, z), (G, lower, upper) = point, problem.rows
    A_transposed, G_transposed = np.swapaxes(problem.A, -1, -2), np.swapaxes(G, -1, -2)
    s_e, s = _shifts(problem, x)
    primal = np.hstack([s_e, s])
    if problem.closest:
        primal = multiply(A_transposed, s_e) + multiply(G_transposed, s)
    else:
        s_e, s = 0.0 * s_e, 0.0 * s
    forces = multiply(problem.hessian, x) + problem.g
    side = np.where(z > 0, upper, lower)
    bounded = np.isfinite(side)
    stationarity = np.abs(forces + multiply(A_transposed, y) + multiply(G_transposed, z))
    gap = np.sum(x * forces, axis=1) + np.sum(y * (problem.b + s_e), axis=1)
    gap += np.sum(np.where(bounded, z * (np.where(bounded, side, 0.0) + s), 0.0), axis=1)
    return {
        "primal_residual": float(np.max(np.abs(primal), initial=0.0)),
        "dual_residual": float(max(np.max(stationarity), np.max(np.abs(z) * ~bounded, initial=0))),
        "duality_gap": float(np.max(np.abs(gap))),
    }


@dataclasses.dataclass(frozen=True)
class Reference:
    """An exact solution, the gradients there, and its strict complementarity.

    margin: the least over the rows of max(distance to the nearer side, |z|). The gradient is
    unique where it is positive.
    """

    point: Point
    gradients: dict[str, Floats]
    margin: float


def dense_reference(problem: Problem) -> Reference:
    """Solve each QP and differentiate it by dense KKT systems of the active set, in NumPy.

    The first active set is guessed from nbqp's solution; the guess decides nothing but which multipliers
    of an infeasible QP are meant, since the residuals of the result are checked.

    Raises
    ------
    RuntimeError
        No active set satisfies the KKT conditions to 1e-9.
    """
    G, lower, upper = problem.rows
    data = (problem.H, problem.g, problem.A, problem.b, G, lower, upper)
    settings = nbqp.Settings(eps_abs=1e-10, primal_infeasibility_solving=problem.closest)
    guess = nbqp.solve_batch(*data, settings=settings)
    points, sums = [], {name: np.zeros_like(getattr(problem, name)) for name in problem.inputs}
    for k in range(len(problem.g)):
        one = problem.sample(k)
        point, gradients = _exact(one, Point(guess.x[k], guess.y[k], guess.z[k]))
        points.append(point)
        for name, gradient in gradients.items():
            # A datum without a batch axis gets the sum.
            total = sums[name]
            total[k if total.ndim > gradient.ndim else slice(None)] += gradient
    exact = Point(*(np.array(part) for part in zip(*points, strict=True)))
    if not max(residuals(problem, exact).values()) < REFERENCE_RESIDUAL:
        raise RuntimeError(f"no exact solution: its residuals are {residuals(problem, exact)}")
    moved = multiply(G, exact.x) - _shifts(problem, exact.x)[1]
    distance = np.minimum(moved - lower, upper - moved)
    margin = np.min(np.maximum(distance, np.abs(exact.z)), initial=1.0)
    return Reference(exact, sums, float(margin))


def _exact(one: Problem, guess: Point) -> tuple[Point, dict[str, Floats]]:
    """The exact solution of a single QP next to a guess, and the loss's gradients there.

    The active set is corrected by (x, z) until it stays:

        [H  B'] [ x]   [-g]            B: A and the active rows of G, d: b and their sides;
        [B  0 ] [yz] = [ d]            active: distance to the side < multiplier

    Of V, A and the rows whose side is shifted, d is the projection on the range of B_V. Then, with
    K (v, w) = (dL/dx, 0) and b4 = B_V^+ w_V (s: shifts),

        dL/dg = -v,     dL/dA = -(y v' + A b4 x' + s_e b4'),    dL/db = A b4,
        dL/dH = -(v x' + x v') / 2,    dL/dC = -(z v' + w_C x'),    dL/du = w_C on upper sides.
    """
    G, lower, upper = one.rows
    H, A, b = one.hessian, one.A, one.b
    (_, n), n_eq = one.g.shape, len(b)
    x, y, z = guess
    previous = None
    for _ in range(ACTIVE_SET_STEPS):
        shift = _shifts(one, x[None])[1][0]
        at_lower = G @ x - lower < np.maximum(-z, -SHIFTED)
        at_upper = upper - G @ x < np.maximum(z, -SHIFTED)
        active = at_lower | at_upper
        if previous is not None and np.array_equal(active, previous):
            break
        previous = active
        B = np.vstack([A, G[active]])
        K = np.block([[H, B.T], [B, np.zeros((len(B), len(B)))]])
        d = np.concatenate([b, np.where(at_lower, lower, upper)[active]])
        V = np.concatenate([np.ones(n_eq, dtype=bool), np.abs(shift[active]) > SHIFTED])
        d[V] = B[V] @ np.linalg.lstsq(B[V], d[V], rcond=RCOND)[0]
        found = np.linalg.lstsq(K, np.concatenate([-one.g[0], d]), rcond=RCOND)[0]
        x, y, z_active = np.split(found, [n, n + n_eq])
        z = np.zeros(len(G))
        z[active] = z_active
    if V[n_eq:].any() or np.abs(A @ x - b).max(initial=0.0) > SHIFTED:
        # Multipliers are unique up to multiples of s: those of least norm, which count here.
        y, z = guess.y, guess.z
    dL_dx = 2 * (x - one.target[0])
    solution = np.linalg.lstsq(K, np.concatenate([dL_dx, np.zeros(len(B))]), rcond=RCOND)[0]
    v, w = np.split(solution, [n])
    b4 = np.linalg.lstsq(B[V], w[V], rcond=RCOND)[0]
    w_rows = np.zeros(len(G))
    w_rows[active] = w[n_eq:]
    rows = slice(len(one.C))
    gradients = {
        "H": -0.5 * (np.outer(v, x) + np.outer(x, v)),
        "g": -v,
        "A": -(np.outer(y, v) + np.outer(A @ b4, x) + np.outer(A @ x - b, b4)),
        "b": A @ b4,
        "C": -(np.outer(z[rows], v) + np.outer(w_rows[rows], x)),
        "u": (w_rows * at_upper)[rows],
    }
    return Point(x, y, z), {name: gradients[name] for name in one.inputs}


def gradient_errors(found: dict[str, Floats], exact: dict[str, Floats]) -> dict[str, float]:
    """|found - exact| / |exact| by datum that a layer has a gradient of, in the Euclidean norm.

    A vanishing gradient (that of an LP by g) is compared with the largest one instead.
    """
    norms = {name: float(np.linalg.norm(part)) for name, part in exact.items()}
    largest = max(norms.values())
    return {
        name: float(np.linalg.norm(part - exact[name]))
        / (norms[name] if norms[name] > 1e-9 * largest else largest)
        for name, part in found.items()
    }
