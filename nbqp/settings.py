"""Settings of a solve."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from nbqp.errors import SettingsError
from nbqp.kernels.proxqp import AUTO, SEMISMOOTH, SMOOTHED

METHODS = {"auto": AUTO, "semismooth": SEMISMOOTH, "smoothed": SMOOTHED}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How accurately and by which method to solve; ProxQP's names where ProxQP has them.

    Parameters
    ----------
    eps_abs, eps_rel
        A solution has the primal residual, the dual residual and the duality gap, all unscaled and
        in the maximum norm, below eps_abs + eps_rel * (size of the residual's terms).
    max_iter
        Newton steps (factorisations of the KKT matrix) at most.
    method
        "auto": the smoothed phase, finished by the semismooth one; a warm start goes to the
        semismooth phase at once. "semismooth": PROX-QP alone. "smoothed": the smoothed phase
        first, also from a warm start that the semismooth phase did not finish.
    primal_infeasibility_solving
        Whether to solve the closest feasible QP, whose sides are moved by the smallest shifts, where
        there is no feasible point (status SOLVED_CLOSEST_PRIMAL_FEASIBLE).
    check_duality_gap
        Whether the gap counts.
    time_limit
        Seconds after which a solve, or a batch, ends with the status TIME_LIMIT_REACHED (samples
        that have not begun: NOT_RUN).
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
            self._require(name, "a positive number", lambda v: _real(v) and 0.0 < v < math.inf)
        self._require(
            "eps_rel", "a number of at least 0", lambda v: _real(v) and 0.0 <= v < math.inf
        )
        self._require(
            "max_iter",
            "an integer from 1 to 2^62",
            lambda v: isinstance(v, Integral) and not isinstance(v, bool) and 1 <= int(v) <= 2**62,
        )
        self._require("time_limit", "a positive number", lambda v: _real(v) and v > 0.0)
        methods = f"one of {', '.join(METHODS)}"
        self._require("method", methods, lambda v: isinstance(v, str) and v in METHODS)
        for name in ("primal_infeasibility_solving", "check_duality_gap", "verbose"):
            self._require(name, "True or False", lambda v: isinstance(v, bool))

    def _require(self, name: str, expected: str, good: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if not good(value):
            raise SettingsError(f"Settings.{name}: expected {expected}, got {value!r}.")


def to_settings(settings: Settings | None) -> Settings:
    """The settings given, or the defaults for None."""
    if settings is None:
        return Settings()
    if not isinstance(settings, Settings):
        raise SettingsError(f"settings: expected Settings, got {type(settings).__name__}.")
    return settings


def _real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
