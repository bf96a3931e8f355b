"""The Sudoku example: its boards, a short training by each layer, the files that it leaves."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

import nbqp
from examples import command_line, sudoku_comparison
from examples.sudoku import RECIPES, SudokuSolver, main
from examples.sudoku_boards import (
    BoardsError,
    all_solutions,
    breaks_rules,
    load_boards,
    make_boards,
    to_digits,
)
from tests.core.test_peer_defects import true_rules

KEYS = ("train_loss", "test_loss", "test_wrong", "test_differs", "newton_steps", "seconds")


def test_there_are_288_solutions_and_each_keeps_the_rules() -> None:
    digits = all_solutions().argmax(axis=3)
    assert len(np.unique(digits.reshape(len(digits), -1), axis=0)) == 288
    for board in digits:
        blocks = board.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
        for units in (board, board.T, blocks):
            assert all(set(unit) == {0, 1, 2, 3} for unit in units)


def test_puzzles_are_distinct_have_one_solution_and_that_one() -> None:
    puzzles, solutions = make_boards(3000, seed=1)
    flat = puzzles.reshape(3000, -1)
    assert len(np.unique(flat, axis=0)) == 3000
    fits = flat @ all_solutions().reshape(288, -1).T == flat.sum(axis=1, keepdims=True)
    assert (fits.sum(axis=1) == 1).all()
    assert (flat * solutions.reshape(3000, -1) == flat).all()
    assert set(flat.sum(axis=1)) == {4.0, 5.0, 6.0, 7.0, 8.0}


def test_rules_are_broken_by_rows_columns_and_blocks_alone() -> None:
    good = to_digits(all_solutions()[:1])
    # Columns that keep their digits, rows that do too, blocks that do not.
    latin = np.array([[[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]]])
    rows = np.array([[[0, 1, 2, 3]] * 4])
    boards = np.concatenate([good, latin, rows, rows.transpose(0, 2, 1)])
    assert np.asarray(breaks_rules(boards)).tolist() == [False, True, True, True]


@pytest.mark.parametrize("layer", RECIPES)
def test_a_short_training_learns_and_leaves_its_files(layer: str, tmp_path: pathlib.Path) -> None:
    arguments = ["--layer", layer, "--boards", "2000", "--epochs", "4", "--batch-size", "50"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert all(len(history[key]) == 4 for key in KEYS)
    # A alone learns slowly at first.
    assert (
        history["test_loss"][-1] < (0.95 if layer == "learn-a" else 0.7) * history["test_loss"][0]
    )
    assert history["unsolved"] == history["test_unsolved"] == [0, 0, 0, 0]
    # A closest feasible program takes more: infeasibility is found out first.
    assert max(history["newton_steps"]) < (50 if layer == "learn-a" else 13)
    assert min(history["test_differs"]) <= max(history["test_differs"]) <= 1000
    predictions = np.load(tmp_path / "predictions.npy")
    assert predictions.shape == (1000, 4, 4, 4)
    _, solutions = make_boards(2000, seed=0).split()[1]
    differs = (predictions.argmax(axis=3) != solutions.argmax(axis=3)).any(axis=(1, 2))
    assert differs.sum() == history["test_differs"][-1]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_boards_start_at_their_solutions_of_the_epoch_before(tmp_path: pathlib.Path) -> None:
    """A that hardly moves leaves little to do."""
    arguments = [
        "--boards",
        "400",
        "--epochs",
        "3",
        "--batch-size",
        "50",
        "--learning-rate",
        "1e-6",
    ]
    assert main([*arguments, "--warm-start", "--out", str(tmp_path)]) == 0
    history = json.loads((tmp_path / "history.json").read_text())
    first, *later = history["newton_steps"]
    assert first > 6.0
    assert max(later) <= 1.5
    assert history["unsolved"] == history["test_unsolved"] == [0, 0, 0]
    assert np.load(tmp_path / "predictions.npy").shape == (40, 4, 4, 4)


@pytest.mark.parametrize("layer", RECIPES)
def test_the_violation_is_that_of_the_learned_rows(layer: str) -> None:
    """The shift of b = 1 where rows contradict each other; nothing where b follows A."""
    model = SudokuSolver(RECIPES[layer], seed=0)
    puzzles = make_boards(20, seed=5).puzzles
    model(puzzles)
    A = model.qp.learned["A"].numpy()
    A[1] = 2.0 * A[0]
    model.qp.learned["A"].assign(A)
    model.violation.reset_state()
    model(puzzles)
    out = model.qp(-puzzles.reshape(-1, 64))
    residuals = np.asarray(model.residuals(out.x))
    np.testing.assert_allclose(residuals, out.s_e, rtol=0.0, atol=1e-5)
    worst = np.abs(residuals).max(axis=1)
    assert float(model.violation.result()) == pytest.approx(worst.mean(), rel=1e-5)
    if layer == "learn-a":  # t = 1 and 2 t = 1 meet at t = 0.6, or closer where bounds yield too
        assert ((worst > 0.35) & (worst < 0.4)).all()
    else:
        assert worst.max() < 1e-5


def test_boards_from_a_file_are_those_of_the_file(tmp_path: pathlib.Path) -> None:
    puzzles, solutions = make_boards(40, seed=2)
    np.savez(tmp_path / "boards.npz", puzzles=puzzles, solutions=solutions)
    loaded = load_boards(tmp_path / "boards.npz")
    np.testing.assert_array_equal(loaded.puzzles, puzzles)
    arguments = ["--data", str(tmp_path / "boards.npz"), "--epochs", "1", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert np.load(tmp_path / "predictions.npy").shape == (4, 4, 4, 4)


def spoilt(**changes: Any) -> dict[str, Any]:
    puzzles, solutions = make_boards(20, seed=3)
    return {"puzzles": puzzles, "solutions": solutions, **changes}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"puzzles": np.zeros((20, 4, 4, 4))}, "expected the arrays puzzles and solutions"),
        (spoilt(puzzles=np.zeros((20, 64))), r"puzzles: expected the shape \(N, 4, 4, 4\)"),
        (spoilt(solutions=np.zeros((20, 4, 4, 4))), "solutions: expected 0 and 1 only"),
        (spoilt(puzzles=np.full((20, 4, 4, 4), 0.5)), "puzzles: expected 0 and 1 only"),
        (spoilt(solutions=np.eye(4)[np.zeros((20, 4, 4), int)]), "solutions: expected each digit"),
        (spoilt(puzzles=make_boards(20, seed=9).puzzles), "solutions: expected the puzzle's"),
        (spoilt(puzzles=make_boards(12, seed=3).puzzles), "expected as many solutions as puzzles"),
    ],
)
def test_bad_boards_are_named(arrays: dict[str, Any], message: str, tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "boards.npz", **arrays)
    with pytest.raises(BoardsError, match=message):
        load_boards(tmp_path / "boards.npz")


def test_a_bad_command_line_ends_with_a_message(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--data", str(tmp_path / "none.npz")], ["--boards", "3"], ["--epochs", "0"]):
        for command in (main, sudoku_comparison.main):
            with pytest.raises(SystemExit):
                command([*arguments, "--out", str(tmp_path)])
            assert "expected" in capsys.readouterr().err


def test_a_slow_start_is_explained_and_a_fast_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds in (0.0, 0.3):
        lines: list[str] = []
        monkeypatch.setattr(command_line, "PATIENCE", 0.1)
        monkeypatch.setattr(nbqp, "warmup", lambda seconds=seconds: time.sleep(seconds))
        command_line.warm_up(lines.append)
        assert len(lines) == (seconds > 0.1)
        assert all("compiling it, once" in line for line in lines)


def test_the_examples_quieten_tensorflow_unless_told_otherwise() -> None:
    script = "import os, examples; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    for given, expected in (({}, "3"), ({"TF_CPP_MIN_LOG_LEVEL": "0"}, "0")):
        shown = subprocess.run(
            [sys.executable, "-c", script],
            env=environment | given,
            cwd=pathlib.Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout.strip() == expected


@pytest.mark.parametrize("curvature", [0.0, 0.1])
def test_the_true_rules_solve_a_thousand_boards(curvature: float) -> None:
    """What a layer can learn at most: all boards right, every sample SOLVED."""
    puzzles, solutions = make_boards(1000, seed=4)
    H = curvature * np.eye(64) if curvature else None
    sol = nbqp.solve_batch(H, -puzzles.reshape(-1, 64), true_rules(), np.ones(64), lb=0.0)
    assert {status.name for status in sol.status} == {"SOLVED"}
    answers = sol.x.reshape(-1, 4, 4, 4).argmax(axis=3)
    assert (answers == solutions.argmax(axis=3)).all()


def test_the_comparison_trains_all_layers_and_draws_them(tmp_path: pathlib.Path) -> None:
    puzzles, solutions = make_boards(60, seed=6)
    np.savez(tmp_path / "boards.npz", puzzles=puzzles, solutions=solutions)
    arguments = ["--epochs", "1", "--data", str(tmp_path / "boards.npz"), "--seed", "3"]
    assert sudoku_comparison.main([*arguments, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    for layer in RECIPES:
        history = json.loads((tmp_path / layer / "history.json").read_text())
        assert len(history["violation"]) == 1
        assert np.load(tmp_path / layer / "predictions.npy").shape == (6, 4, 4, 4)
