"""The benchmark of warm starts, of few QPs: what it measures and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import warm_starts


def test_it_writes_accurate_solves_and_a_table(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("out.json", "out.md")]
    options = ["--json", str(files[0]), "--markdown", str(files[1])]
    warm_starts.main([*options, "--batch", "8", "--repeats", "1"])
    moves = json.loads(files[0].read_text())["moves"]
    assert len(moves) == len(warm_starts.PROGRAMS) * len(warm_starts.CHANGES)
    for move in moves:
        assert max(move[name]["residual"] for name in ("cold", "warm")) <= warm_starts.EPS_ABS
        assert len(move["warm"]["seconds"]) == 1
    assert moves[0]["warm"]["steps"] < 0.5 * moves[0]["cold"]["steps"]
    assert "| QP      | 0.1%" in files[1].read_text()


def test_no_qps_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        warm_starts.main(["--json", str(tmp_path / "out.json"), "--batch", "0"])
    assert "--batch" in capsys.readouterr().err
