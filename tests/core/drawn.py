"""Small problems drawn by hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.core.infeasible import CONTRADICTIONS, random_infeasible_qp
from tests.core.oracles import Array
from tests.core.strategies import KINDS, Kind, Problem, quasi_definite, random_qp

seeds = st.integers(0, 2**32 - 1)


@st.composite
def qps(draw: st.DrawFn, kinds: tuple[Kind, ...] = KINDS, **options: Any) -> Problem:
    """Problems of `random_qp` up to n = 12; ``options`` fix what is not to be drawn."""
    n = draw(st.integers(1, 12))
    drawn: dict[str, Any] = {
        "kind": draw(st.sampled_from(kinds)),
        "n": n,
        "n_eq": draw(st.integers(0, n // 2)),
        "n_in": draw(st.integers(0, 2 * n)),
        "density": draw(st.sampled_from([1.0, 0.5, 0.2])),
        "bounds": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "degenerate": draw(st.booleans()),
        "redundant": draw(st.integers(0, 2)),
        "duplicates": draw(st.integers(0, 2)),
        "equal_rows": draw(st.integers(0, 2)),
        "fixed": draw(st.integers(0, 2)),
        "scaling": draw(st.sampled_from([0.0, 1.0, 2.0])),
        "sparse": draw(st.booleans()),
    }
    return random_qp(np.random.default_rng(draw(seeds)), **(drawn | options))


def regular_qps() -> st.SearchStrategy[Problem]:
    """Well scaled problems whose solution map is differentiable, with any sides active or none.

    Those of `strategies.differentiable_qps` have both sides of rows and of bounds active.
    """
    fixed = {"degenerate": False, "redundant": 0, "duplicates": 0, "scaling": 0.0}
    return qps(KINDS[:3], **fixed).filter(lambda p: p.regular)


@st.composite
def infeasible_qps(draw: st.DrawFn) -> Problem:
    """Problems of `random_infeasible_qp` up to n = 10."""
    n = draw(st.integers(2, 10))
    drawn: dict[str, Any] = {
        "contradiction": draw(st.sampled_from(CONTRADICTIONS)),
        "kind": draw(st.sampled_from(KINDS[:3])),
        "n": n,
        "n_eq": draw(st.integers(0, n // 2)),
        "n_in": draw(st.integers(0, n)),
        "density": draw(st.sampled_from([1.0, 0.5])),
        "bounds": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "scaling": draw(st.sampled_from([0.0, 1.0])),
        "sparse": draw(st.booleans()),
    }
    return random_infeasible_qp(np.random.default_rng(draw(seeds)), **drawn)


@st.composite
def quasi_definite_matrices(draw: st.DrawFn) -> tuple[Array, NDArray[np.int64]]:
    """Matrices of `quasi_definite` with their pivot signs."""
    n, m = draw(st.integers(1, 12)), draw(st.integers(0, 12))
    density = draw(st.sampled_from([0.1, 0.3, 1.0]))
    return quasi_definite(np.random.default_rng(draw(seeds)), n, m, density)
