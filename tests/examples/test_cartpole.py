"""The cart-pole example: its physics, its gradients, a short training, the files that it leaves."""

from __future__ import annotations

import itertools
import json
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from examples import cartpole
from examples.cartpole import CONTROLLERS, PLANT, gradient_of, main
from examples.cartpole_report import Recorder
from examples.cartpole_simulation import CartPole
from examples.cartpole_task import BOUNDS, EFFORT, GOAL, RECIPES, START, WEIGHTS, noise, succeeds

STEPS = 25


def enumerated(inverse_mass: Any, v_free: Any, bound: float = PLANT.largest_impulse) -> Any:
    """The impulses: of all choices of a bound or none for each, the one that is optimal."""
    least, impulses = np.full(len(v_free), np.inf), np.zeros_like(v_free)
    for choice in itertools.product((-1.0, 0.0, 1.0), repeat=2):
        side = np.array(choice)
        free = side == 0.0
        trial = np.tile(bound * side, (len(v_free), 1))
        slope = v_free + (inverse_mass @ trial[:, :, None])[:, :, 0]
        block = inverse_mass[:, free][:, :, free]
        trial[:, free] = np.linalg.solve(block, -slope[:, free, None])[:, :, 0]
        slope = v_free + (inverse_mass @ trial[:, :, None])[:, :, 0]
        violation = np.maximum(np.abs(trial) - bound, np.where(free, 0.0, side * slope)).max(axis=1)
        better = violation < least
        least[better], impulses[better] = violation[better], trial[better]
    assert least.max() < 1e-12
    return impulses


def simulate(start: Any, control: Any, steps: int, plant: CartPole = PLANT) -> Any:
    """The states (steps + 1, batch, 4) by the enumeration."""
    states = [np.array(start, float)]
    for step in range(steps):
        states.append(
            plant.step(
                states[-1],
                control(step, states[-1]),
                lambda H, v: enumerated(H, v, plant.largest_impulse),
            )
        )
    return np.array(states)


def energy(plant: CartPole, states: Any) -> Any:
    """Kinetic and potential energy, from the velocities of the two masses."""
    _, v, theta, omega = np.moveaxis(states, -1, 0)
    across = v + plant.length * omega * np.cos(theta)
    up = plant.length * omega * np.sin(theta)
    kinetic = 0.5 * plant.cart_mass * v**2 + 0.5 * plant.pole_mass * (across**2 + up**2)
    return kinetic - plant.pole_mass * plant.gravity * plant.length * np.cos(theta)


def no_force(step: int, states: Any) -> Any:
    return np.zeros(len(states))


@pytest.mark.parametrize("dt", [1e-3, 5e-4])
def test_without_friction_energy_is_kept_to_the_order_of_the_step(dt: float) -> None:
    plant = CartPole(friction=0.0, dt=dt)
    states = simulate([[0.0, 0.5, 2.5, 1.0]], no_force, round(2.0 / dt), plant)
    total = energy(plant, states)
    assert np.ptp(states[:, 0, 2]) > 3.0
    # The method is of first order: 4 J/s times the step.
    assert np.abs(total - total[0]).max() < 4.0 * dt


def test_friction_holds_what_pushes_less_than_it() -> None:
    rest = np.array([[0.0, 0.0, 0.0, 0.0]] * 2)
    states = simulate(rest, lambda step, states: np.array([0.199, 0.201]), 50)
    np.testing.assert_array_equal(states[:, 0], 0.0)
    assert states[-1, 1, 1] > 0.0
    # Gravity turns the pole by m g l sin theta, 0.49 Nm at most.
    largest = np.arcsin(PLANT.friction / (PLANT.pole_mass * PLANT.gravity * PLANT.length))
    tilted = np.array([[0.0, 0.0, largest - 0.01, 0.0], [0.0, 0.0, largest + 0.01, 0.0]])
    ends = simulate(tilted, no_force, 50)[-1]
    np.testing.assert_allclose(ends[0], tilted[0], rtol=0.0, atol=1e-14)
    assert ends[1, 2] < tilted[1, 2] - 1e-4


def test_friction_brings_a_swing_to_rest() -> None:
    states = simulate([[0.0, 1.0, 2.0, 5.0]], no_force, 600)
    total = energy(PLANT, states[::20])
    assert (np.diff(total, axis=0) < 1e-12).all()
    assert total[-1] < total[0] - 1.0
    np.testing.assert_allclose(states[-1, 0, [1, 3]], 0.0, atol=1e-14)


