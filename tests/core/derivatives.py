"""Derivatives of solutions in plain NumPy: dense least squares, and comparisons with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from tests.core.oracles import Array, Data, PointLike, stack_rows


class _Jacobian(NamedTuple):
    """dG/dv at a solution, with what is needed to read its columns and rows."""

    J: Array
    M: Array
    lam: Array
    s: Array
    E: NDArray[np.intp]
    I: NDArray[np.intp]
    side: Array
    viol: Array


def _jacobian(d: Data, point: PointLike, tol: float) -> _Jacobian:
    """Jacobian of G with respect to v = (x, lam_E, lam_I, s_E, t_I); see `adjoint_oracle`."""
    st = stack_rows(d, point)
    E = np.flatnonzero(st.equal)
    I = np.flatnonzero(~st.equal & st.present)
    M, lam = st.M, st.lam
    value = M @ point.x
    upper_score = lam + (value - st.upper)
    lower_score = -lam + (st.lower - value)
    side = np.where(st.equal | (upper_score >= lower_score), 1.0, -1.0)
    t = value - np.where(side > 0, st.upper, st.lower)  # signed: Cx - active bound
    viol = (side * t > tol)[I]
    Pi_1 = (np.minimum(side * t, 0) + side * lam >= -tol)[I] | viol
    s = np.where(st.equal, st.s, 0.0)
    s[I] = viol * st.s[I]

    n, e, i = d.n, len(E), len(I)
    ME, MI = M[E], M[I]
    P1, P12, V = np.diag(1.0 * Pi_1), np.diag(1.0 * (Pi_1 & ~viol)), np.diag(1.0 * viol)
    O = np.zeros
    J = np.block(
        [
            [d.H, ME.T, MI.T, O((n, e)), O((n, i))],
            [ME, O((e, e)), O((e, i)), -np.eye(e), O((e, i))],
            [MI, O((i, e)), O((i, i)), O((i, e)), -np.eye(i)],
            [O((i, n)), O((i, e)), P1 - np.eye(i), O((i, e)), P12],
            [O((n, n)), O((n, e)), O((n, i)), ME.T, MI.T @ V],
        ]
    )
    return _Jacobian(J, M, lam, s, E, I, side, 1.0 * viol)


def extended_jacobian(data: Data, point: PointLike, tol: float) -> Array:
    """dG/dv of `adjoint_oracle`, which tells its rank."""
    return _jacobian(data.full(), point, tol).J


def _cat(d: Data, values: Mapping[str, Any], names: Sequence[str]) -> Array:
    sizes = (len(d.b), len(d.l), d.n)
    return np.concatenate(
        [np.broadcast_to(values.get(k, 0.0), (m,)) for k, m in zip(names, sizes, strict=True)]
    )


def adjoint_oracle(
    data: Data,
    point: PointLike,
    cotangents: Mapping[str, Array],
    tol: float = 1e-7,
    rcond: float = 1e-10,
) -> dict[str, Array]:
    r"""Gradients of a loss by the least-norm least-squares adjoint of the extended system.

    Stack the rows as M = (A; C; I), drop those without a finite side, and call E the rows whose
    sides coincide (A; l = u; lb = ub), I the others. On I let t = Mx - (the bound of the side
    that is active, violated or, failing both, nearest), and let sigma = +1 for an upper and -1
    for a lower side. Then (x, lam, s, t) solves the closest feasible QP iff G = 0:

        G1 = Hx + g + M_E' lam_E + M_I' lam_I
        G2 = (M_E x - b - s_E,  M_I x - bound - t)
        G3 = sigma [ [sigma t]_- + sigma lam_I ]_+ - lam_I
        G4 = M_E' s_E + M_I' sigma [sigma t]_+ ,          s_I = sigma [sigma t]_+

    The signs drop out of dG/dv, v = (x, lam_E, lam_I, s_E, t), up to the masks
    Pi_1 = 1{[sigma t]_- + sigma lam >= 0} and Pi_2 = 1{sigma t <= 0}. The least-norm
    least-squares derivative dv = -J^+ dG/dtheta dtheta has the adjoint b = -(J')^+ dL/dv, that
    is, row by row of J' b = -dL/dv:

        x:    H b1 + M_E' b2_E + M_I' b2_I           = -dL/dx
        lam:  M_E b1 = -dL/dlam_E,   M_I b1 - (1 - Pi_1) b3 = -dL/dlam_I
        s_E:  -b2_E + M_E b4                         = -dL/ds_E
        t:    -b2_I + Pi_1 Pi_2 b3 + (1 - Pi_2) M_I b4 = -(1 - Pi_2) dL/ds_I

    and dL = b' dG/dtheta dtheta gives

        dL/dg = b1,  dL/dH = 1/2 (b1 x' + x b1'),  dL/dM = lam b1' + b2 x' + s b4',
        dL/d(bound) = -b2 on its side, half on each side where the sides coincide.

    Weakly active rows (t = 0 = lam) count as active.

    Parameters
    ----------
    data, point
        The unscaled data and their solution.
    cotangents
        Any of ``dL_dx, dL_dy, dL_dz, dL_dz_box, dL_ds_e, dL_ds_i, dL_ds_box``.
    tol
        Absolute tolerance of the masks.

    Returns
    -------
    dict
        ``dL_dH, dL_dg, dL_dA, dL_db, dL_dC, dL_dl, dL_du, dL_dlb, dL_dub``, dense.
    """
    d = data.full()
    c = _jacobian(d, point, tol)
    n, e, i = d.n, len(c.E), len(c.I)
    dlam = _cat(d, cotangents, ("dL_dy", "dL_dz", "dL_dz_box"))
    ds = _cat(d, cotangents, ("dL_ds_e", "dL_ds_i", "dL_ds_box"))
    dx = np.broadcast_to(cotangents.get("dL_dx", 0.0), (n,))
    dv = np.concatenate([dx, dlam[c.E], dlam[c.I], ds[c.E], c.viol * ds[c.I]])
    sol = np.linalg.lstsq(c.J.T, -dv, rcond=rcond)[0]
    b1, b4 = sol[:n], sol[-n:]
    b2 = np.zeros(len(c.M))
    b2[c.E], b2[c.I] = sol[n : n + e], sol[n + e : n + e + i]

    low, upp = np.zeros(len(c.M)), np.zeros(len(c.M))
    low[c.E] = upp[c.E] = -0.5 * b2[c.E]
    low[c.I] = np.where(c.side[c.I] < 0, -b2[c.I], 0.0)
    upp[c.I] = np.where(c.side[c.I] > 0, -b2[c.I], 0.0)
    ne, ni = len(d.b), len(d.l)
    dM = np.outer(c.lam, b1) + np.outer(b2, point.x) + np.outer(c.s, b4)
    return {
        "dL_dH": 0.5 * (np.outer(b1, point.x) + np.outer(point.x, b1)),
        "dL_dg": b1,
        "dL_dA": dM[:ne],
        "dL_db": -b2[:ne],
        "dL_dC": dM[ne : ne + ni],
        "dL_dl": low[ne : ne + ni],
        "dL_du": upp[ne : ne + ni],
        "dL_dlb": low[ne + ni :],
        "dL_dub": upp[ne + ni :],
    }


def jvp_oracle(
    data: Data,
    point: PointLike,
    tangents: Mapping[str, Array],
    tol: float = 1e-7,
    rcond: float = 1e-10,
) -> dict[str, Array]:
    """Directional derivative -J^+ dG/dtheta dtheta, J and G as in `adjoint_oracle`.

    Parameters
    ----------
    tangents
        Any of ``dH, dg, dA, db, dC, dl, du, dlb, dub``. Of dH the symmetric part is used; where
        two sides coincide they move by the mean of their tangents; an infinite side stays.

    Returns
    -------
    dict
        ``dx, dy, dz, dz_box, ds_e, ds_i, ds_box``.
    """
    d = data.full()
    c = _jacobian(d, point, tol)
    n, e, i = d.n, len(c.E), len(c.I)

    def get(name: str, like: Array) -> Array:
        return np.broadcast_to(np.asarray(tangents.get(name, 0.0), float), like.shape)

    dH = get("dH", d.H)
    dM = np.vstack([get("dA", d.A), get("dC", d.C), np.zeros((n, n))])
    dlow = np.concatenate([get("db", d.b), get("dl", d.l), get("dlb", d.lb)])
    dupp = np.concatenate([get("db", d.b), get("du", d.u), get("dub", d.ub)])
    dbound = np.where(c.side > 0, dupp, dlow)
    dbound[c.E] = 0.5 * (dlow + dupp)[c.E]
    dG1 = 0.5 * (dH + dH.T) @ point.x + get("dg", d.g) + dM.T @ c.lam
    dG2 = dM @ point.x - dbound
    dG = np.concatenate([dG1, dG2[c.E], dG2[c.I], np.zeros(i), dM.T @ c.s])
    w = -np.linalg.lstsq(c.J, dG, rcond=rcond)[0]
    lam, s = np.zeros(len(c.M)), np.zeros(len(c.M))
    lam[c.E], lam[c.I] = w[n : n + e], w[n + e : n + e + i]
    s[c.E], s[c.I] = w[n + e + i : n + 2 * e + i], c.viol * w[n + 2 * e + i :]
    ne, ni = len(d.b), len(d.l)
    return {
        "dx": w[:n],
        "dy": lam[:ne],
        "dz": lam[ne : ne + ni],
        "dz_box": lam[ne + ni :],
        "ds_e": s[:ne],
        "ds_i": s[ne : ne + ni],
        "ds_box": s[ne + ni :],
    }


def random_cotangents(
    rng: np.random.Generator, sol: Any, parts: Iterable[str] = ("x", "y", "z", "z_box")
) -> dict[str, Array]:
    """Cotangents of parts of a solution, or of a batch of them."""
    return {f"dL_d{name}": rng.standard_normal(getattr(sol, name).shape) for name in parts}


def random_tangents(
    rng: np.random.Generator, data: Data, names: Iterable[str] | None = None
) -> dict[str, Array]:
    """Tangents of data, by default of all that are present."""
    full = data.full()
    present = [f.name for f in fields(Data) if getattr(data, f.name) is not None]
    return {f"d{k}": rng.standard_normal(getattr(full, k).shape) for k in names or present}


def _dense(value: Any) -> Array:
    return value.toarray() if sp.issparse(value) else np.asarray(value)


def assert_matches(ours: Any, expected: Mapping[str, Array], atol: float) -> None:
    """Hold the fields of ours, where they are given, against an oracle's.

    atol: relative to 1 plus the largest entry. A sparse field counts on its own pattern.
    """
    for name, value in expected.items():
        found = getattr(ours, name)
        if found is None:
            continue
        if sp.issparse(found):
            stored = found.tocoo()
            kept = np.zeros(found.shape)
            kept[stored.row, stored.col] = value[stored.row, stored.col]
            value = kept
        scale = 1.0 + np.abs(value).max(initial=0.0)
        np.testing.assert_allclose(_dense(found), value, rtol=0.0, atol=atol * scale, err_msg=name)


def assert_adjoint(
    grads: Any,
    forward: Any,
    cotangents: Mapping[str, Array],
    tangents: Mapping[str, Array],
    atol: float,
) -> None:
    """<dL/dv, dv> = <dL/dtheta, dtheta>; atol relative to 1 plus the terms."""
    one = sum(float(np.sum(v * getattr(forward, k[3:]))) for k, v in cotangents.items())
    terms = [float(np.sum(_dense(getattr(grads, f"dL_{k}")) * v)) for k, v in tangents.items()]
    size = 1.0 + abs(one) + sum(abs(t) for t in terms)
    assert one == pytest.approx(sum(terms), abs=atol * size)
