"""Train the four layers of the Sudoku example and draw them side by side.

python -m examples.sudoku_comparison --epochs 20 --out sudoku-comparison
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from examples import sudoku
from examples.sudoku_report import draw_comparison


def main(argv: Sequence[str] | None = None) -> int:
    """Train each layer into a folder of its own below --out, and write comparison.png."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.sudoku_comparison",
        description="Train all layers of the Sudoku example and compare them in one figure.",
    )
    parser.add_argument("--epochs", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--boards", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("sudoku-comparison"))
    args = parser.parse_args(argv)
    histories = {}
    for layer, recipe in sudoku.RECIPES.items():
        out = args.out / layer
        sizes = ["--epochs", str(args.epochs), "--boards", str(args.boards)]
        code = sudoku.main(["--layer", layer, "--out", str(out), *sizes])
        if code != 0:
            return code
        histories[recipe.label] = json.loads((out / "history.json").read_text())
    draw_comparison(args.out / "comparison.png", histories)
    return 0


if __name__ == "__main__":
    sys.exit(main())
