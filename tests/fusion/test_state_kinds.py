"""Names of weights that look like names of moments, and the other way round."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from flax.training import train_state
from optax import contrib

import ifjax
from ifjax.fusion.state_kinds import kind_by_name, state_of

NAMED = (
    "model_v2 net_v1 best_model_v3 target_v2 student_v1 teacher_n model_nu model_m params_v2 "
    "paramsV2 weights_n ema_v2 ema_m swa_n0 avg_mu net_exp model_buf sq_net netN model_v "
    # networks that are called after what they do
    "momentum_encoder momentumEncoder momentum_encoder2 variance_net velocity_model trace_network "
    "mask_generator momentum_backbone hessian_critic"
)
AMBIGUOUS = "momentum_params momentum_variables paramsMomentumWeights"
# Nothing in them is known: they are the parameters where they stand alone beside an optimizer.
UNNAMED = "resnet_v2 ensemble_m0 generator_m exp1 exp_3 vN v2 m0 n_1 critic_v nu_net1x buf0"
MOMENTS = (
    "v m n nu mu exp buf sq V exp_avg exp_avg_sq max_exp_avg_sq avg_sq grad_sq expAvgSq momentum "
    "momentum_buffer second_moment square_avg velocity1"
)


@pytest.mark.parametrize("name", NAMED.split())
def test_versions_and_sizes_of_weights_are_weights(name: str) -> None:
    assert kind_by_name([name]) == "weights"
    assert kind_by_name(["checkpoint", name, "batch_stats"]) == "weights"


@pytest.mark.parametrize("name", UNNAMED.split())
def test_a_short_word_in_a_name_says_nothing(name: str) -> None:
    assert kind_by_name([name]) is None
    assert kind_by_name([name, "ema"]) == "weights"


@pytest.mark.parametrize("name", MOMENTS.split())
def test_moments_are_selected(name: str) -> None:
    assert kind_by_name([name]) == "select"
    assert kind_by_name([name, "ema"]) is None


@pytest.mark.parametrize("name", AMBIGUOUS.split())
def test_momentum_of_parameters_may_be_their_average(name: str) -> None:
    assert kind_by_name([name]) is None
    assert kind_by_name(["opt_state", name]) == "select"


@pytest.mark.parametrize("name", ["encoder_momentum", "model_velocity", "critic_variance", "mask"])
def test_moments_of_a_network_are_moments(name: str) -> None:
    assert kind_by_name([name]) == "select"
    assert kind_by_name(["encoder", name, "encoder"]) == "select"


def test_gradients_with_a_version_are_gradients() -> None:
    assert kind_by_name(["grads_v2"]) == "gradients"


@pytest.mark.parametrize("name", ["v_hat", "m1", "nu_max", "exp_inf", "buf0", "v2", "exp_avg"])
def test_inside_of_an_optimizer_a_short_word_will_do(name: str) -> None:
    assert kind_by_name(["opt_state", "0", name]) == "select"
    assert kind_by_name(["0", name], inside=True) == "select"
    assert kind_by_name(["model_v2", "opt_state", name]) == "select"


def test_the_optimizer_stands_inside_of_what_holds_it() -> None:
    """The version of the model that holds an optimizer does not say what is in it."""
    assert kind_by_name(["exp1", "opt_state", "z"], inside=True) is None
    assert kind_by_name(["exp1", "opt_state", "nu"], inside=True) == "select"


@pytest.mark.parametrize("optimizer", [optax.amsgrad(0.1), contrib.ademamix(0.1)])
def test_short_fields_of_known_states_without_their_class(
    optimizer: optax.GradientTransformation,
) -> None:
    plain = serialization.to_state_dict(optimizer.init(jnp.ones(2)))["0"]
    assert state_of("dict", plain) in ("ScaleByAmsgradState", "ScaleByAdemamixState")


# Carried --------------------------------------------------------------------------------------

X = jnp.asarray(np.random.default_rng(1).standard_normal((5, 6)), jnp.float32)
IMAGES = jnp.asarray(np.random.default_rng(2).standard_normal((2, 6, 6, 2)), jnp.float32)


class Net(nn.Module):
    """A convolution, a batch norm and a dense layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        return nn.Dense(3)(x.mean((1, 2)))


class Mlp(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(jnp.tanh(nn.Dense(8)(x)))


class State(train_state.TrainState):
    """With a second model."""

    model_v2: Any


@functools.cache
def fitted(net: nn.Module) -> tuple[Any, Any, Any, Any]:
    """Variables, spec, maps and the variables as they are fused."""
    x = X if isinstance(net, Mlp) else IMAGES
    variables = net.init(jax.random.key(0), x)
    spec = ifjax.trace(net.apply, variables, x).spec(0.5, solver="nearest")
    maps = ifjax.transport_maps(variables, spec)
    return variables, spec, maps, ifjax.apply_maps(variables, spec, maps)


def assert_equal(got: Any, want: Any) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), got, want)


@pytest.mark.parametrize("name", [*NAMED.split(), *UNNAMED.split()])
def test_they_are_merged_beside_an_optimizer(name: str) -> None:
    variables, spec, maps, small = fitted(Mlp())
    adam = optax.adam(0.1).init(variables)
    got = ifjax.fuse_tree({name: variables, "opt_state": adam}, spec, maps)
    assert_equal(got[name], small)
    assert_equal(ifjax.fuse_params(variables, spec), small)
    selected = ifjax.apply_maps(variables, spec, maps, kind="select")
    one, other = (x["params"]["Dense_0"]["kernel"] for x in (selected, small))
    assert float(jnp.abs(one - other).max()) > 1e-2
    want = ifjax.apply_maps(adam[0].nu, spec, maps, kind="select")
    assert_equal(got["opt_state"][0].nu, want)


@pytest.mark.parametrize("name", ["model_v2", "netV1", "exp1"])
def test_variables_with_statistics_are_merged(name: str) -> None:
    variables, spec, maps, small = fitted(Net())
    adam = optax.adam(0.1).init(variables["params"])
    got = ifjax.fuse_tree({name: variables, "opt_state": adam}, spec, maps)
    assert_equal(got[name], small)
    if name != "exp1":
        assert_equal(ifjax.fuse_tree({name: variables}, spec, maps)[name], small)


def test_a_second_model_of_a_train_state_is_merged() -> None:
    variables, spec, maps, small = fitted(Mlp())
    params = variables["params"]
    state = State.create(
        apply_fn=Mlp().apply, params=params, tx=optax.amsgrad(0.1), model_v2=params
    )
    got = ifjax.fuse_tree(state, spec, maps)
    assert_equal(got.model_v2, small["params"])
    assert_equal(got.params, small["params"])
