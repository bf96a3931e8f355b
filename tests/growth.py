"""What a process holds after many steps, for scripts of `tests.processes`."""

from __future__ import annotations

import json
import sys
from typing import NamedTuple

from tests import processes

MEASURE = """
    import json, resource, sys, threading
    import numpy as np

    def measure(step, steps):
        '''Peak memory (the kernel's units) and threads after a tenth of the steps, and after all.'''
        held = []
        for k in range(steps):
            step(k)
            if k + 1 in (steps // 10, steps):
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                held.append([peak, threading.active_count()])
        print(json.dumps(held))
"""


class Growth(NamedTuple):
    """MiB of peak memory, and threads, that steps from the tenth part on have added."""

    memory: float
    threads: int


def growth(script: str, steps: int, *arguments: object) -> Growth:
    """Of a script that calls `measure(step, int(sys.argv[1]))`."""
    with processes.start(MEASURE + script, steps, *arguments) as process:
        shown = processes.finish(process, limit=1800.0)
    (before, threads_before), (after, threads_after) = json.loads(shown)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Growth((after - before) / unit, threads_after - threads_before)
