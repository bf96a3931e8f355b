"""What surrounds the figures: the machine, medians, JSON and Markdown."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbqp


def use_one_core() -> int | None:
    """Confine this process to one of its processors; None where the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine_facts() -> dict[str, Any]:
    """Processor, number of processors, load of the last minute, system."""
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
    }


def one_core() -> dict[str, Any]:
    """Confine this process to one of its processors, and tell which with the other facts of the machine."""
    return {**machine_facts(), "core": use_one_core()}


def new_record(
    benchmark: str,
    machine: Mapping[str, Any],
    packages: Mapping[str, str | None],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What every record begins with; machine: `one_core` or `machine_facts`; packages: `versions`."""
    return {
        "benchmark": benchmark,
        "date": now(),
        "machine": dict(machine),
        "versions": {"nbqp": f"{nbqp.__version__} ({revision()})", **packages},
        "settings": dict(settings),
    }


def headline(record: Mapping[str, Any], extent: str, conditions: str = "one core") -> str:
    """Where, when, how much and with which versions, for a reader."""
    facts = ", ".join(f"{key} {value or 'absent'}" for key, value in record["versions"].items())
    return f"{record['machine']['processor']}, {conditions}, {record['date']}, {extent}; {facts}."


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Python's version and those of the packages; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def revision() -> str:
    """The checkout's commit, "-dirty" with changes; "unknown" outside a checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def now() -> str:
    """The date and time, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def median(samples: Sequence[float]) -> float:
    """Median; NaN of nothing."""
    return statistics.median(samples) if samples else math.nan


def finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: None in their place."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record; numbers that are not finite become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(finite(record), indent=1, allow_nan=False) + "\n")


def write_markdown(path: Path | None, text: str) -> None:
    """Write a report, if there is where to."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def show(value: float, form: str) -> str:
    """A number in a format, a dash for NaN."""
    return "-" if math.isnan(value) else format(value, form)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with the columns aligned in the source as well."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[k]) for row in table) for k in range(len(header))]
    table.insert(1, ["-" * width for width in widths])
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in table
    ]
    return "\n".join(f"| {line} |" for line in lines)
