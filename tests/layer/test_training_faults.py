"""Training that is killed, or meets samples without a solution."""

from __future__ import annotations

import pathlib
import signal
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import nbqp
from tests import processes
from tf_layer import Input, Learned, QPLayer, solve_qp

FIT = """
    import os, signal, sys
    import keras
    import numpy as np
    import tensorflow as tf
    from tf_layer import Learned, QPLayer

    folder, killed = sys.argv[1], sys.argv[2] == "killed"
    keras.utils.set_random_seed(0)
    n, samples = 6, 48
    x = np.random.default_rng(0).standard_normal((samples, n)).astype("float32")
    index = np.arange(samples)

    def build():
        layer = QPLayer(
            H=Learned((n, n), "orthogonal", eps=0.1), A=Learned((2, n), "random_uniform"), lb=0.0,
            feasible=True, warm_start=samples,
        )
        inputs = [keras.Input((n,)), keras.Input((), dtype="int32")]
        return keras.Model(inputs, layer({"g": keras.layers.Dense(n)(inputs[0]), "index": inputs[1]}))

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def save_result(variables):
        np.savez(os.path.join(folder, sys.argv[2]), *[np.asarray(v) for v in variables])
"""

BACKUP = """
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            if killed and (self.epoch, batch) == (2, 1):
                kill()

    model = build()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    backup = keras.callbacks.BackupAndRestore(os.path.join(folder, f"backup-{sys.argv[3]}"))
    model.fit(
        [x, index], np.abs(x), batch_size=12, epochs=5, shuffle=False, verbose=0,
        callbacks=[backup, Kill()],
    )
    save_result([*model.weights, *model.optimizer.variables])
"""

MANAGER = """
    model, optimizer = build(), keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)

    @tf.function
    def train(part):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model([tf.gather(x, part), part], training=True) - tf.gather(x, part)) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))

    step = tf.Variable(0, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, step=step)
    manager = tf.train.CheckpointManager(
        checkpoint, os.path.join(folder, f"checkpoints-{sys.argv[3]}"), max_to_keep=2
    )
    checkpoint.restore(manager.latest_checkpoint)
    while step < 23:
        part = np.random.default_rng(int(step)).permutation(samples)[:12]
        train(tf.constant(part, tf.int32))
        step.assign_add(1)
        if step % 5 == 0:
            manager.save()
        if killed and step == 13:
            kill()
    save_result([*model.weights, *optimizer.variables])
"""


@pytest.mark.parametrize("loop", [BACKUP, MANAGER], ids=["BackupAndRestore", "CheckpointManager"])
def test_a_killed_training_resumes_to_the_same_bits(tmp_path: pathlib.Path, loop: str) -> None:
    """Weights, the solutions that the layer remembers, and the state of the optimizer."""
    processes.run(FIT + loop, tmp_path, "whole", "one")
    with processes.start(FIT + loop, tmp_path, "killed", "other") as process:
        process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.npz").exists()
    processes.run(FIT + loop, tmp_path, "resumed", "other")
    whole, resumed = (np.load(tmp_path / f"{name}.npz") for name in ("whole", "resumed"))
    assert len(whole.files) > 10
    for name in whole.files:
        np.testing.assert_array_equal(resumed[name], whole[name])


