"""Train a forecast by the cost of the plans made with it: `python -m examples.scheduling --help`.

A network maps features of a day, such as its temperature, to a demand d^ for each half hour k, and a QP
plans the output p_ik of generating units i for it, with shortages v and surpluses w:

    min  sum_k [ sum_i (1/2 q_i p_ik^2 + c_i p_ik) + c_v v_k + c_w w_k ]
    s.t. sum_i p_ik + v_k - w_k = d^_k,   |p_i,k+1 - p_ik| <= ramp_i,   0 <= p_ik <= p_max_i,   v, w >= 0.

What the plan costs is seen when the true demand d comes: the same sum with p as planned, v = (d - sum p)+
and w = (sum p - d)+. In two stages, the network learns d from the mean squared error alone, to which a
shortage is as bad as a surplus; end to end, it learns through the QP from the cost itself. A constant
margin on top of the two-stage forecast, the best for the days to train with, is a third way to compare.
Whoever knows that quantiles of about 0.92 are the demand to plan for gets about as far by a quantile loss,
without the QP; end to end finds that out from the cost.

The setting is that of Donti, Amos & Kolter, *Task-based end-to-end model learning in stochastic
optimization*, 2017, section 4.2.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import scipy.sparse
from keras import ops
from matplotlib.figure import Figure

from examples.command_line import make_folder, training_parser, warm_up
from examples.figures import BLUE, GREY, INK, ORANGE, RED, finish, finish_epochs
from tf_layer import Input, QPLayer

Floats = npt.NDArray[np.float64]

STEPS, UNITS = 48, 3
PRICE, SLOPE = np.array([1.0, 3.0, 6.0]), np.array([0.5, 1.0, 1.0])
"""Of the units' power: c and q, that of a slow, cheap unit first."""
CAPACITY, RAMP = np.array([6.0, 4.0, 3.0]), np.array([0.1, 0.4, 2.0])
"""Limits of the power, and of its change from one half hour to the next."""
SHORTAGE, SURPLUS = 50.0, 0.5
"""Prices, c_v and c_w."""
BATCH, RATE = 50, 0.001
FORECAST_EPOCHS = 100
MARGINS = np.arange(0.0, 0.81, 0.1)


class Days(NamedTuple):
    """Features (days, 3): cold, cloud cover, weekend or not; and the demand (days, STEPS)."""

    features: Floats
    demand: Floats


def make_days(count: int, random: np.random.Generator) -> Days:
    """Demand peaks in the morning and, more on cold days, in the evening; the sun lowers it at noon.

    Cold evenings and half-clouded noons are the uncertain ones.
    """
    cold, cloud = random.standard_normal((count, 1)), random.random((count, 1))
    weekend = (random.random((count, 1)) < 2 / 7).astype(float)
    hour = np.arange(STEPS) * 24 / STEPS
    morning, noon, evening = (
        np.exp(-0.5 * ((hour - peak) / width) ** 2)
        for peak, width in ((8.0, 1.5), (13.0, 2.5), (19.0, 2.0))
    )
    demand = (
        5.0
        + 2.0 * morning * (1.0 - 0.6 * weekend)
        - 2.0 * noon * (1.0 - cloud + cloud * (1.0 - cloud) * random.standard_normal((count, 1)))
        + evening * (3.0 + np.maximum(cold, 0.0) * (1.0 + 0.5 * random.standard_normal((count, 1))))
        + 0.05 * random.standard_normal((count, STEPS))
    )
    return Days(np.hstack([cold, cloud, weekend]), demand)


def plan_layer() -> QPLayer:
    """Demands (batch, STEPS) to plans (batch, n), in the order p_11, p_21, p_31, p_12, ..., v, w."""
    steps, nothing = scipy.sparse.eye_array(STEPS), scipy.sparse.csc_array((2 * STEPS, 2 * STEPS))
    later = scipy.sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(STEPS - 1, STEPS))
    changes = scipy.sparse.kron(later, np.eye(UNITS))
    ramp = np.tile(RAMP, STEPS - 1)
    return QPLayer(
        H=scipy.sparse.block_diag([scipy.sparse.diags_array(np.tile(SLOPE, STEPS)), nothing]),
        g=np.concatenate([np.tile(PRICE, STEPS), np.repeat([SHORTAGE, SURPLUS], STEPS)]),
        A=scipy.sparse.hstack([scipy.sparse.kron(steps, np.ones((1, UNITS))), steps, -steps]),
        b=Input(),
        C=scipy.sparse.hstack([changes, scipy.sparse.csc_array((len(ramp), 2 * STEPS))]),
        l=-ramp,
        u=ramp,
        lb=0.0,
        ub=np.concatenate([np.tile(CAPACITY, STEPS), np.full(2 * STEPS, np.inf)]),
    )


