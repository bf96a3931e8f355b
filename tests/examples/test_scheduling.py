"""The scheduling example: a short training, its plans against another solver and differences."""

from __future__ import annotations

import itertools
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from examples.scheduling import (
    CAPACITY,
    PRICE,
    RAMP,
    SHORTAGE,
    SLOPE,
    STEPS,
    SURPLUS,
    UNITS,
    cost,
    main,
    make_days,
    plan_layer,
)
from tests.core.oracles import Array, Data
from tests.core.references import reference_solve
from tf_layer import QPLayer


def double_layer() -> QPLayer:
    return QPLayer.from_config({**plan_layer().get_config(), "dtype": "float64"})


def powers(plans: Array) -> Array:
    return plans[:, : STEPS * UNITS].reshape(-1, STEPS, UNITS)


def reference_plan(demand: Array) -> Array:
    """By clarabel, over the powers and a cost t_k >= 50 (d - sum p), t_k >= 1/2 (sum p - d)."""
    n = STEPS * UNITS
    rows, sides = [], []
    for k, i in itertools.product(range(STEPS - 1), range(UNITS)):
        for sign in (1.0, -1.0):
            row = np.zeros(n + STEPS)
            row[(k + 1) * UNITS + i], row[k * UNITS + i] = sign, -sign
            rows.append(row)
            sides.append(RAMP[i])
    for k, price in itertools.product(range(STEPS), (-SHORTAGE, SURPLUS)):
        row = np.zeros(n + STEPS)
        row[k * UNITS : (k + 1) * UNITS], row[n + k] = price, -1.0
        rows.append(row)
        sides.append(price * demand[k])
    data = Data(
        H=np.diag(np.concatenate([np.tile(SLOPE, STEPS), np.zeros(STEPS)])),
        g=np.concatenate([np.tile(PRICE, STEPS), np.ones(STEPS)]),
        C=np.array(rows),
        u=np.array(sides),
        lb=np.concatenate([np.zeros(n), np.full(STEPS, -np.inf)]),
        ub=np.concatenate([np.tile(CAPACITY, STEPS), np.full(STEPS, np.inf)]),
    )
    return reference_solve(data).x[:n].reshape(STEPS, UNITS)


def test_end_to_end_beats_two_stages_after_four_epochs(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--days", "500", "--epochs", "4", "--out", str(tmp_path)]) == 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert history["loss"][-1] < history["loss"][0]
    assert len(history["val_loss"]) == 4
    end_to_end = history["val_loss"][-1]
    assert history["foresight"] < end_to_end < history["best_margin"] < history["two_stage"]
    assert f"end to end {end_to_end:.1f}" in capsys.readouterr().out.splitlines()[-1]
    assert (tmp_path / "scheduling.png").read_bytes().startswith(b"\x89PNG")


def test_plans_are_those_of_clarabel_and_keep_their_limits() -> None:
    demand = make_days(4, np.random.default_rng(1)).demand
    demand[0] += 7.0  # beyond what there is at its peak
    plans = np.asarray(double_layer()(demand))
    power = powers(plans)
    assert power.min() > -1e-7
    assert (power - CAPACITY).max() < 1e-7
    ramps = np.abs(np.diff(power, axis=1))
    assert (ramps - RAMP).max() < 1e-7
    assert np.sum(ramps > RAMP - 1e-6) > 20
    missing = demand - power.sum(axis=2)
    assert missing[0].max() > 0.1
    assert -missing[1:].min() > 0.1
    for own, of_day in zip(power, demand, strict=True):
        np.testing.assert_allclose(own, reference_plan(of_day), atol=1e-5)
    # A demand that comes as it was planned for costs what the QP says.
    H, g = plan_layer().data["H"], plan_layer().data["g"]
    objective = 0.5 * np.sum(plans * (plans @ H.toarray()), axis=1) + plans @ g
    np.testing.assert_allclose(cost(demand, plans), objective, rtol=1e-6)


def test_the_gradient_of_the_cost_is_that_of_central_differences() -> None:
    keras.utils.set_random_seed(2)
    days, h = make_days(6, np.random.default_rng(3)), 1e-4
    forecast = keras.layers.Dense(STEPS, dtype="float64")
    model = keras.Sequential([forecast, double_layer()])
    model.build((None, 3))
    start = days.demand.mean(axis=0)
    forecast.bias.assign(start)

    def loss() -> tf.Tensor:
        return tf.reduce_mean(cost(days.demand, model(days.features)))

    with tf.GradientTape() as tape:
        value = loss()
    gradient = tape.gradient(value, forecast.bias.value).numpy()
    for seed in range(3):
        direction = np.random.default_rng(seed).standard_normal(STEPS)
        ends = []
        for step in (h, -h):
            forecast.bias.assign(start + step * direction)
            ends.append(float(loss()))
        slope = gradient @ direction
        assert abs(slope) > 1.0
        assert (ends[0] - ends[1]) / (2.0 * h) == pytest.approx(slope, rel=1e-4)
