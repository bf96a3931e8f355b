"""Train the four layers of the Sudoku example and draw them side by side.

python -m examples.sudoku_comparison --epochs 20 --out sudoku-comparison
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.sudoku import RECIPES, TOLERANCE, add_training_options, prepare, train
from examples.sudoku_report import draw_comparison


def main(argv: Sequence[str] | None = None) -> int:
    """Train each layer into a folder of its own below --out, and write comparison.png."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.sudoku_comparison",
        description="Train all layers of the Sudoku example and compare them in one figure.",
    )
    add_training_options(parser)
    parser.set_defaults(epochs=20)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("sudoku-comparison"),
        metavar="DIR",
        help="for the results; default: %(default)s",
    )
    args = parser.parse_args(argv)
    boards = prepare(parser, args, args.out)
    histories = {}
    for layer, recipe in RECIPES.items():
        out = args.out / layer
        out.mkdir(exist_ok=True)
        histories[recipe.label] = train(recipe, boards, args, out)
        if not histories[recipe.label]:
            return 130
    tests = len(boards.split()[1].puzzles)
    draw_comparison(args.out / "comparison.png", histories, tests, TOLERANCE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
