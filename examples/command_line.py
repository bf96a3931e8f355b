"""What the commands of all examples share: options, and a start that explains itself."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from pathlib import Path

import nbqp

PATIENCE = 1.5
"""Seconds of a start that need no explanation."""


def training_parser(
    name: str, description: str, epochs: int, samples: tuple[str, int]
) -> argparse.ArgumentParser:
    """A parser of --epochs, --seed, --out and the number of samples: its option and its default."""
    parser = argparse.ArgumentParser(prog=f"python -m examples.{name}", description=description)
    add = parser.add_argument
    add("--epochs", type=positive_int, default=epochs, metavar="N", help="default: %(default)s")
    option, default = samples
    add(option, type=positive_int, default=default, metavar="N", help="default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--out", type=Path, default=Path(name), metavar="DIR", help="default: %(default)s")
    return parser


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
        ["loading the solver, or compiling it, once for this installation: about a minute ..."],
    )
    late.start()
    try:
        nbqp.warmup()
    finally:
        late.cancel()
