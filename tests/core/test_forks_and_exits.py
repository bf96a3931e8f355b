"""Processes that fork, end, or may have no more threads, while the package's own threads are at work."""

from __future__ import annotations

import os
import threading
from typing import Any

import numba
import numpy as np
import pytest

import nbqp
from nbqp import threads
from tests import processes

SOLVE = """
    import atexit, os, threading, time
    import numpy as np
    import nbqp

    rng = np.random.default_rng(0)
    g, C = rng.standard_normal((16, 5)), rng.standard_normal((3, 5))

    def solve(k=0):
        '''Of a pattern of its own for each k, which is analysed once.'''
        kept = np.arange(15).reshape(3, 5) % 7 != k
        solution = nbqp.solve_batch(np.eye(5), g, C=C * kept, u=1.0, lb=0.0, threads=2)
        return np.concatenate((solution.x, nbqp.vjp(solution, dL_dx=g).dL_dg))

    def solve_on():
        k = 0
        while True:
            solve(k % 7)
            k += 1

    def busy_threads():
        for _ in range(3):
            threading.Thread(target=solve_on, daemon=True).start()
"""

FORK_WHILE_BUSY = """
    here = [solve(k) for k in range(7)]

    def compare():
        if all(np.array_equal(solve(k), here[k]) for k in range(7)):
            os._exit(0)

    busy_threads()
    print(all(in_a_fork(compare) for _ in range(20)))
"""

FORK_WHILE_LOCKED = """
    import sys
    from numba.core.compiler_lock import global_compiler_lock

    lock = {"compiler": global_compiler_lock, "analysis": nbqp.analysis.analyses.lock}[sys.argv[1]]
    held = threading.Event()

    def hold():
        lock.acquire()
        held.set()
        time.sleep(1.0)
        lock.release()

    threading.Thread(target=hold).start()
    held.wait()
    print(in_a_fork(lambda: (solve(), os._exit(0))))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="as plain Python it takes minutes")
def test_forked_children_solve_while_threads_of_their_parent_do() -> None:
    assert processes.run(SOLVE + processes.IN_A_FORK + FORK_WHILE_BUSY) == "True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.parametrize("lock", ["compiler", "analysis"])
def test_a_fork_while_another_thread_compiles_or_analyses(lock: str) -> None:
    """The child had the lock, and not the thread that would have released it."""
    assert processes.run(SOLVE + processes.IN_A_FORK + FORK_WHILE_LOCKED, lock) == "True\n"


LONG = """
    many = rng.random((20_000, 200))
    A = rng.random((100, 200))
    b = A @ rng.random(200)

    def solve_long():
        nbqp.solve_batch(None, many, A, b, lb=0.0, threads=2)
"""

END_WHILE_BUSY = """
    solve()
    busy_threads()
    time.sleep(0.5)
    print("end")
"""

END_IN_A_LONG_SOLVE = """
    solve()
    threading.Thread(target=solve_long, daemon=True).start()
    time.sleep(0.5)
    print("end")
"""

SOLVE_AT_EXIT = """
    here = solve()
    atexit.register(lambda: print(np.array_equal(solve(), here)))
    print("end")
"""

FIRST_SOLVE_AT_EXIT = """
    limit = nbqp.Settings(time_limit=60.0)
    atexit.register(lambda: print(nbqp.solve_batch(np.eye(5), g, settings=limit).status[0].name))
    print("end")
"""

FINISH_IN_A_THREAD = """
    here = solve()

    def finish():
        threading.main_thread().join()
        print(all(np.array_equal(solve(), here) for _ in range(20)))

    threading.Thread(target=finish).start()
    print("end")
"""


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        (END_WHILE_BUSY, "end"),
        (LONG + END_IN_A_LONG_SOLVE, "end"),
        (SOLVE_AT_EXIT, "end True"),
        (FIRST_SOLVE_AT_EXIT, "end SOLVED"),
        (FINISH_IN_A_THREAD, "end True"),
    ],
    ids=["busy", "long", "atexit", "first", "thread"],
)
def test_a_process_ends_well(script: str, shown: str) -> None:
    """Without waiting for a daemon thread in a solve of minutes, and solving to the last."""
    assert processes.run(SOLVE + script).split() == shown.split()


def test_a_process_that_may_have_no_more_threads_solves_in_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    g = np.random.default_rng(0).standard_normal((40, 5))
    settings = nbqp.Settings(time_limit=60.0)

    def solve(settings: nbqp.Settings | None = None) -> Any:
        return nbqp.solve_batch(np.eye(5), g, lb=0.0, threads=3, settings=settings).x

    expected = solve()
    runs: list[tuple[int, int]] = []

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_pool", None)
    with monkeypatch.context() as few:
        few.setattr(threading.Thread, "start", refuse)
        np.testing.assert_array_equal(solve(), expected)
        np.testing.assert_array_equal(solve(settings), expected)
        threads.split_range(lambda begin, end: runs.append((begin, end)), 30, 3)
    # Now there are threads: they find nothing that has been left for them.
    threads.split_range(lambda begin, end: None, 30, 3)
    np.testing.assert_array_equal(solve(), expected)
    assert sorted(runs) == [(0, 10), (10, 20), (20, 30)]


def test_the_pool_has_as_many_threads_as_processors_and_one() -> None:
    g = np.zeros((200, 3))
    before = threading.active_count()
    for _ in range(20):
        nbqp.solve_batch(np.eye(3), g, threads=100)
    assert threading.active_count() <= before + 1 + (os.cpu_count() or 1)


def test_an_error_in_a_thread_is_raised_after_all_have_ended() -> None:
    ended = []

    def task(begin: int, end: int) -> None:
        if begin == 10:
            raise ValueError("the second part")
        ended.append(begin)

    with pytest.raises(ValueError, match="the second part"):
        threads.split_range(task, 30, 3)
    assert sorted(ended) == [0, 20]
