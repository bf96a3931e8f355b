"""What all tests need."""

from __future__ import annotations

import pytest

from nbqp import threads


@pytest.fixture(autouse=True)
def all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of tests are small; they are to be split over threads all the same."""
    monkeypatch.setattr(threads, "WORTH", 0.0)
