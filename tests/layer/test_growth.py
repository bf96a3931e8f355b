"""Many steps of training with other data each time need no more memory and threads than a few."""

from __future__ import annotations

import pytest

from tests.growth import growth

STEPS = [500, pytest.param(10_000, marks=pytest.mark.soak)]

TRAIN = """
    import keras
    import tensorflow as tf
    from tf_layer import Learned, QPLayer, solve_qp

    rng, n = np.random.default_rng(0), 4
    A = tf.Variable(rng.standard_normal((2, n)))

    def gradient_step(g, ub):
        '''Some samples have no feasible point.'''
        with tf.GradientTape() as tape:
            out = solve_qp(np.eye(n), g, A, tf.reduce_sum(A, axis=1), lb=-1.0, ub=ub, on_failure="keep")
            loss = tf.reduce_sum(out.x**2)
        A.assign_sub(1e-4 * tape.gradient(loss, A))

    layer = QPLayer(H=np.eye(n), A=Learned((2, n)), lb=0.0, feasible=True)
    model = keras.Sequential([keras.layers.Dense(n), layer])
    model.compile("adam", "mse")
    train = {
        "eager": gradient_step,
        "graph": tf.function(gradient_step),
        "model": model.train_on_batch,
    }[sys.argv[2]]

    def step(k):
        train(tf.constant(rng.standard_normal((4, n))), tf.constant(0.8 + rng.random((4, n))))

    measure(step, int(sys.argv[1]))
"""


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("mode", ["eager", "graph", "model"])
def test_steps_of_training_leave_nothing_behind(mode: str, steps: int) -> None:
    """TensorFlow's own pools settle within some MiB; ten thousand steps add no more than a few do."""
    grown = growth(TRAIN, steps, mode)
    assert grown.memory <= 8.0
    assert grown.threads <= 0