def test_the_layer_finds_the_impulses_of_the_enumeration() -> None:
    rng = np.random.default_rng(0)
    theta, scale = rng.uniform(-4.0, 4.0, 300), 10.0 ** rng.uniform(-3.0, 1.0, (300, 1))
    mass = np.empty((300, 2, 2))
    mass[:, 0, 0], mass[:, 1, 1] = PLANT.cart_mass + PLANT.pole_mass, PLANT.pole_mass * 0.5**2
    mass[:, 0, 1] = mass[:, 1, 0] = PLANT.pole_mass * 0.5 * np.cos(theta)
    inverse, v_free = np.linalg.inv(mass), scale * rng.standard_normal((300, 2))
    expected = enumerated(inverse, v_free)
    at_bounds = np.isclose(np.abs(expected), PLANT.largest_impulse, rtol=1e-12)
    assert set(at_bounds.sum(axis=1)) == {0, 1, 2}
    np.testing.assert_allclose(cartpole.friction(inverse, v_free), expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 8.0])
@pytest.mark.parametrize("name", CONTROLLERS)
def test_gradients_are_those_of_the_simulation(name: str, sigma: float) -> None:
    """Central differences of the mean loss of the same perturbed trajectories, friction enumerated."""
    rng = np.random.default_rng(1)
    keras.utils.set_random_seed(1)
    controller = CONTROLLERS[name](STEPS)
    weights = controller.trainable_variables
    size = 6.0 if name == "torques" else 0.02
    base = [np.array(weight) + size * rng.standard_normal(weight.shape) for weight in weights]
    starts = [-1.0, 0.0, 0.3, 0.0] + 0.3 * rng.standard_normal((5, 4))
    eps = rng.standard_normal((STEPS, 5))

    def simulated(values: list[Any]) -> tuple[Any, Any]:
        for weight, value in zip(weights, values, strict=True):
            weight.assign(value)
        forces = []

        def control(step: int, states: Any) -> Any:
            forces.append(np.asarray(controller(tf.constant(step), states)) + sigma * eps[step])
            return forces[-1]

        states = simulate(starts, control, STEPS)
        distances = (states[-1] - GOAL) ** 2 @ WEIGHTS
        return distances + EFFORT * np.square(forces).sum(axis=0), states

    each, states = simulated(base)
    sticks = np.abs(states[1:, :, 3]) < 1e-12
    assert sticks.any()
    assert not sticks.all()
    smoothed, slopes, unperturbed = gradient_of(controller, STEPS)(
        tf.constant(starts), tf.constant(sigma, "float64"), tf.constant(eps)
    )
    assert float(smoothed) == pytest.approx(each[:-1].mean(), rel=1e-6)
    assert float(unperturbed) == pytest.approx(each[-1], rel=1e-6)
    h = 1e-6
    for _ in range(4):
        direction = [rng.standard_normal(value.shape) for value in base]
        plus, minus = (
            simulated([b + s * d for b, d in zip(base, direction, strict=True)])[0][:-1].mean()
            for s in (h, -h)
        )
        slope = sum(np.vdot(g, d) for g, d in zip(slopes, direction, strict=True))
        assert slope == pytest.approx((plus - minus) / (2.0 * h), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_without_smoothing_there_is_no_gradient_at_rest(name: str) -> None:
    """A force that friction holds moves nothing: the loss is constant around 0, but for the effort."""
    states = simulate([START] * 2, lambda step, states: np.array([0.15, -0.15]), STEPS)
    np.testing.assert_array_equal(states, np.broadcast_to(START, states.shape))
    controller = CONTROLLERS[name](STEPS)
    gradient = gradient_of(controller, STEPS)
    eps = np.pad(noise(0, 0, STEPS, 4)[0], ((0, 0), (0, 1)))
    norms = {
        sigma: float(tf.linalg.global_norm(gradient(np.array([START] * 5), sigma, eps)[1]))
        for sigma in (np.float64(0.0), np.float64(10.0))
    }
    assert norms[0.0] < 1e-13  # rounding
    assert norms[10.0] > 1e-2


def test_schedules_end_at_zero_and_noise_is_that_of_its_seed() -> None:
    for recipe in RECIPES.values():
        for schedule, first in (
            (recipe.rate_at, recipe.learning_rate),
            (recipe.sigma_at, recipe.sigma),
        ):
            values = [schedule(epoch, 100) for epoch in range(101)]
            assert values[0] == first
            assert values[-1] == 0.0
            assert (np.diff(values) < 0.0).all()
        # A parabola and a cosine half way.
        assert recipe.sigma_at(50, 100) == pytest.approx(recipe.sigma / 4.0)
        assert recipe.rate_at(50, 100) == pytest.approx(recipe.learning_rate / 2.0)
    eps, spread = noise(3, 1, 4, 1000)
    np.testing.assert_array_equal(eps, noise(3, 1, 4, 1000)[0])
    assert not np.isin(eps, [*noise(3, 2, 4, 1000)[0], *noise(4, 1, 4, 1000)[0]]).any()
    assert eps.std() == pytest.approx(1.0, abs=0.05)
    assert spread.shape == (1000, 4)


def test_success_is_within_every_bound() -> None:
    inside, outside = 0.99 * np.diag(BOUNDS), 1.01 * np.diag(BOUNDS)
    finals = np.concatenate([GOAL + inside, GOAL - inside, GOAL + outside, GOAL - outside])
    assert succeeds(finals).tolist() == [True] * 8 + [False] * 8


@pytest.mark.parametrize(("name", "rate"), [("torques", "2"), ("policy", "0.01")])
def test_a_short_training_learns_and_leaves_its_files(
    name: str, rate: str, tmp_path: pathlib.Path
) -> None:
    """In 1 s, by 40 epochs, cart and pole come part of the way; success takes more of both."""
    arguments = ["--controller", name, "--epochs", "40", "--horizon", "100", "--samples", "8"]
    assert main([*arguments, "--learning-rate", rate, "--out", str(tmp_path)]) == 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert {key: len(values) for key, values in history.items()} == dict.fromkeys(
        ("loss", "smoothed", "sigma", "seconds"), 40
    )
    assert history["loss"][0] == pytest.approx(1.0 + np.pi**2)
    trajectory = np.load(tmp_path / "trajectory.npz")
    states, forces = trajectory["states"], trajectory["forces"]
    np.testing.assert_allclose(
        simulate([START], lambda step, states: forces[step : step + 1], 100)[:, 0],
        states,
        rtol=0.0,
        atol=1e-5,
    )
    loss = (states[-1] - GOAL) ** 2 @ WEIGHTS + EFFORT * (forces**2).sum()
    assert loss == pytest.approx(history["loss"][-1], rel=0.1)
    assert loss < 0.6 * history["loss"][0]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "swing-up.gif").read_bytes().startswith(b"GIF89a")


