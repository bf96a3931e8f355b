"""What the user gave as arrays of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nbqp.errors import ShapeError
from nbqp.kernels.structure import Floats, kernel_array
from nbqp.memory import NUMBER, require_memory


def numbers(name: str, value: Any) -> Floats:
    """A float64 array of what the user gave, in the layout of kernels, or a `ShapeError`."""
    array = real(name, value)
    require_memory(name, NUMBER * array.size)
    return kernel_array(array)


def real(name: str, value: Any) -> npt.NDArray[Any]:
    """An array of real numbers, or a `ShapeError`; no copy where the user gave one."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # nested sequences of unequal lengths
        raise ShapeError(
            f"{name}: expected an array of numbers, got {str(error).rstrip('.')}."
        ) from None
    if array.dtype.kind not in "fiub":
        got = type(value).__name__ if array.dtype.kind == "O" else f"dtype {array.dtype}"
        raise ShapeError(f"{name}: expected real numbers, got {got}.")
    return array
