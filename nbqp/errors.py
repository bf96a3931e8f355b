"""What can be wrong with a problem, a setting or a call."""

from __future__ import annotations


class QPError(ValueError):
    """Base of all errors; its first line names the argument, what was expected and what came."""


class ShapeError(QPError):
    """An argument has the wrong shape, or a type that is no array of numbers."""


class DataError(QPError):
    """An argument holds values that no QP may have: NaN, infinite entries, crossed bounds."""


class SymmetryError(QPError):
    """H is not symmetric to within the rounding of its dtype."""


class NonconvexError(QPError):
    """H has a negative eigenvalue."""


class PatternError(QPError):
    """New data do not fit the pattern that a `Solver` was made for."""


class SettingsError(QPError):
    """A setting is out of its range."""


class TooLargeError(QPError, MemoryError):
    """A problem, or a result, would take more memory than there is."""


class UnsolvedError(QPError):
    """A sample has no solution, or one without the derivative asked for."""
