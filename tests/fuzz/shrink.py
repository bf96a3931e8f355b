"""The smallest problem, with the plainest numbers, that still fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import numpy as np

from tests.core.oracles import Data
from tests.fuzz.cases import Case, Truth

ROUNDS = 20
DIGITS = (1, 2, 4, 8)


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """Apply simplifications while the case fails, until none is left that it does not mend.

    What was planted is lost with the first of them, so that `fails` gets cases of which nothing is known.
    """
    case = replace(case, truth=Truth.OPEN, point=None)
    for _ in range(ROUNDS):
        before = case
        for smaller in _simpler(case):
            if _same_shape(smaller.data, case.data) and _fails(smaller, fails):
                case = smaller
        for smaller in _smaller(case):
            if _fails(smaller, fails):
                case = smaller
                break
        if case is before:
            break
    return case


def _fails(case: Case, fails: Callable[[Case], bool]) -> bool:
    try:
        return fails(case)
    except ValueError:
        # No QP any more, such as one whose sides cross.
        return False


def _same_shape(one: Data, other: Data) -> bool:
    return one.n == other.n and one.A.shape == other.A.shape and one.C.shape == other.C.shape


def _smaller(case: Case) -> Iterator[Case]:
    """Without one row or one variable."""
    d = case.data
    for i in range(len(d.b)):
        yield replace(case, data=replace(d, A=np.delete(d.A, i, 0), b=np.delete(d.b, i)))
    for i in range(len(d.l)):
        rows = {name: np.delete(getattr(d, name), i, 0) for name in ("C", "l", "u")}
        yield replace(case, data=replace(d, **rows))
    for j in range(d.n if d.n > 1 else 0):
        columns = {name: np.delete(getattr(d, name), j, 1) for name in ("A", "C")}
        columns |= {name: np.delete(getattr(d, name), j) for name in ("g", "lb", "ub")}
        H = np.delete(np.delete(d.H, j, 0), j, 1)
        yield replace(case, data=replace(d, H=H, **columns))


def _simpler(case: Case) -> Iterator[Case]:
    """With all numbers of a datum rounded, or one of them 0, or one side absent."""
    for item in fields(Data):
        value = getattr(case.data, item.name)
        for digits in DIGITS:
            rounded = np.array([float(f"{v:.{digits - 1}e}") for v in value.ravel()])
            if not np.array_equal(rounded, value.ravel()):
                yield replace(
                    case, data=replace(case.data, **{item.name: rounded.reshape(value.shape)})
                )
    for name, absent in (
        ("l", -np.inf),
        ("u", np.inf),
        ("lb", -np.inf),
        ("ub", np.inf),
        ("g", 0.0),
    ):
        value = getattr(case.data, name)
        for k in np.flatnonzero(value != absent):
            changed = value.copy()
            changed[k] = absent
            yield replace(case, data=replace(case.data, **{name: changed}))
