"""The denoising example: a short training, its layer against other solvers and differences."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from examples.denoising import NOISE, SAMPLES, TICK, TotalVariation, main, make_signals
from tests.core.oracles import Array, Data
from tests.core.references import reference_solve


def built_layer(operator: Array) -> TotalVariation:
    layer = TotalVariation(1.0, dtype="float64")
    layer.build((None, operator.shape[1]))
    layer.D.assign(operator)
    return layer


def random_operator(n: int, seed: int) -> Array:
    random = np.random.default_rng(seed)
    return 0.5 * np.diff(np.eye(n), axis=0) + 0.1 * random.standard_normal((n - 1, n))


def test_a_short_training_beats_plain_total_variation(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted: list[Any] = []
    fit = keras.Sequential.fit

    def watched(model: Any, *args: Any, **options: Any) -> Any:
        fitted.append((args, options))
        return fit(model, *args, **options)

    monkeypatch.setattr(keras.Sequential, "fit", watched)
    assert main(["--signals", "1000", "--epochs", "5", "--out", str(tmp_path)]) == 0
    ((learn, options),) = fitted
    assert not np.isin(learn[0], options["validation_data"].noisy).any()
    history = json.loads((tmp_path / "history.json").read_text())
    assert len(history["loss"]) == len(history["val_loss"]) == 5
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    shown = capsys.readouterr().out.splitlines()[-1]
    noise, plain, learned = (
        float(shown.partition(name)[2].split()[0].strip(",;"))
        for name in ("noise", "(weight 0.50)", "learned operator")
    )
    assert noise == pytest.approx(NOISE**2, rel=0.05)
    assert learned < 0.9 * plain < 0.3 * noise
    assert learned == pytest.approx(history["val_loss"][-1], abs=1e-4)
    assert (tmp_path / "denoising.png").read_bytes().startswith(b"\x89PNG")


def test_signals_jump_on_ticks_alone_and_half_of_these() -> None:
    noisy, clean = make_signals(2000, np.random.default_rng(1))
    jumps = np.diff(clean, axis=1) != 0.0
    on_ticks = np.arange(1, SAMPLES) % TICK == 0
    assert not jumps[:, ~on_ticks].any()
    assert jumps[:, on_ticks].mean() == pytest.approx(0.5, abs=0.02)
    assert np.std(noisy - clean) == pytest.approx(NOISE, rel=0.02)


def test_differences_give_the_total_variation_of_a_signal() -> None:
    """x minimises 1/2 |x - y|^2 + weight sum |x_k+1 - x_k| where z, which y - x determines, says so.

    With y - x = D'z, D = weight differences, weight z is minus the running sum of y - x: all of
    |z| <= 1, and z = sign(x_k+1 - x_k) where x jumps, are sufficient for a convex function.
    """
    weight, y = 0.5, make_signals(20, np.random.default_rng(2)).noisy
    x = np.asarray(TotalVariation(weight, dtype="float64")(y))
    z = -np.cumsum(y - x, axis=1) / weight
    np.testing.assert_allclose(z[:, -1], 0.0, atol=1e-7)
    z, jumps = z[:, :-1], np.diff(x, axis=1)
    assert np.abs(z).max() < 1.0 + 1e-7
    assert 100 < np.sum(np.abs(jumps) > 1e-5) < 0.5 * jumps.size
    np.testing.assert_allclose(z[jumps > 1e-5], 1.0, atol=1e-7)
    np.testing.assert_allclose(z[jumps < -1e-5], -1.0, atol=1e-7)


def test_the_dual_finds_what_clarabel_finds_by_the_primal() -> None:
    """min 1/2 |x - y|^2 + sum t   s.t.   -t <= Dx <= t, for a D with no structure."""
    n = 16
    D, signals = random_operator(n, seed=3), make_signals(4, np.random.default_rng(4)).noisy[:, :n]
    x = np.asarray(built_layer(D)(signals))
    rows = len(D)
    for own, y in zip(x, signals, strict=True):
        primal = Data(
            H=np.diag(np.repeat([1.0, 0.0], [n, rows])),
            g=np.concatenate([-y, np.ones(rows)]),
            C=np.block([[D, -np.eye(rows)], [-D, -np.eye(rows)]]),
            u=np.zeros(2 * rows),
        )
        np.testing.assert_allclose(own, reference_solve(primal).x[:n], atol=1e-6)


def test_the_gradient_of_the_loss_is_that_of_central_differences() -> None:
    n, h = 16, 1e-5
    D, signals = random_operator(n, seed=5), make_signals(6, np.random.default_rng(6))
    layer, noisy, clean = built_layer(D), signals.noisy[:, :n], signals.clean[:, :n]

    def loss() -> tf.Tensor:
        return tf.reduce_mean((layer(noisy) - clean) ** 2)

    with tf.GradientTape() as tape:
        value = loss()
    gradient = tape.gradient(value, layer.D.value).numpy()
    for seed in range(3):
        direction = np.random.default_rng(seed).standard_normal(D.shape)
        ends = []
        for step in (h, -h):
            layer.D.assign(D + step * direction)
            ends.append(float(loss()))
        slope = np.sum(gradient * direction)
        assert abs(slope) > 1e-3
        assert (ends[0] - ends[1]) / (2.0 * h) == pytest.approx(slope, rel=1e-4)


def test_a_learned_layer_is_saved_and_loaded(tmp_path: pathlib.Path) -> None:
    layer = built_layer(random_operator(SAMPLES, seed=7))
    model = keras.Sequential([keras.Input((SAMPLES,), dtype="float64"), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    noisy = make_signals(3, np.random.default_rng(8)).noisy
    np.testing.assert_allclose(loaded(noisy), layer(noisy), atol=1e-12)