def test_a_checkpoint_of_tensorflow_has_every_weight(tmp_path: pathlib.Path) -> None:
    """It follows attributes: what a layer keeps in a list or a dict only is passed over in silence."""

    def built(seed: int) -> QPLayer:
        keras.utils.set_random_seed(seed)
        layer = QPLayer(
            H=Learned((3, 3)), A=Learned((1, 3)), C=Learned((2, 3)), feasible=True, warm_start=4
        )
        layer({"g": np.ones((2, 3)), "index": np.array([3, 1])}, training=True)
        return layer

    layer, other = built(0), built(1)
    path = tf.train.Checkpoint(layer=layer).save(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(layer=other).restore(path).assert_consumed()
    assert len(layer.weights) == 9
    for weight, restored in zip(layer.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(restored, weight)


N, SAMPLES, SIZE, FAILING = 5, 60, 24, 29
"""Sample 29 of all is sample 5 of the second batch."""


def features() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((SAMPLES, N))


def sides(value: float) -> np.ndarray:
    """Of the sum of x, which is not negative."""
    u = np.full((SAMPLES, 1), 1.5)
    u[FAILING] = value
    return u


def model(on_failure: Any) -> keras.Model:
    """With a learned objective, and the sum of x bounded by an input."""
    keras.utils.set_random_seed(0)
    inputs = {
        name: keras.Input((size,), name=name, dtype="float64")
        for name, size in (("x", N), ("u", 1))
    }
    layer = QPLayer(
        H=Learned((N, N), "orthogonal", eps=0.1),
        C=np.ones((1, N)),
        u=Input(),
        lb=0.0,
        on_failure=on_failure,
        dtype="float64",
    )
    g = keras.layers.Dense(N, dtype="float64")(inputs["x"])
    made = keras.Model(inputs, layer({"g": g, "u": inputs["u"]}))
    made.compile(keras.optimizers.SGD(0.1), "mse")
    return made


def fit(trained: keras.Model, u: np.ndarray, **options: Any) -> Any:
    x = features()
    rows = options.pop("rows", slice(None))
    return trained.fit(
        {"x": x[rows], "u": u[rows]},
        np.abs(x[rows]),
        batch_size=SIZE,
        shuffle=False,
        verbose=0,
        **options,
    )


@pytest.mark.parametrize(
    ("u", "status"), [(-1.0, "PRIMAL_INFEASIBLE"), (np.nan, "INVALID_DATA")], ids=["none", "NaN"]
)
def test_a_failing_sample_stops_a_fit_before_it_changes_a_weight(u: float, status: str) -> None:
    trained, twin = model("raise"), model("raise")
    message = f"{status} for sample {FAILING - SIZE}; 1 of {SIZE} failed"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        fit(trained, sides(u))
    fit(twin, sides(1.5), rows=slice(SIZE))
    for weight, of_twin in zip(trained.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, of_twin)
    # And it goes on.
    assert np.isfinite(fit(trained, sides(1.5)).history["loss"]).all()


@pytest.mark.parametrize("u", [-1.0, np.nan], ids=["none", "NaN"])
def test_a_failing_sample_that_is_kept_has_no_part_in_a_fit(u: float) -> None:
    trained, twin = model("keep"), model("keep")
    fit(trained, sides(u), epochs=2)
    weights = np.ones(SAMPLES)
    weights[FAILING] = 0.0
    fit(twin, sides(1.5), epochs=2, sample_weight=weights)
    for weight, of_twin in zip(trained.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(weight, of_twin, rtol=0.0, atol=1e-7)


def test_a_failing_sample_that_is_nan_ends_a_fit_that_minds_nan() -> None:
    trained = model("nan")
    seen: list[float] = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda _, logs: seen.append(logs["loss"])
    )
    fit(trained, sides(-1.0), callbacks=[watch, keras.callbacks.TerminateOnNaN()])
    assert np.isfinite(seen[0])
    assert np.isnan(seen[1:]).all()
    assert len(seen) == 2
    assert all(np.isnan(weight).any() for weight in trained.get_weights())


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e308, 1e-320])
def test_a_gradient_that_overflows_stays_with_its_sample(mode: str, value: float) -> None:
    rng = np.random.default_rng(1)
    data = {
        "H": np.tile(np.eye(N), (19, 1, 1)),
        "g": 3.0 * rng.standard_normal((19, N)),
        "C": rng.standard_normal((19, 2, N)),
        "u": rng.random((19, 2)),
        "lb": np.full((19, N), -1.0),
    }

    def gradients(weights: Any) -> Any:
        tensors = {name: tf.constant(part) for name, part in data.items()}
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            out = solve_qp(**tensors, settings=nbqp.Settings(eps_abs=1e-9))
        return tape.gradient(out.x, tensors, output_gradients=weights)

    run = tf.function(gradients) if mode == "graph" else gradients
    weights = rng.standard_normal((19, N))
    expected = run(tf.constant(weights))
    weights[[4, 12], [0, 3]] = value
    found = run(tf.constant(weights))
    others = np.delete(np.arange(19), [4, 12])
    for name, part in expected.items():
        np.testing.assert_array_equal(
            found[name].numpy()[others], part.numpy()[others], err_msg=name
        )
