"""The benchmark of a single small QP: every solver that is there is accurate, and the record is complete."""

from __future__ import annotations

import json
import pathlib

import pytest
import tensorflow as tf

from benchmarks import latency, peers


def test_it_writes_accurate_samples_and_both_tables(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would hold for the process, which other tests share.
    monkeypatch.setattr(peers, "import_tensorflow", lambda: tf)
    monkeypatch.setattr(latency, "STEPS", 3)
    files = [tmp_path / name for name in ("record.json", "tables.md")]
    options = ["--json", str(files[0]), "--markdown", str(files[1]), "--repeats", "6"]
    assert latency.main(options) == 0
    record = json.loads(files[0].read_text())
    for solver in record["solvers"]:
        assert solver["failed"] == 0
        assert not solver["failure"]
    ours = [layer for layer in record["layers"] if layer["peer"].startswith("nbqp")]
    assert [layer["peer"] for layer in ours] == ["nbqp", "nbqp, graph", "nbqp, Keras"]
    for layer in ours:
        assert not layer["failure"]
        assert max(layer["errors"].values()) < latency.EPS
        assert [len(samples) for samples in layer["samples"].values()] == [6] * 4
    assert files[1].read_text().count("| case") == 2


def test_no_repeats_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        latency.main(["--repeats", "0"])
    assert "expected an integer of at least 1" in capsys.readouterr().err
