"""A function in a process of its own, which is killed when it takes too long."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

START_LIMIT = 600.0
"""Seconds for the imports and the warm-up of a worker, whose kernels may have to be compiled."""
STATUS = Path("/proc/self/status")


class OvertimeError(RuntimeError):
    """The call took too long, and its process has been killed."""


class WorkerError(RuntimeError):
    """The call raised, or its process ended."""


class Worker:
    """Calls `function` in another process, which stays between the calls and is replaced when lost.

    Parameters
    ----------
    function
        Importable by name, as its arguments and result are pickled.
    warm_up
        Arguments of a first call in every new process, with no regard to its result or time.
    memory
        Bytes of address space that the process may have; None: all.
    """

    def __init__(
        self, function: Callable[..., Any], warm_up: tuple[Any, ...], memory: int | None = None
    ) -> None:
        self._arguments = (function, warm_up, memory)
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: multiprocessing.connection.Connection | None = None

    def call(self, *arguments: Any, limit: float) -> Any:
        """Result of `function(*arguments)`, if it comes within `limit` seconds.

        Raises
        ------
        OvertimeError
            It did not.
        WorkerError
            The function raised, or its process ended, during the warm-up perhaps.
        """
        if self._process is None or not self._process.is_alive():
            self.close()
            self._start()
        assert self._pipe is not None
        self._pipe.send(arguments)
        return self._receive(limit)

    def close(self) -> None:
        """Kill the process, whatever it does."""
        if self._process is not None and self._pipe is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None

    def _start(self) -> None:
        # A fork would share what the parent has imported, its BLAS and its memory.
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, *self._arguments), daemon=True)
        self._process.start()
        other.close()
        try:
            self._receive(START_LIMIT)
        except WorkerError:
            self.close()
            raise

    def _receive(self, limit: float) -> Any:
        assert self._pipe is not None
        if not self._pipe.poll(limit):
            self.close()
            raise OvertimeError(f"no result within {limit:g} s")
        try:
            failure, result = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            assert self._process is not None
            self._process.join()
            code = self._process.exitcode
            self.close()
            raise WorkerError(f"the process ended with code {code}") from error
        if failure:
            raise WorkerError(failure)
        return result


def _serve(
    pipe: multiprocessing.connection.Connection,
    function: Callable[..., Any],
    warm_up: tuple[Any, ...],
    memory: int | None,
) -> None:
    """Answer each tuple of arguments with (failure, result), the warm-up's without its result."""
    # Ctrl-C reaches the whole group; the parent ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    arguments, first = warm_up, True
    while True:
        try:
            result = function(*arguments)
            pipe.send(("", None if first else result))
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            pipe.send((f"{type(error).__name__}: {reason}", None))
        first = False
        try:
            arguments = pipe.recv()
        except EOFError:
            return


def forget_peak_memory() -> None:
    """Let `peak_memory` start anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Most bytes of this process that were in memory at once."""
    if STATUS.exists():
        # Unlike getrusage, which a process inherits from the one that started it.
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
