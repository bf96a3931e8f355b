"""The history of a training: a list over the epochs for each key, on disk after every epoch."""

from __future__ import annotations

import json
from pathlib import Path

History = dict[str, list[float]]


def append(history: History, row: dict[str, float], path: Path) -> None:
    """Add an epoch, and write all of them as JSON."""
    for key, value in row.items():
        history.setdefault(key, []).append(value)
    path.write_text(json.dumps(history) + "\n")
