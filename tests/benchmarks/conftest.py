"""What all tests of benchmarks need."""

from __future__ import annotations

import pytest

from benchmarks import report


@pytest.fixture(autouse=True)
def all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks confine their process to one processor, which the tests that follow share."""
    monkeypatch.setattr(report, "use_one_core", lambda: None)
