"""4x4 Sudoku boards: the 288 solutions, puzzles with one solution, files of both.

A board is one-hot, (row, column, digit) = (4, 4, 4), and all zero in a cell that is not given.
"""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from keras import ops

Boards = npt.NDArray[np.float32]

GIVENS = range(4, 9)
"""A puzzle with fewer than four givens has several solutions."""

FEWEST = 10
"""Boards of which a tenth, one, is a test set."""


class BoardsError(ValueError):
    """Boards that cannot be had: a bad file, or too few boards to train and to test with."""


class DataSet(NamedTuple):
    """Puzzles and their solutions, both (N, 4, 4, 4)."""

    puzzles: Boards
    solutions: Boards

    def split(self) -> tuple[DataSet, DataSet]:
        """The training set and the test set: the last 1,000 boards, or a tenth of few."""
        count = len(self.puzzles)
        train = count - (1000 if count >= 2000 else count // 10)
        return (
            DataSet(self.puzzles[:train], self.solutions[:train]),
            DataSet(self.puzzles[train:], self.solutions[train:]),
        )


def to_digits(boards: Any) -> Any:
    """The digits 0 to 3 of boards (N, 4, 4, 4), by arg-max: a tensor (N, 4, 4)."""
    return ops.argmax(boards, axis=-1)


def breaks_rules(digits: Any) -> Any:
    """Whether a row, a column or a block of digits (N, 4, 4) lacks a digit: a tensor (N,).

    Four powers of two from {1, 2, 4, 8} add up to 15 only if all four are there.
    """
    bits = ops.left_shift(1, ops.cast(digits, "int32"))
    blocks = ops.reshape(bits, (-1, 2, 2, 2, 2))
    sums = ops.sum(bits, axis=2), ops.sum(bits, axis=1), ops.sum(blocks, axis=(2, 4))
    units = ops.concatenate([ops.reshape(unit, (-1, 4)) for unit in sums], axis=1)
    return ops.any(ops.not_equal(units, 15), axis=1)


def all_solutions() -> Boards:
    """The 288 boards that keep the rules, (288, 4, 4, 4)."""
    rows = np.array(list(itertools.permutations(range(4))))
    digits = rows[np.indices((24,) * 4).reshape(4, -1).T]
    kept = digits[~ops.convert_to_numpy(breaks_rules(digits))]
    boards: Boards = np.eye(4, dtype=np.float32)[kept]
    return boards


def make_boards(count: int, seed: int) -> DataSet:
    """Draw distinct puzzles that have one solution, so none of the test is trained with.

    A puzzle p of k givens has one solution if p's = k for one s only of the 288 boards. Each k from
    4 to 8 is tried as often; one in fifty puzzles has 4 givens and one in three has 8, for the more
    givens, the likelier a solution is the only one.

    Raises
    ------
    BoardsError
        Fewer than ten boards are asked for.
    """
    if count < FEWEST:
        raise BoardsError(f"expected at least {FEWEST} boards to make, got {count}.")
    rng = np.random.default_rng(seed)
    solutions = all_solutions().reshape(-1, 64)
    puzzles = np.zeros((0, 64), dtype=np.float32)
    while len(puzzles) < count:
        whole = solutions[rng.integers(len(solutions), size=2 * count)]
        givens = rng.integers(GIVENS.start, GIVENS.stop, size=(len(whole), 1))
        # The cells with the smallest of 16 random numbers: each choice is as likely as another.
        given = rng.random((len(whole), 16)).argsort(axis=1).argsort(axis=1) < givens
        drawn = whole * np.repeat(given, 4, axis=1)
        unique = (drawn @ solutions.T == givens).sum(axis=1) == 1
        puzzles = np.concatenate([puzzles, drawn[unique]])
        # A puzzle's 64 bits are one number; the first of equal ones stays, in the order drawn.
        codes = np.packbits(puzzles > 0, axis=1).view(np.uint64).ravel()
        puzzles = puzzles[np.sort(np.unique(codes, return_index=True)[1])]
    puzzles = puzzles[:count]
    answers = solutions[(puzzles @ solutions.T).argmax(axis=1)]
    return DataSet(puzzles.reshape(-1, 4, 4, 4), answers.reshape(-1, 4, 4, 4))


def load_boards(path: Path) -> DataSet:
    """Read the arrays `puzzles` and `solutions`, (N, 4, 4, 4) and one-hot, of an .npz file.

    Raises
    ------
    BoardsError
        The file cannot be read, lacks an array, or holds something other than Sudoku boards.
    """
    try:
        with np.load(path) as file:
            arrays = {
                name: file[name].astype(np.float32) for name in DataSet._fields if name in file
            }
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise BoardsError(f"{path}: expected an .npz file of numbers: {error}") from error
    if len(arrays) < 2:
        raise BoardsError(f"{path}: expected the arrays puzzles and solutions, got {list(arrays)}.")
    boards = DataSet(**arrays)
    _check(boards, path)
    return boards


def _check(boards: DataSet, path: Path) -> None:
    puzzles, solutions = boards
    for name, array in boards._asdict().items():
        if array.ndim != 4 or array.shape[1:] != (4, 4, 4):
            raise BoardsError(
                f"{path}: {name}: expected the shape (N, 4, 4, 4), got {array.shape}."
            )
    if len(puzzles) != len(solutions) or len(puzzles) < FEWEST:
        raise BoardsError(
            f"{path}: expected as many solutions as puzzles, at least {FEWEST}, "
            f"got {len(puzzles)} puzzles and {len(solutions)} solutions."
        )
    binary = [((array == 0) | (array == 1)).all(axis=(1, 2, 3)) for array in boards]
    faults = {
        "puzzles: expected 0 and 1 only, at most one 1 in a cell": ~binary[0]
        | (puzzles.sum(axis=3) > 1).any(axis=(1, 2)),
        "solutions: expected 0 and 1 only, one 1 in each cell": ~binary[1]
        | (solutions.sum(axis=3) != 1).any(axis=(1, 2)),
        "solutions: expected each digit once in each row, column and block": ops.convert_to_numpy(
            breaks_rules(to_digits(solutions))
        ),
        "solutions: expected the puzzle's givens": (puzzles > solutions).any(axis=(1, 2, 3)),
    }
    for fault, bad in faults.items():
        if bad.any():
            raise BoardsError(f"{path}: {fault}, which board {bad.argmax()} does not have.")
