"""The benchmark of layers, by our own peers alone: what it times, judges and writes."""

from __future__ import annotations

import json
import pathlib

import pytest
import tensorflow as tf

from benchmarks import layers, peers
from benchmarks.layers import Measurement


def test_it_writes_accurate_samples_and_a_table(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would hold for the process, which other tests share.
    monkeypatch.setattr(peers, "import_tensorflow", lambda: tf)
    for name in [name for name in peers.PEERS if not name.startswith(peers.OURS)]:
        monkeypatch.delitem(peers.PEERS, name)
    monkeypatch.setattr(layers, "TURN", 0.0)
    files = [tmp_path / name for name in ("record.json", "table.md")]
    options = ["--json", str(files[0]), "--markdown", str(files[1]), "--cases", "sudoku", "control"]
    layers.main([*options, "--quick", "--repeats", "2"])
    results = json.loads(files[0].read_text())["results"]
    assert [result["case"] for result in results] == 4 * ["sudoku"] + ["control"]
    for result in results:
        assert [found["peer"] for found in result["peers"]] == ["nbqp", "nbqp, graph"]
        for found in result["peers"]:
            assert not found["failure"]
            assert max(found["errors"].values()) < 1e-6
            assert [len(samples) for samples in found["samples"].values()] == [2] * 4
    assert files[1].read_text().count("| nbqp, graph") == 5


def test_a_whole_step_is_timed_less_its_forward_part() -> None:
    found = Measurement(
        "peer",
        {
            f"{step}_{clock}": [float(t)]
            for step, t in (("forward", 2), ("backward", 5))
            for clock in ("wall", "process")
        },
    )
    found.subtract("backward", "forward")
    assert found.time("backward_wall") == found.time("backward_process") == 3.0
    assert found.time("forward_wall") == 2.0
