"""The benchmark of sparse solvers: its residuals, what it repeats, and that it ends what hangs."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from benchmarks import maros_meszaros
from benchmarks.adaptors import Adaptor, Answer, solve_program
from benchmarks.isolated import OvertimeError, Worker, WorkerError
from benchmarks.maros_report import Result, fit_factorisations, shifted_mean, time_ratios
from benchmarks.programs import Residuals, load_program, small_program
from benchmarks.solvers import SOLVERS, Entry

P = np.array([[2.0, 1.0], [1.0, 2.0]])
# min x1^2 + x1 x2 + x2^2 - 4 x1 - x2, x1 + x2 = 1, x1 - x2 <= 9, 0 <= x1, x2 <= 0.2
# Px + q = (-1, -1) at the solution, where only the equation holds on to anything.
X = np.array([2.0, -1.0])
Y = np.array([1.0, 0.0, 0.0, 0.0])
SIDES = {"l": [1.0, -1e20, 0.0, -1e20], "u": [1.0, 9.0, 1e20, 0.2]}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two files of one program, the second with P's upper triangle alone."""
    A = np.vstack([[1.0, 1.0], [1.0, -1.0], np.eye(2)])
    data = {"q": np.array([[-4.0], [-1.0]]), "A": scipy.sparse.csc_matrix(A), "r": 0.0}
    data |= {name: np.array(side)[:, None] for name, side in SIDES.items()} | {"n": 2, "m": 4}
    folder = tmp_path / "data"
    folder.mkdir()
    scipy.io.savemat(folder / "FULL.mat", {"P": scipy.sparse.csc_matrix(P), **data})
    scipy.io.savemat(folder / "UPPER.mat", {"P": scipy.sparse.csc_matrix(np.triu(P)), **data})
    return folder


class Hangs(Adaptor):
    """Solves the program that warms it up, and no other."""

    def solve(self) -> None:
        while self.program.name != "small":
            time.sleep(0.01)

    def answer(self) -> Answer:
        return Answer(True, "solved", np.zeros(self.program.n), np.zeros(len(self.program.l)))


def kill_or_raise(what: str) -> str:
    if what == "raise":
        raise ValueError("of no value")
    if what == "hang":
        time.sleep(60.0)
    return what


def run(folder: pathlib.Path, out: pathlib.Path, *arguments: str) -> dict[str, Any]:
    maros_meszaros.main(["--data", str(folder), "--out", str(out), *arguments])
    record: dict[str, Any] = json.loads((out / "results.json").read_text())
    return record


def result(solver: str, problem: str, seconds: float, **changes: Any) -> Result:
    values: dict[str, Any] = {"ended": "solved", "status": "solved", "memory": 0, "counts": {}}
    values["residuals"] = Residuals(0.0, 0.0, 1e-7, 1.0)
    values |= changes
    return Result(problem, solver, eps=1e-6, limit=10.0, seconds=seconds, key={}, **values)


