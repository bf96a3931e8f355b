"""Training on several devices and in several processes, and processes that fork."""

from __future__ import annotations

import concurrent.futures
import json
import socket

import numpy as np
import pytest

from tests import processes

LOSSES = """
    import json, os, sys
    import keras
    import numpy as np
    import tensorflow as tf
    from examples.sudoku import RECIPES, SudokuSolver
    from examples.sudoku_boards import make_boards

    STEPS, BATCH = 5, 40

    def losses(strategy):
        keras.utils.set_random_seed(0)
        boards = [part.astype("float32") for part in make_boards(STEPS * BATCH, seed=0)]
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        data = tf.data.Dataset.from_tensor_slices(tuple(boards)).batch(BATCH).with_options(options)
        with strategy.scope():
            model = SudokuSolver(RECIPES["qp"], seed=0)
            model(boards[0][:1])
            optimizer = keras.optimizers.Adam(0.02)
            optimizer.build(model.trainable_variables)

        def replica_step(puzzles, solutions):
            with tf.GradientTape() as tape:
                errors = tf.reduce_mean((model(puzzles) - solutions) ** 2, axis=(1, 2, 3))
                loss = tf.reduce_sum(errors) / BATCH
            weights = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
            return loss

        @tf.function
        def step(puzzles, solutions):
            parts = strategy.run(replica_step, (puzzles, solutions))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)

        return [float(step(*batch)) for batch in strategy.experimental_distribute_dataset(data)]
"""
ONE = "    print(json.dumps(losses(tf.distribute.get_strategy())))\n"
TWO_DEVICES = """
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    print(json.dumps(losses(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))))
"""
TWO_PROCESSES = "    print(json.dumps(losses(tf.distribute.MultiWorkerMirroredStrategy())))\n"


@pytest.fixture(scope="module")
def losses_of_one() -> list[float]:
    losses: list[float] = json.loads(processes.run(LOSSES + ONE))
    assert losses[-1] < 0.9 * losses[0]
    return losses


def test_a_mirrored_strategy_has_the_losses_of_one_device(losses_of_one: list[float]) -> None:
    found = json.loads(processes.run(LOSSES + TWO_DEVICES))
    np.testing.assert_allclose(found, losses_of_one, rtol=1e-6)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def test_two_processes_have_the_losses_of_one(losses_of_one: list[float]) -> None:
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    started = [
        processes.start(
            LOSSES + TWO_PROCESSES,
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": workers}, "task": {"type": "worker", "index": k}}
            ),
        )
        for k in range(2)
    ]
    try:
        # Side by side: they wait for each other, and a full pipe would stop one of them.
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for out in pool.map(processes.finish, started):
                np.testing.assert_allclose(json.loads(out), losses_of_one, rtol=1e-6)
    finally:
        for process in started:
            process.kill()


FIT = """
    import json
    import keras
    import numpy as np
    import tensorflow as tf
    from tf_layer import Learned, QPLayer

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

    def losses(strategy):
        keras.utils.set_random_seed(0)
        data = np.random.default_rng(0).standard_normal((64, 4))
        with strategy.scope():
            rules = QPLayer(H=np.eye(4), A=Learned((2, 4)), lb=0.0, feasible=True)
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), rules])
            model.compile(keras.optimizers.Adam(0.01), "mse")
        fit = model.fit(data, np.abs(data), batch_size=16, epochs=3, shuffle=False, verbose=0)
        return fit.history["loss"]

    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    print(json.dumps([losses(tf.distribute.get_strategy()), losses(mirrored)]))
"""


def test_fit_on_a_mirrored_strategy() -> None:
    one, two = json.loads(processes.run(FIT))
    np.testing.assert_allclose(two, one, rtol=1e-6)
    assert one[-1] < one[0]


FORK = """
    import multiprocessing, pickle
    import numpy as np
    import nbqp

    g = np.random.default_rng(0).standard_normal((100, 5))

    def solve(_):
        return nbqp.solve_batch(np.eye(5), g, lb=0.0, threads=2).x

    if __name__ == "__main__":
        here = solve(0)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            for there in pool.map(solve, range(4)):
                np.testing.assert_array_equal(there, here)
        solver = pickle.loads(pickle.dumps(nbqp.Solver(np.eye(5), g[0], lb=0.0)))
        np.testing.assert_allclose(solver.solve().x, here[0], atol=1e-7)
        solver.update(g=g[1])
        np.testing.assert_allclose(solver.solve().x, here[1], atol=1e-7)
"""


def test_a_forked_child_solves_after_its_parent_did_and_solvers_pickle() -> None:
    processes.run(FORK)
