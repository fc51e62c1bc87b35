"""Schedules at their corners, and what weight decay touches."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ifjax.training import OptimizerConfig, make_optimizer, make_schedule


def test_cosine_with_warmup_equals_the_formula() -> None:
    config = OptimizerConfig(learning_rate=0.4, warmup=0.2, schedule="cosine")
    schedule = make_schedule(config, steps=50)
    found = [float(schedule(t)) for t in range(51)]
    expected = [
        0.4 * t / 10 if t < 10 else 0.2 * (1 + np.cos(np.pi * (t - 10) / 40)) for t in range(51)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_step_falls_at_half_and_at_three_quarters() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup=0.0, schedule="step")
    schedule = make_schedule(config, steps=40)
    found = [float(schedule(t)) for t in (0, 19, 21, 29, 31, 39)]
    np.testing.assert_allclose(found, [1.0, 1.0, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_milestones_are_steps_of_the_whole_run() -> None:
    config = OptimizerConfig(
        learning_rate=1.0, warmup=0.1, schedule="step", milestones=(15, 30), gamma=0.5
    )
    schedule = make_schedule(config, steps=40)
    found = [float(schedule(t)) for t in (2, 4, 14, 16, 29, 31)]
    np.testing.assert_allclose(found, [0.5, 1.0, 1.0, 0.5, 0.5, 0.25], rtol=1e-6)


@pytest.mark.parametrize("milestones", [(2, 20), (20, 40)])
def test_milestones_outside_of_the_run_are_refused(milestones: tuple[int, ...]) -> None:
    config = OptimizerConfig(warmup=0.1, schedule="step", milestones=milestones)
    with pytest.raises(ValueError, match="between the warm-up's 4 steps and the run's 40"):
        make_schedule(config, steps=40)


@pytest.mark.parametrize("milestones", [(0, 3), (4, 4), (5, 3)])
def test_milestones_must_rise(milestones: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be positive and rise"):
        OptimizerConfig(schedule="step", milestones=milestones)


def test_long_gradients_are_scaled_down_and_short_ones_are_not() -> None:
    config = OptimizerConfig(momentum=0.0, weight_decay=0.0, clip_norm=1.0)
    optimizer = make_optimizer(config, 1.0)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    for size, expected in ((10.0, 1.0), (0.1, 0.1)):
        gradient = {"a": jnp.array([0.6 * size]), "b": jnp.array([-0.8 * size])}
        change, _ = optimizer.update(gradient, optimizer.init(params), params)
        np.testing.assert_allclose(change["a"], [-0.6 * expected], rtol=1e-6)
        np.testing.assert_allclose(change["b"], [0.8 * expected], rtol=1e-6)


def test_constant_stays_and_one_step_is_enough() -> None:
    schedule = make_schedule(OptimizerConfig(learning_rate=0.3, schedule="constant"), steps=1)
    np.testing.assert_allclose(schedule(0), 0.3, rtol=1e-6)


def test_a_short_run_without_warmup_steps_begins_at_the_peak() -> None:
    schedule = make_schedule(OptimizerConfig(learning_rate=0.3, warmup=0.05), steps=3)
    np.testing.assert_allclose(schedule(0), 0.3, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_shrinks_kernels_only(name: str) -> None:
    optimizer = make_optimizer(OptimizerConfig(name=name, weight_decay=0.5), 0.1)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zeros = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    change, _ = optimizer.update(zeros, optimizer.init(params), params)
    after = optax.apply_updates(params, change)
    assert (after["kernel"] < 1.0).all()
    np.testing.assert_array_equal(after["bias"], params["bias"])


def test_sgd_equals_nesterov_momentum_written_out() -> None:
    optimizer = make_optimizer(OptimizerConfig(momentum=0.9, weight_decay=0.01), 0.1)
    w = np.array([[1.0, -2.0]])
    params = {"w": jnp.asarray(w, jnp.float32)}
    state, velocity = optimizer.init(params), np.zeros_like(w)
    for gradient in ([[0.5, 0.2]], [[-0.1, 0.3]], [[0.0, 0.0]]):
        change, state = optimizer.update({"w": jnp.array(gradient)}, state, params)
        params = optax.apply_updates(params, change)
        decayed = np.array(gradient) + 0.01 * w
        velocity = 0.9 * velocity + decayed
        w = w - 0.1 * (decayed + 0.9 * velocity)
    np.testing.assert_allclose(params["w"], w, rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", -1.0, "learning_rate must be finite"),
        ("learning_rate", float("nan"), "learning_rate must be finite"),
        ("momentum", 1.0, "momentum must lie"),
        ("weight_decay", -1e-4, "weight_decay must be finite"),
        ("warmup", 1.0, "warmup must lie"),
        ("gamma", 0.0, "gamma must lie"),
        ("clip_norm", 0.0, "clip_norm must be positive"),
        ("milestones", (3,), "milestones are for the schedule 'step'"),
    ],
)
def test_bad_values_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("name", "lion"), ("schedule", "linear")])
def test_unknown_words_are_refused(field: str, value: str) -> None:
    """By the class itself, or before it where annotations are checked at run time."""
    with pytest.raises((ValueError, TypeError), match=value):
        OptimizerConfig(**{field: value})


def test_a_schedule_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one step, got 0"):
        make_schedule(OptimizerConfig(), steps=0)
