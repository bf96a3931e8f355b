"""The symbolic analysis of a pattern: made once, kept for the next QP that has it."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from nbqp.kept import Kept
from nbqp.kernels.kkt import kkt_pattern, locate_entries
from nbqp.kernels.structure import Entries, Factor, Pattern
from nbqp.kernels.symbolic import order_columns, plan_factor
from nbqp.memory import NUMBER, UNQUESTIONED, VECTORS, available_memory, require_memory, too_large
from nbqp.problem import QP
from nbqp.threads import run_apart
from nbqp.watch import OutOfTime, Watch

KEPT = 32
"""So many analyses are kept, the latest ones."""
ENTRIES_KEPT = 1_000_000
"""Entries of H, A and C that all patterns which are kept have together, at most: a dense QP of 500 variables has
half as many, and its analysis takes a quarter of the time of its solve."""
ANALYSIS_ENTRY, ANALYSIS_ROW = 48, 200
"""Bytes that an analysis takes for every entry of H, A and C, and for every row of the KKT matrix."""
FACTORISATION = 10
"""A factorisation without a solve, null vectors included, is watched as so many steps, rather too many."""


class _Parts(NamedTuple):
    pattern: Pattern
    factor: Factor
    entries: Entries


class Analysis(_Parts):
    """A pattern, the symbolic factor of its KKT matrix, and where the data stand in it, as kernels take them.

    What else follows from these is computed once.
    """

    @functools.cached_property
    def values(self) -> int:
        """How many values the factor has."""
        return int(self.factor.val_ptr[-1])

    @functools.cached_property
    def step_time(self) -> float:
        """Seconds of a factorisation and its solves, rather too many."""
        return 2e-6 + 1e-9 * math.pow(self.values, 1.3)

    @functools.cached_property
    def solve_time(self) -> float:
        """Seconds of a solve, about: ten steps in a lane."""
        return 1.5e-6 + 2.2e-8 * self.values

    @functools.cached_property
    def solve_size(self) -> int:
        """Bytes that a solve takes beside its data and its results."""
        return NUMBER * (self.values + VECTORS * len(self.factor.perm) + 2 * _entries(self.pattern))


def _analyse(pattern: Pattern, watch: Watch) -> Analysis:
    """The analysis, unless its factor is too large, or the watch stops it."""
    N = pattern.n + pattern.n_eq + pattern.n_in
    require_memory("analysis", ANALYSIS_ENTRY * _entries(pattern) + ANALYSIS_ROW * N)
    Kp, Ki = kkt_pattern(pattern)
    perm = np.empty(N, dtype=np.int64)
    # A full triangle, which most problems could have, is no question of memory.
    most, left = N * (N + 1) // 2, math.inf
    if NUMBER * most > UNQUESTIONED:
        left = max(available_memory(), UNQUESTIONED)
        most = int(min(most, left / NUMBER))
    values, complete = order_columns(N, Kp, Ki, most, watch.abort, perm)
    if watch.stopped():
        raise OutOfTime
    if not complete:
        raise too_large(f"factor of {N} rows, as far as it was ordered", NUMBER * values, left)
    require_memory(f"factor of {N} rows", NUMBER * (values + VECTORS * N))
    factor = plan_factor(N, Kp, Ki, perm)
    return Analysis(pattern, factor, locate_entries(pattern, factor))


def _entries(pattern: Pattern) -> int:
    return len(pattern.Hi) + len(pattern.Ai) + len(pattern.Ci)


analyses = Kept[Analysis](KEPT, ENTRIES_KEPT)


def analyse_qp(qp: QP, watch: Watch, alike: QP | None = None) -> Analysis:
    """The analysis of the problem's pattern, its own or from the ones that are kept if it is among them.

    alike: a problem of the same pattern, whose analysis it then is, which takes less time than to look it up.

    Raises
    ------
    TooLargeError
        It would take more memory than there is, or a solve would.
    OutOfTime
        The watch's time limit has struck.
    """
    if alike is not None:
        return qp.found.find("analysis", lambda: analyse_qp(alike, watch))
    return qp.found.find("analysis", lambda: _kept_analysis(qp.pattern(), watch))


def _kept_analysis(pattern: Pattern, watch: Watch) -> Analysis:
    return analyses.find(
        _entries(pattern),
        lambda: (*pattern[:3], *(array.tobytes() for array in pattern[3:])),
        lambda: run_apart(lambda: _analyse(pattern, watch), watch),
    )
