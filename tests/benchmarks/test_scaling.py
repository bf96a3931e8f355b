"""The benchmark of sizes and threads, at the smallest sizes: what it measures, fits and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.scaling import Point, Sweep


def test_it_writes_accurate_samples_a_report_and_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "THREADS_BATCH", 16)
    files = [tmp_path / name for name in ("out.json", "out.md", "out.png")]
    options = ["--json", str(files[0]), "--markdown", str(files[1]), "--figure", str(files[2])]
    scaling.main([*options, "--quick"])
    record = json.loads(files[0].read_text())
    assert [len(sweep["points"]) for sweep in record["sweeps"]] == [3, 3, 3]
    for sweep in record["sweeps"]:
        assert all(point["residual"] <= scaling.EPS_ABS for point in sweep["points"])
    assert "control, 8 at a time" in files[1].read_text()
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_a_fit_is_that_of_a_power() -> None:
    points = [Point(size, [3.0 * size**1.5]) for size in (1, 100, 1000, 10000)]
    points[0].seconds = [1e3]
    assert Sweep("sweep", "horizon", 1, points).exponent() == pytest.approx(1.5)


def test_no_repeats_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--json", str(tmp_path / "out.json"), "--repeats", "0"])
    assert "--repeats" in capsys.readouterr().err
