"""The benchmark of sequences, with a few steps: its judgement, its report, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbqp
from benchmarks import sequences
from benchmarks.control import Sequence, closed_loop, masses, quadcopter
from benchmarks.sequence_peers import OURS, PEERS, StepPoint

EPS = 1e-6
STEPS = 4


@pytest.fixture(scope="module")
def sequence() -> Sequence:
    return closed_loop(quadcopter(), STEPS)


def solve(sequence: Sequence, k: int) -> StepPoint:
    data = {"H": sequence.H, "g": sequence.g, "A": sequence.A, "b": sequence.b[k]}
    settings = nbqp.Settings(eps_abs=1e-10)
    solution = nbqp.solve_qp(**data, lb=sequence.lb, ub=sequence.ub, settings=settings)
    return StepPoint(solution.x, solution.y, solution.z_box)


def test_all_peers_are_accurate_and_in_the_table(tmp_path: Path) -> None:
    names = [OURS, "nbqp, cold", "ProxQP sparse, warm", "ProxQP dense, cold"]
    path = tmp_path / "table.md"
    arguments = f"--json {tmp_path / 'record.json'} --markdown {path} --cases quadcopter"
    arguments += f" --steps {STEPS} --repeats 2 --eps {EPS} --peers"
    sequences.main([*arguments.split(), *names])
    assert all(f"| {name} " in path.read_text() for name in names)
    record, _ = sequences.run(["quadcopter"], STEPS, EPS, 1, names)
    for peer in record["results"][0]["peers"]:
        assert not peer["failure"]
        assert peer["failed"] == 0
        assert max(peer["errors"].values()) <= EPS
        assert [len(run) for run in peer["wall"]] == [STEPS]
        assert all(count > 0 for count in peer["counts"]["iterations"])


def test_residuals_are_those_of_the_point(sequence: Sequence) -> None:
    x, y, z = solve(sequence, 1)
    assert max(sequences.residuals(sequence, 1, StepPoint(x, y, z)).values()) < 1e-9
    beyond = sequences.residuals(sequence, 1, StepPoint(np.where(x == x[0], 9.0, x), y, z))
    assert beyond["primal"] >= 9.0 - sequence.ub[0]
    free = int(np.flatnonzero(np.isinf(sequence.ub))[0])
    z[free] += 1.0
    assert sequences.residuals(sequence, 1, StepPoint(x, y, z))["dual"] == pytest.approx(1.0)
    z[free] -= 1.0
    held = int(np.argmax(np.abs(z)))
    without = np.where(np.arange(len(z)) == held, 0.0, z)
    gap = sequences.residuals(sequence, 1, StepPoint(x, y, without))["gap"]
    assert gap == pytest.approx(abs(z[held]) * sequence.ub[held], rel=1e-6)


def test_steps_beyond_the_tolerance_have_failed(sequence: Sequence) -> None:
    found = sequences.Measurement(OURS)
    # Solved to 1e-2, held against 1e-9.
    found.run(sequence, 1e-9, PEERS[OURS](sequence, 1e-2))
    assert found.failed > 0


def test_a_missing_peer_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(sequence: Sequence, eps: float) -> Any:
        raise ImportError("No module named 'osqp'")

    monkeypatch.setitem(PEERS, "OSQP, warm", absent)
    _, table = sequences.run(["quadcopter"], 2, EPS, 1, [OURS, "OSQP, warm"])
    assert "not installed: No module named 'osqp'" in table


def test_plants_have_their_sizes_and_bounds_that_hold(sequence: Sequence) -> None:
    assert sequence.A.shape == (120, 160)
    assert max(sequence.active) > 0
    assert closed_loop(masses(), 1).A.shape == (816, 1020)