@pytest.mark.parametrize("name", ["FULL", "UPPER"])
def test_files_are_read_and_points_judged(folder: pathlib.Path, name: str) -> None:
    program = load_program(folder / f"{name}.mat")
    np.testing.assert_array_equal(program.P.toarray(), P)
    assert program.l[1] == program.l[3] == -np.inf
    assert program.u[2] == np.inf
    assert program.residuals(X, Y)[:3] == (0.0, 0.0, 0.0)
    # x1 + x2 = 1.5; Px + q = (-0.5, 0); y = (1, 0, 7, 3), of which 7 holds on to no side: the dual
    # residual is |(-0.5 + 1, 0 + 1 + 3)|, the gap -1 + 1 + 0.2 * 3.
    moved = X + np.array([0.0, 0.5])
    held = Y + np.array([0.0, 0.0, 7.0, 3.0])
    assert program.residuals(moved, held)[:3] == pytest.approx((0.5, 4.0, 0.6), abs=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_brings_its_solution_to_one_form(name: str) -> None:
    entry, program = SOLVERS[name], small_program()
    # Longer than kernels take to compile, which counts for nbqp.
    answer = solve_program(entry.adaptor, program, entry.settings(1e-8, 600.0))
    assert answer.solved, answer.status
    assert max(program.residuals(answer.x, answer.y)[:3]) < 1e-6
    assert answer.memory > 1e6


def test_a_run_is_judged_from_the_data_and_goes_on_where_it_stopped(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, solvers = tmp_path / "out", ("--solvers", "nbqp-auto", "piqp")
    record = run(folder, out, "--problems", "F*", *solvers, "--eps", "1e-3", "--eps", "1e-6")
    assert [(found["solver"], found["eps"]) for found in record["results"]] == [
        ("nbqp-auto", 1e-3),
        ("piqp", 1e-3),
        ("nbqp-auto", 1e-6),
        ("piqp", 1e-6),
    ]
    for found in record["results"]:
        assert (found["problem"], found["ended"]) == ("FULL", "solved")
        assert max(found["residuals"][name] for name in ("primal", "dual", "gap")) < found["eps"]
        assert 0.0 < found["seconds"] < 20.0
    counts = record["results"][0]["counts"]
    assert counts["factorizations"] >= counts["iterations"] > 0
    assert counts["nnz_factor"] > 0
    assert {summary["solved"]["0.001"] for summary in record["summaries"]} == {1}
    assert (out / "profile-1e-06.png").stat().st_size > 0
    assert "| nbqp-auto " in (out / "results.md").read_text()

    lines = (out / "finished.jsonl").read_text().splitlines()
    assert len(lines) == 4
    # The last line is cut off; the second is marked, to show that it is taken as it is.
    marked = lines[1].replace('"status": "', '"status": "marked ')
    (out / "finished.jsonl").write_text("\n".join([lines[0], marked, lines[2], lines[3][:40]]))
    record = run(folder, out, *solvers, "--eps", "1e-3", "--eps", "1e-6")
    assert "3 of 8" in capsys.readouterr().err
    assert record["results"][1]["status"].startswith("marked ")
    assert len(record["results"]) == 8
    assert len((out / "finished.jsonl").read_text().splitlines()) == 9
    # With another limit nothing is taken.
    finished = maros_meszaros.Finished(out / "finished.jsonl")
    for limit, known in ((maros_meszaros.LIMIT, True), (7.0, False)):
        paths, memory = [folder / "FULL.mat"], maros_meszaros.MEMORY
        (task,) = maros_meszaros.list_tasks(paths, ["piqp"], [1e-3], limit, memory)
        assert (finished.get(task) is not None) == known


def test_a_solver_that_hangs_is_killed_and_the_others_go_on(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Entry(Hangs, lambda eps, limit: {}, ("numpy",), "Hangs.")
    monkeypatch.setitem(SOLVERS, "hangs", stub)
    monkeypatch.setattr(maros_meszaros, "GRACE", 0.1)
    record = run(folder, tmp_path / "out", "--solvers", "hangs", "piqp", "--limit", "3")
    ended = [(found["solver"], found["ended"], found["seconds"]) for found in record["results"]]
    assert ended[0] == ended[2] == ("hangs", "killed", 3.0)
    assert [end[:2] for end in ended[1::2]] == [("piqp", "solved")] * 2
    summary = {summary["solver"]: summary for summary in record["summaries"]}
    assert summary["hangs"]["overtime"] == 2
    assert summary["hangs"]["shifted_mean"] == pytest.approx(3.0)


def test_a_worker_outlives_exceptions_and_is_replaced_after_a_kill() -> None:
    worker = Worker(kill_or_raise, ("warm",))
    try:
        assert worker.call("first", limit=60.0) == "first"
        with pytest.raises(WorkerError, match="ValueError: of no value"):
            worker.call("raise", limit=60.0)
        with pytest.raises(OvertimeError):
            worker.call("hang", limit=0.1)
        assert worker.call("again", limit=60.0) == "again"
    finally:
        worker.close()


def test_means_ratios_and_fits() -> None:
    assert shifted_mean([0.0, 0.03]) == pytest.approx(0.01)
    results = [
        result("one", "A", 1.0),
        result("two", "A", 3.0),
        result("one", "B", 11.0),
        result("two", "B", 2.0, residuals=Residuals(0.0, 1e-4, 0.0, 1.0)),
    ]
    assert time_ratios(results, 1e-6) == {"one": [1.0, np.inf], "two": [3.0, np.inf]}
    assert [found.wrong for found in results] == [False, False, False, True]
    rounded = result("one", "A", 1.0, residuals=Residuals(0.0, 0.0, 1e-3, 1e12))
    assert rounded.wrong
    assert rounded.rounding
    assert not results[3].rounding
    assert result("one", "A", 1.0, ended="unsolved", status="Unbounded").infeasible
    counts = [
        {"factorizations": 5, "nnz_factor": size, "run_time": 5 * 1e-7 * size**1.5}
        for size in (10, 100, 1000)
    ]
    (fit,) = fit_factorisations(result("one", "A", 1.0, counts=part) for part in counts)
    assert fit.exponent == pytest.approx(1.5)
    assert fit.constant == pytest.approx(1e-7)


def test_a_folder_that_is_missing_is_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path / "nowhere", tmp_path / "out")
    assert "nowhere: expected a folder of .mat files" in capsys.readouterr().err