def cost(demand: Any, plan: Any) -> Any:
    """Of each plan (batch, n) when this demand (batch, STEPS) has come, (batch,)."""
    power = ops.reshape(plan[:, : STEPS * UNITS], (-1, STEPS, UNITS))
    missing = demand - ops.sum(power, axis=2)
    fuel = ops.sum((0.5 * SLOPE * power + PRICE) * power, axis=(1, 2))
    return fuel + ops.sum(SHORTAGE * ops.relu(missing) + SURPLUS * ops.relu(-missing), axis=1)


def mean_cost(days: Days, plans: Any) -> float:
    """Of plans (days, n) for these days."""
    return float(ops.mean(cost(days.demand, ops.cast(plans, "float64"))))


def draw(path: Path, history: dict[str, Any], days: Days, plan: Any, margin: Any) -> None:
    """Draw the plan of the first day, the regret by epoch, and the learned margin by hour.

    margin: what the end-to-end forecast is above that of two stages, (days, STEPS).
    """
    figure = Figure(figsize=(15, 4.4), dpi=150, layout="constrained")
    figure.suptitle("A forecast trained by the cost of its plans", color=INK, fontweight="bold")
    day, regret, hours = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
    hour = np.arange(STEPS) * 24 / STEPS
    power = np.reshape(plan[: STEPS * UNITS], (STEPS, UNITS)).T
    units = ("slow and cheap", "between", "fast and dear")
    day.stackplot(hour, power, colors=(BLUE, GREY, ORANGE), alpha=0.5, labels=units)
    day.plot(hour, days.demand[0], color=INK, label="demand")
    day.set_title("a day of the test, planned end to end", color=INK)
    foresight, two_stage, best_margin = (
        history[key] for key in ("foresight", "two_stage", "best_margin")
    )
    values = np.array(history["val_loss"]) - foresight
    regret.plot(range(1, len(values) + 1), values, "o-", color=BLUE, label="end to end")
    regret.axhline(two_stage - foresight, color=RED, ls=":", label="two stages")
    regret.axhline(best_margin - foresight, color=ORANGE, ls=":", label="with the best margin")
    regret.set_ylim(0)
    regret.set_title("cost above that of foresight, mean of the test", color=INK)
    finish_epochs(regret)
    cold = days.features[:, 0] > 1.0
    hours.plot(hour, margin[cold].mean(axis=0), color=BLUE, label="cold days")
    hours.plot(hour, margin[~cold].mean(axis=0), color=ORANGE, label="others")
    hours.set_title("what end to end adds to the forecast", color=INK)
    for axes in (day, hours):
        axes.set_xlabel("hour", color=INK)
        finish(axes)
    for axes in (day, regret, hours):
        axes.legend(frameon=False)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Train a forecast by its squared error, go on end to end, and compare the costs of the plans."""
    parser = training_parser("scheduling", "Train a forecast by its plans.", 15, ("--days", 2000))
    args = parser.parse_args(argv)
    make_folder(parser, args.out)
    keras.utils.set_random_seed(args.seed)
    random = np.random.default_rng(args.seed)
    learn, test = make_days(args.days, random), make_days(500, random)
    warm_up(print)
    hidden = [keras.layers.Dense(64, activation="relu") for _ in range(2)]
    forecast = keras.Sequential([*hidden, keras.layers.Dense(STEPS)])
    forecast.compile(keras.optimizers.Adam(RATE), "mse")
    forecast.fit(*learn, batch_size=BATCH, epochs=FORECAST_EPOCHS, verbose=0)
    forecasts = [ops.convert_to_numpy(forecast(days.features)) for days in (learn, test)]
    plan = plan_layer()
    margin = min(MARGINS, key=lambda margin: mean_cost(learn, plan(forecasts[0] + margin)))
    history = {
        "foresight": mean_cost(test, plan(test.demand)),
        "two_stage": mean_cost(test, plan(forecasts[1])),
        "best_margin": mean_cost(test, plan(forecasts[1] + margin)),
    }
    model = keras.Sequential([forecast, plan])
    steps = args.epochs * -(-args.days // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
    model.compile(keras.optimizers.Adam(rate), cost)
    fit = model.fit(*learn, batch_size=BATCH, epochs=args.epochs, validation_data=test)
    history |= fit.history
    (args.out / "history.json").write_text(json.dumps(history) + "\n")
    added = ops.convert_to_numpy(forecast(test.features)) - forecasts[1]
    draw(args.out / "scheduling.png", history, test, model(test.features[:1])[0], added)
    print(
        f"mean cost of {len(test.demand)} test days: foresight {history['foresight']:.1f}, two stages "
        f"{history['two_stage']:.1f}, with the best margin ({margin:.1f}) "
        f"{history['best_margin']:.1f}, end to end {fit.history['val_loss'][-1]:.1f}; "
        f"results in {args.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
