"""Small problems drawn by hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.core.oracles import Array
from tests.core.strategies import (
    CONTRADICTIONS,
    KINDS,
    Kind,
    Problem,
    quasi_definite,
    random_infeasible_qp,
    random_qp,
)

seeds = st.integers(0, 2**32 - 1)


@st.composite
def qps(
    draw: st.DrawFn, max_n: int = 12, kinds: tuple[Kind, ...] = KINDS, **options: Any
) -> Problem:
    """Small problems of `random_qp`; ``options`` fix what is not to be drawn."""
    n = draw(st.integers(1, max_n))
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


def regular_qps(max_n: int = 10, **options: Any) -> st.SearchStrategy[Problem]:
    """Problems whose solution map is differentiable, well scaled: for finite differences."""
    fixed = {"degenerate": False, "redundant": 0, "duplicates": 0, "scaling": 0.0}
    kinds: tuple[Kind, ...] = options.pop("kinds", KINDS[:3])
    return qps(max_n, kinds, **(fixed | options)).filter(lambda p: p.regular)


@st.composite
def infeasible_qps(draw: st.DrawFn, max_n: int = 10, **options: Any) -> Problem:
    """Small problems of `random_infeasible_qp`."""
    n = draw(st.integers(2, max_n))
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
    return random_infeasible_qp(np.random.default_rng(draw(seeds)), **(drawn | options))


@st.composite
def quasi_definite_matrices(draw: st.DrawFn, max_n: int = 12) -> tuple[Array, NDArray[np.int64]]:
    """Matrices of `quasi_definite` with their pivot signs."""
    n, m = draw(st.integers(1, max_n)), draw(st.integers(0, max_n))
    density = draw(st.sampled_from([0.1, 0.3, 1.0]))
    return quasi_definite(np.random.default_rng(draw(seeds)), n, m, density)
