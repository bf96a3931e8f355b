"""After `nbqp.warmup()` nothing is left to compile."""

from __future__ import annotations

import json
import subprocess
import sys

import numba
import pytest

SCRIPT = """
import json, nbqp
from tests.core.specialisations import compiled_entries
before = compiled_entries()
nbqp.warmup()
print(json.dumps([before, compiled_entries()]))
"""


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")
def test_every_entry_is_compiled_once_by_the_warmup(pytestconfig: pytest.Config) -> None:
    """In a process of its own: other tests compile what they need."""
    shown = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = json.loads(shown.stdout)
    assert len(after) >= 5
    assert set(before.values()) == {0}
    assert set(after.values()) == {1}, after
