"""Processes that fork, or end, while threads are in the layer."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests import processes

LAYER = """
    import atexit, os, sys, threading, time
    import numpy as np
    import tensorflow as tf
    import nbqp
    from tf_layer import solve_qp

    data = np.random.default_rng(0).standard_normal((40, 5))
    g = tf.constant(data)

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(g)
            loss = tf.reduce_sum(solve_qp(np.eye(5), g, lb=0.0).x ** 2)
        return tape.gradient(loss, g)

    run = {"eager": gradient, "graph": tf.function(gradient)}[sys.argv[1]]
    here = run().numpy()

    def run_on():
        while True:
            run()

    def busy_threads():
        for _ in range(3):
            threading.Thread(target=run_on, daemon=True).start()
        time.sleep(0.5)
"""

FORK = """
    def compare():
        solution = nbqp.solve_batch(np.eye(5), data, lb=0.0, threads=2)
        found = nbqp.vjp(solution, dL_dx=2.0 * solution.x).dL_dg
        if np.array_equal(found, here):
            os._exit(0)

    busy_threads()
    print(in_a_fork(compare))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_the_solver_runs_in_a_child_that_is_forked_while_the_layer_does(mode: str) -> None:
    """TensorFlow itself does not: its graphs hang in a forked child, with or without a layer."""
    assert processes.run(LAYER + processes.IN_A_FORK + FORK, mode) == "True\n"


BUSY = """
    busy_threads()
    print("end")
"""

LONG = """
    A = np.random.default_rng(0).random((100, 200))
    many = tf.random.uniform((20_000, 200), dtype=tf.float64)

    def solve_long():
        return solve_qp(None, many, A, A @ np.ones(200), lb=0.0).x

    task = solve_long if sys.argv[1] == "eager" else tf.function(solve_long)
    threading.Thread(target=task, daemon=True).start()
    time.sleep(1.0)
    print("end")
"""

AT_EXIT = """
    atexit.register(lambda: print("and", "same" if np.array_equal(run(), here) else "other"))
    print("end")
"""


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize(
    ("script", "shown"),
    [(BUSY, "end"), (LONG, "end"), (AT_EXIT, "end and same")],
    ids=["busy", "long", "atexit"],
)
def test_a_process_ends_while_the_layer_runs(mode: str, script: str, shown: str) -> None:
    """Without waiting for a daemon thread in a solve of minutes.

    Before 3.14, Python ends daemon threads by unwinding their frames, and where those are TensorFlow's
    the process may abort instead, once all else has ended.
    """
    with processes.start(LAYER + script, mode) as process:
        out, errors = processes.await_end(process)
    aborted = process.returncode == -signal.SIGABRT and "exception not rethrown" in errors
    assert process.returncode == 0 or (aborted and sys.version_info < (3, 14)), errors
    assert out.split() == shown.split()
