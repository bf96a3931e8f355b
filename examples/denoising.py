"""Learn the operator of a total-variation denoiser: `python -m examples.denoising --help`.

A signal is piecewise constant, and y is that signal in noise. Total variation restores it by

    x(y) = argmin 1/2 |x - y|^2 + |Dx|_1,

where D is a weight times the differences of neighbours. The layer starts there, and learns D, m x n, from
the mean squared error to the clean signal. It solves the dual, a QP with bounds alone, for

    z(y) = argmin 1/2 z'DD'z - (Dy)'z   s.t.   -1 <= z <= 1,      x = y - D'z.

What there is to learn: levels change on the ticks of a clock, every 8 samples, of which the differences
know nothing. The experiment is that of OptNet (Amos & Kolter, 2017, section 4.2); the dual is that of
Chambolle (2004).
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
from keras import ops
from matplotlib.figure import Figure

from examples.command_line import make_folder, training_parser, warm_up
from examples.figures import BLUE, GREY, INK, RED, finish, finish_epochs
from tf_layer import solve_qp

Floats = npt.NDArray[np.float64]

SAMPLES, TICK, NOISE = 64, 8, 0.25
BATCH, RATE = 100, 0.003
WEIGHTS = np.arange(0.2, 1.01, 0.05)
"""Of the differences, to choose from."""


class Signals(NamedTuple):
    """Pairs of a noisy and a clean signal, (count, SAMPLES) each."""

    noisy: Floats
    clean: Floats


def make_signals(count: int, random: np.random.Generator) -> Signals:
    """Every tick, with probability 1/2, a signal jumps to a new level, a standard normal number."""
    jumps = random.random((count, SAMPLES // TICK)) < 0.5
    levels = random.standard_normal((count, SAMPLES // TICK + 1))
    clean = np.take_along_axis(levels, jumps.cumsum(axis=1), axis=1).repeat(TICK, axis=1)
    return Signals(clean + NOISE * random.standard_normal(clean.shape), clean)


@keras.saving.register_keras_serializable(package="examples")
class TotalVariation(keras.layers.Layer):  # type: ignore[misc]
    """Signals (batch, n) to their restorations, by an operator D that starts at weight * differences."""

    def __init__(self, weight: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weight = weight
        self.supports_jit = False  # the solver is no TensorFlow graph that XLA could compile

    def build(self, input_shape: Any) -> None:
        """Make the weight D."""
        differences = np.diff(np.eye(input_shape[-1]), axis=0)
        self.D = self.add_weight(name="D", shape=differences.shape)
        self.D.assign(self.weight * differences)

    def call(self, y: Any) -> Any:
        """Solve the dual QP; the batch shares H = DD', g differs."""
        H = ops.matmul(self.D, ops.transpose(self.D))
        z = solve_qp(H, g=-ops.matmul(y, ops.transpose(self.D)), lb=-1.0, ub=1.0).x
        return y - ops.matmul(z, self.D)

    def get_config(self) -> dict[str, Any]:
        """The arguments, as Keras saves them."""
        return {**super().get_config(), "weight": self.weight}


def mean_squared_error(restored: Any, signals: Signals) -> float:
    """Of restored signals (count, SAMPLES)."""
    return float(np.mean((ops.convert_to_numpy(restored) - signals.clean) ** 2))


def draw(
    path: Path, history: dict[str, list[float]], test: Signals, plain: Any, layer: TotalVariation
) -> None:
    """Draw a test signal as restored by both, the learned D and the errors by epoch."""
    figure = Figure(figsize=(15, 4.4), dpi=150, layout="constrained")
    figure.suptitle("Total variation with a learned operator", color=INK, fontweight="bold")
    signal, operator, error = figure.subplots(1, 3, width_ratios=(1.7, 1, 1))
    learned = ops.convert_to_numpy(layer(test.noisy))
    gain = np.sum((plain - test.clean) ** 2 - (learned - test.clean) ** 2, axis=1)
    k = np.argsort(gain)[len(gain) // 2]
    signal.plot(test.noisy[k], ".", color=GREY, label="noisy")
    signal.step(range(SAMPLES), test.clean[k], where="mid", color=INK, lw=1, label="clean")
    signal.plot(plain[k], color=RED, label="plain total variation")
    signal.plot(learned[k], color=BLUE, label="learned operator")
    signal.set_title("the test signal with the median gain", color=INK)
    signal.set_xticks(range(0, SAMPLES + 1, TICK))
    signal.legend(frameon=False)
    finish(signal)
    D = ops.convert_to_numpy(layer.D)
    image = operator.imshow(D, cmap="RdBu", vmin=-0.2, vmax=0.2)
    operator.set_xticks(range(0, SAMPLES, TICK))
    operator.set_title("D as learned (colours end at 0.2)", color=INK)
    figure.colorbar(image, ax=operator, extend="both")
    epochs = range(1, len(history["loss"]) + 1)
    error.plot(epochs, history["loss"], "o-", color=GREY, label="training", markersize=4)
    error.plot(epochs, history["val_loss"], "o-", color=BLUE, label="test", markersize=4)
    error.axhline(
        mean_squared_error(plain, test), color=RED, ls=":", label="test, plain total variation"
    )
    error.set_ylim(0)
    error.set_title("mean squared error", color=INK)
    error.legend(frameon=False)
    finish_epochs(error)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Choose the weight of plain total variation, learn D from there, and compare the two."""
    parser = training_parser("denoising", "Learn a denoiser by a QP.", 30, ("--signals", 3000))
    args = parser.parse_args(argv)
    make_folder(parser, args.out)
    keras.utils.set_random_seed(args.seed)
    random = np.random.default_rng(args.seed)
    learn, test = make_signals(args.signals, random), make_signals(1000, random)
    warm_up(print)
    # In double precision: rounding in single may leave DD' with negative eigenvalues.
    candidates = [TotalVariation(float(weight), dtype="float64") for weight in WEIGHTS]
    layer = min(candidates, key=lambda plain: mean_squared_error(plain(learn.noisy), learn))
    plain = ops.convert_to_numpy(layer(test.noisy))
    model = keras.Sequential([layer])
    steps = args.epochs * -(-args.signals // BATCH)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(RATE, steps)), "mse")
    fit = model.fit(*learn, batch_size=BATCH, epochs=args.epochs, validation_data=test)
    (args.out / "history.json").write_text(json.dumps(fit.history) + "\n")
    draw(args.out / "denoising.png", fit.history, test, plain, layer)
    print(
        f"mean squared error of {len(test.clean):,} test signals: noise "
        f"{mean_squared_error(test.noisy, test):.4f}, plain total variation (weight "
        f"{layer.weight:.2f}) {mean_squared_error(plain, test):.4f}, learned operator "
        f"{mean_squared_error(layer(test.noisy), test):.4f}; results in {args.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
