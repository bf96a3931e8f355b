"""Settings of a solve."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

from nbqp.errors import SettingsError
from nbqp.kernels.feasible import AUTO, SEMISMOOTH, SMOOTHED

METHODS = {"auto": AUTO, "semismooth": SEMISMOOTH, "smoothed": SMOOTHED}
KINDS: dict[type, Any] = {bool: (bool, np.bool_), int: Integral, float: Real, str: str}
"""What passes for one of Python's types; True and False pass for no number."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How accurately and by which method to solve; ProxQP's names where ProxQP has them.

    Parameters
    ----------
    eps_abs, eps_rel
        A solution has the primal residual, the dual residual and the duality gap, all unscaled and
        in the maximum norm, below eps_abs + eps_rel * (size of the residual's terms).
    max_iter
        Newton steps at most, and outer (proximal) steps.
    method
        "auto": the smoothed phase, finished by a Newton step for the sides that hold where they stand out,
        otherwise by the semismooth phase. A warm start goes to the semismooth phase at once; if a few steps do
        not finish it, the smoothed phase starts next to it, and at last afresh. "semismooth": PROX-QP alone.
        "smoothed": as "auto", but where the smoothed phase fails from its own start no semismooth one from
        zero follows. Batches of small QPs are solved in lanes where max_iter is at least 300.
    primal_infeasibility_solving
        Whether to solve the closest feasible QP, whose sides are moved by the smallest shifts, where
        there is no feasible point (status SOLVED_CLOSEST_PRIMAL_FEASIBLE).
    check_duality_gap
        Whether the gap counts.
    time_limit
        Seconds after which a call of `solve_qp`, `solve_batch` or `Solver.solve` ends, its analysis and the check
        of H included, with the status TIME_LIMIT_REACHED (samples of a batch that have not begun: NOT_RUN) and
        the best iterate. Compiling or loading the kernels does not count.
    verbose
        Whether to print a line about every solve.
    eps_primal_inf, eps_dual_inf
        Relative residuals below which a certificate of infeasibility is believed.

    Raises
    ------
    SettingsError
        A setting is out of its range.
    """

    eps_abs: float = 1e-8
    eps_rel: float = 0.0
    max_iter: int = 1000
    method: str = "auto"
    primal_infeasibility_solving: bool = False
    check_duality_gap: bool = True
    eps_primal_inf: float = 1e-10
    eps_dual_inf: float = 1e-10
    time_limit: float = math.inf
    verbose: bool = False

    def __post_init__(self) -> None:
        for name in ("eps_abs", "eps_primal_inf", "eps_dual_inf"):
            self._require(name, "a positive number", float, lambda v: 0.0 < v < math.inf)
        self._require("eps_rel", "a number of at least 0", float, lambda v: 0.0 <= v < math.inf)
        self._require("max_iter", "an integer from 1 to 2^62", int, lambda v: 1 <= v <= 2**62)
        self._require("time_limit", "a positive number", float, lambda v: v > 0.0)
        self._require("method", f"one of {', '.join(METHODS)}", str, lambda v: v in METHODS)
        for name in ("primal_infeasibility_solving", "check_duality_gap", "verbose"):
            self._require(name, "True or False", bool, lambda v: True)

    def _require(self, name: str, expected: str, kind: type, good: Callable[[Any], bool]) -> None:
        """Check a setting, and make it Python's own: kernels and JSON do not take NumPy's numbers."""
        value = getattr(self, name)
        truth = isinstance(value, KINDS[bool])
        if not isinstance(value, KINDS[kind]) or truth != (kind is bool) or not good(value):
            raise SettingsError(f"Settings.{name}: expected {expected}, got {value!r}.")
        object.__setattr__(self, name, kind(value))


DEFAULTS = Settings()


def to_settings(settings: Settings | None) -> Settings:
    """The settings given, or the defaults for None."""
    if settings is None:
        return DEFAULTS
    if not isinstance(settings, Settings):
        raise SettingsError(f"settings: expected Settings, got {type(settings).__name__}.")
    return settings
