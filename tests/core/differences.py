"""Derivatives of a loss of the solution by differences, and gradients held against them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from tests.core.oracles import Array, Data, PointLike


def linear_loss(cotangents: Mapping[str, Array]) -> Callable[[PointLike], float]:
    """Loss whose derivative with respect to the solution is ``cotangents``."""

    def loss(point: PointLike) -> float:
        return sum(
            float(np.sum(value * getattr(point, key.removeprefix("dL_d"))))
            for key, value in cotangents.items()
        )

    return loss


def central_differences(
    solve: Callable[[Data], PointLike],
    data: Data,
    loss: Callable[[PointLike], float],
    name: str,
    entries: Iterable[Any],
    h: float,
) -> Array:
    """Derivatives of a scalar loss of the solution with respect to entries of one datum.

    Of order 4: two steps and Richardson. H is perturbed symmetrically, by h/2 at (i, j) and at
    (j, i), so that the result is the gradient of the loss as a function of a full matrix whose
    symmetric part is used.

    Parameters
    ----------
    solve
        Solver under test or reference.
    entries
        Indices into the datum.
    h
        Absolute step.
    """
    d = data.full()

    def value(index: Any, step: float) -> float:
        moved = np.array(getattr(d, name))
        if name == "H":
            moved[index] += 0.5 * step
            moved[index[::-1]] += 0.5 * step
        else:
            moved[index] += step
        return loss(solve(replace(d, **{name: moved})))

    def slope(index: Any, step: float) -> float:
        return (value(index, step) - value(index, -step)) / (2 * step)

    return np.array([(4 * slope(k, h / 2) - slope(k, h)) / 3 for k in entries])


def forward_differences(
    solve: Callable[[Data], PointLike],
    data: Data,
    loss: Callable[[PointLike], float],
    vectors: Iterable[Array],
    h: float,
) -> Array:
    """Derivatives of a scalar loss of the solution along H + t v v', for t >= 0 only.

    A singular H is left by no other direction than these without becoming indefinite. The formula
    of five points is of order 4, as that of `central_differences`.
    """
    d = data.full()
    weights = np.array([-25.0, 48.0, -36.0, 16.0, -3.0]) / (12.0 * h)
    out = []
    for v in vectors:
        values = [loss(solve(replace(d, H=d.H + k * h * np.outer(v, v)))) for k in range(5)]
        out.append(weights @ values)
    return np.array(out)


def assert_gradients(
    grads: Any,
    solve: Callable[[Data], PointLike],
    data: Data,
    cotangents: Mapping[str, Array],
    rng: np.random.Generator,
    *,
    names: Iterable[str] = tuple(f.name for f in fields(Data)),
    count: int = 6,
    h: float = 1e-4,
    rtol: float = 1e-6,
) -> None:
    """Hold gradients against central differences, along v v' for a singular H.

    Parameters
    ----------
    grads
        With ``dL_dH`` and so on, dense, None for what is absent.
    solve, data
        As in `central_differences`.
    cotangents
        Those of ``grads``, as in `adjoint_oracle`.
    names
        Data to compare.
    count
        Number of entries drawn of each datum, of those that are finite.
    h
        Absolute step.
    rtol
        Tolerance, relative to the largest of the entries drawn or to 1.
    """
    loss, full = linear_loss(cotangents), data.full()
    for name in names:
        ours = getattr(grads, f"dL_d{name}")
        if ours is None:
            continue
        if name == "H" and np.linalg.eigvalsh(full.H)[0] < 1e-6:
            vectors = rng.standard_normal((count, data.n))
            expected = forward_differences(solve, data, loss, vectors, h)
            found = np.einsum("ki,ij,kj->k", vectors, ours, vectors)
        else:
            finite = np.argwhere(np.isfinite(getattr(full, name)))
            entries = [tuple(e) for e in rng.permutation(finite)[:count]]
            expected = central_differences(solve, data, loss, name, entries, h)
            found = np.array([ours[e] for e in entries])
        atol = rtol * max(1.0, float(np.abs(found).max(initial=0.0)))
        np.testing.assert_allclose(found, expected, rtol=0.0, atol=atol, err_msg=name)
