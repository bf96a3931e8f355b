"""Scripts in processes of their own, which find the packages of this checkout."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).parents[1]

IN_A_FORK = """
    import os, time

    def in_a_fork(task):
        '''Whether the task ends well in a forked child, which has a minute.'''
        child = os.fork()
        if child == 0:
            try:
                task()
            finally:
                os._exit(1)
        for _ in range(2400):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status == 0
            time.sleep(0.1)
        os.kill(child, 9)
        return False
"""
"""Of a script: its task calls os._exit(0) where all is well."""


def start(script: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """A process that runs a script."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, *arguments: object, **environment: str) -> str:
    """What a script prints; it has to end well."""
    with start(script, *arguments, **environment) as process:
        return finish(process)


def await_end(process: subprocess.Popen[str], limit: float = 300.0) -> tuple[str, str]:
    """What a process has printed, and its errors; after so many seconds it is killed."""
    try:
        return process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def finish(process: subprocess.Popen[str], limit: float = 300.0) -> str:
    """What a process that ends well has printed."""
    out, errors = await_end(process, limit)
    assert process.returncode == 0, errors
    return out
