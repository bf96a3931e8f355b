"""The cart-pole's benchmark: its Adam is Adam, its simulation the example's, its clocks run."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Any

import keras
import numpy as np
import pytest

from benchmarks import cartpole
from benchmarks.cartpole import HORIZON, Training, main
from benchmarks.cartpole_layers import Rollout, nbqp_simulator
from examples.cartpole_simulation import CartPole
from examples.cartpole_task import START, losses, noise, rollout
from tests.examples.test_cartpole import enumerated


def test_its_adam_is_that_of_keras() -> None:
    target = np.random.default_rng(0).uniform(3.0, 5.0, HORIZON)

    def bowl(forces: Any) -> Rollout:
        return Rollout(0.0, 2.0 * (forces - target[:, None]) ** 3, 0.0, 0.0, 0.0)

    training, variable = Training(bowl), keras.Variable(np.zeros(HORIZON), dtype="float64")
    adam = keras.optimizers.Adam()
    for rate in (0.5, 0.3, 0.1, 0.05):
        training.step(rate, np.zeros((HORIZON, 1)))
        adam.learning_rate = rate
        adam.apply([2.0 * (variable - target) ** 3], [variable])
    np.testing.assert_allclose(training.forces, variable, rtol=1e-5)


def test_its_rollout_is_that_of_an_enumerated() -> None:
    plant = CartPole()
    eps, _ = noise(0, 0, 40, 3)
    forces = 8.0 * eps
    found = nbqp_simulator(plant, 1e-10)(forces)
    start = np.tile(START, (3, 1))

    def loss(forces: Any) -> float:
        ends = rollout(plant, start, lambda t, _: forces[t], enumerated, range(40))
        return float(np.mean(losses(*ends)))

    assert found.loss == pytest.approx(loss(forces), rel=1e-8)
    direction = np.random.default_rng(1).standard_normal(forces.shape)
    h = 1e-6
    numeric = (loss(forces + h * direction) - loss(forces - h * direction)) / (2 * h)
    assert np.sum(found.gradient * direction) == pytest.approx(numeric, rel=1e-4)
    assert found.residual < 1e-9


def test_its_clocks_run_within_the_call_and_start_anew_for_the_next() -> None:
    simulate = nbqp_simulator(CartPole(), 1e-9)
    forces = np.zeros((30, 4))
    simulate(forces)
    for _ in range(2):
        begin = time.time()
        found = simulate(forces)
        assert min(found.forward, found.backward) > 0.0
        assert found.forward + found.backward < time.time() - begin


def test_a_run_without_peers_leaves_its_record(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would hold for the process, which other tests share.
    monkeypatch.setattr(cartpole, "import_tensorflow", lambda: None)
    files = [str(tmp_path / name) for name in ("record.json", "table.md")]
    arguments = ["--epochs", "3", "--samples", "2", "--peers"]
    assert main([*arguments, "--json", files[0], "--markdown", files[1]]) == 0
    record = json.loads(pathlib.Path(files[0]).read_text())
    (ours,) = record["layers"].values()
    assert len(ours["losses"]) == len(ours["forward"]) == len(ours["epoch"]) == 3
    assert record["first_gradient_error"] == {"nbqp": 0.0}
    assert "| nbqp " in capsys.readouterr().out
    assert pathlib.Path(files[1]).read_text().startswith("| layer")
