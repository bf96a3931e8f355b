"""What the examples' commands share: their options' types, and the start of the solver."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable

import nbqp

PATIENCE = 1.5
"""Seconds of a start that need no explanation."""


def positive_int(text: str) -> int:
    """An integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return value


def warm_up(show: Callable[[str], None]) -> None:
    """Compile or load the solver, and say so where it takes more than a moment."""
    late = threading.Timer(
        PATIENCE,
        show,
        ["compiling the solver, once for this installation: about half a minute ..."],
    )
    late.start()
    try:
        nbqp.warmup()
    finally:
        late.cancel()
