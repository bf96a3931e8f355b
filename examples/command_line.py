"""What the commands of all examples share: options, and a start that explains itself."""

from __future__ import annotations

import argparse
import math
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
    add("--seed", type=seed, default=0, help="default: %(default)s")
    add("--out", type=Path, default=Path(name), metavar="DIR", help="default: %(default)s")
    return parser


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text}")
    return value


def positive_int(text: str) -> int:
    """An integer of at least 1, for argparse."""
    return _integer(text, 1)


def seed(text: str) -> int:
    """An integer of at least 0, for argparse."""
    return _integer(text, 0)


def positive_float(text: str) -> float:
    """A finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


def make_folder(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Make the folder of the results.

    Raises
    ------
    SystemExit
        That cannot be done; the parser says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: expected a folder, got {folder}: {error}")


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
