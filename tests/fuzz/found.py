"""Problems that a campaign found and the shrinking left, each named after what it broke."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.core.oracles import Data
from tests.fuzz.cases import WILD, Case

RELATIVE = {"eps_abs": 1e-8, "eps_rel": 1e-8}
INF = np.inf


def _case(name: str, settings: dict[str, Any], **data: Any) -> Case:
    arrays = {key: np.array(value, dtype=float) for key, value in data.items()}
    return Case(name, Data(**arrays).full(), settings=settings)


FOUND = (
    # Its tolerances were those of multipliers that were then corrected: SOLVED with a gap of 0.1.
    replace(
        _case(
            "a relative tolerance outlives its terms",
            RELATIVE,
            g=[-3.4791839e-07, 1.1005919e08],
            lb=[-INF, 3e-08],
            ub=[-1034688.19436659, INF],
        ),
        apart=WILD,
    ),
    # The proximal term kept x0 from its bound, by steps too short to count as progress.
    _case(
        "costs of many sizes in a box",
        RELATIVE,
        g=[1.46778820e-04, 5.97544996e03, -5.90466907e-05],
        lb=[-1.59329500e03, 1.29452651e-04, -INF],
        ub=[INF, INF, 8.36478121e03],
    ),
    # A dual residual within its tolerance, times an x of 1e5, is no small gap.
    _case(
        "a cost below the tolerance and a far bound",
        RELATIVE,
        g=[-1.67063636e05, 3.40532147e-06],
        lb=[-INF, -1.75149828e05],
        ub=[3.32737184e-06, INF],
    ),
)
