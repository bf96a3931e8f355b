"""Settings of a solve."""

from __future__ import annotations

import dataclasses
import math

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
            value = getattr(self, name)
            if not (0.0 < value < math.inf):
                raise SettingsError(f"Settings.{name}: expected a positive number, got {value!r}.")
        if not (0.0 <= self.eps_rel < math.inf):
            raise SettingsError(
                f"Settings.eps_rel: expected a number of at least 0, got {self.eps_rel!r}."
            )
        if self.max_iter < 1:
            raise SettingsError(
                f"Settings.max_iter: expected an integer of at least 1, got {self.max_iter!r}."
            )
        if not self.time_limit > 0.0:
            raise SettingsError(
                f"Settings.time_limit: expected a positive number, got {self.time_limit!r}."
            )
        if self.method not in METHODS:
            raise SettingsError(
                f"Settings.method: expected one of {', '.join(METHODS)}, got {self.method!r}."
            )