@pytest.mark.parametrize("epochs", [0, 2])
def test_an_interrupted_training_leaves_what_it_has(
    epochs: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Recorder.add

    def interrupted(self: Recorder, **row: float) -> None:
        if len(self.history.get("loss", [])) == epochs:
            raise KeyboardInterrupt
        add(self, **row)

    monkeypatch.setattr(Recorder, "add", interrupted)
    arguments = ["--horizon", "4", "--samples", "2", "--out", str(tmp_path)]
    assert main(arguments) == (0 if epochs else 130)
    assert {path.name for path in tmp_path.iterdir()} == (
        {"history.json", "trajectory.npz", "curves.png", "swing-up.gif"} if epochs else set()
    )


def test_a_policy_is_trained_from_starts_around_the_one_that_is_shown(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def watched(controller: Any, horizon: int) -> Any:
        gradient = gradient_of(controller, horizon)

        def run(starts: Any, sigma: Any, eps: Any) -> Any:
            seen.append(starts)
            return gradient(starts, sigma, eps)

        return run

    monkeypatch.setattr(cartpole, "gradient_of", watched)
    options = ["--controller", "policy", "--epochs", "1", "--horizon", "2", "--samples", "300"]
    assert main([*options, "--out", str(tmp_path)]) == 0
    *others, shown = seen[-1]
    np.testing.assert_array_equal(shown, START)
    np.testing.assert_allclose(np.std(others, axis=0), 0.1, atol=0.02)


def test_a_bad_command_line_ends_with_a_message(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for arguments, message in (
        (["--epochs", "0"], "expected an integer of at least 1"),
        (["--controller", "none"], "invalid choice"),
        (["--out", str(tmp_path / "file")], "--out: expected a folder"),
        (["--seed", "-1"], "expected an integer of at least 0, got -1"),
        (["--samples", "2.5"], "expected an integer of at least 1, got 2.5"),
        (["--learning-rate", "nan"], "expected a number above 0, got nan"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
