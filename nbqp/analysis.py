"""The symbolic analysis of a pattern: made once, kept for the next QP that has it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from nbqp.kernels.kkt import kkt_pattern, locate_entries
from nbqp.kernels.structure import Entries, Factor, Pattern
from nbqp.kernels.symbolic import analyse
from nbqp.problem import QP
from nbqp.threads import hold_while_forking, run_apart

KEPT = 32
"""So many analyses are kept, the latest ones."""
ENTRIES_KEPT = 500_000
"""Entries of H, A and C that all patterns which are kept have together, at most."""


class Analysis(NamedTuple):
    """A pattern, the symbolic factor of its KKT matrix, and where the data stand in it."""

    pattern: Pattern
    factor: Factor
    entries: Entries


def _analyse(pattern: Pattern) -> Analysis:
    factor = analyse(pattern.n + pattern.n_eq + pattern.n_in, *kkt_pattern(pattern))
    return Analysis(pattern, factor, locate_entries(pattern, factor))


def _entries(pattern: Pattern) -> int:
    return len(pattern.Hi) + len(pattern.Ai) + len(pattern.Ci)


_kept: OrderedDict[tuple[object, ...], Analysis] = OrderedDict()
_lock = threading.RLock()
hold_while_forking(_lock)


def _entries_kept() -> int:
    return sum(_entries(analysis.pattern) for analysis in _kept.values())


def analyse_qp(qp: QP) -> Analysis:
    """The analysis of the problem's pattern, from the ones that are kept if it is among them."""
    pattern = qp.pattern()
    small = _entries(pattern) <= ENTRIES_KEPT
    key = (*pattern[:3], *(array.tobytes() for array in pattern[3:])) if small else ()
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    analysis = run_apart(lambda: _analyse(pattern))
    if small:
        with _lock:
            _kept[key] = analysis
            while len(_kept) > KEPT or _entries_kept() > ENTRIES_KEPT:
                _kept.popitem(last=False)
    return analysis
