"""What optimizers and training states hold, carried by its place: against the same function.

The neurons of the network stand twice (doubled_network.py), so that merging changes no function:
copies of weights that are carried rightly are still the same function, whatever they were in.
"""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import serialization
from optax import contrib

import ifjax
from tests.fusion.doubled_network import (
    X,
    assert_same_function,
    doubled,
    find,
    fitted,
    gradient,
    network,
    shapes,
    trained,
)

pytestmark = pytest.mark.promotes(ranks="its own functions do", dtypes="its own functions do")


# Weights in disguise ----------------------------------------------------------------------------


COPIES = {
    "schedule free": (contrib.schedule_free_sgd(0.05), lambda s: s.z),
    "schedule free adamw": (contrib.schedule_free_adamw(0.05), lambda s: s.z),
    "schedule free, chained": (
        optax.chain(optax.clip(1.0), contrib.schedule_free(optax.adam(0.1), 0.1)),
        lambda s: s[1].z,
    ),
    "prodigy": (contrib.prodigy(0.1), lambda s: s[0].params0),
    "mechanize": (contrib.mechanize(optax.sgd(0.1)), lambda s: s.x0),
    "dog": (contrib.dog(1.0), lambda s: s[1].init_params),
    "dowg": (contrib.dowg(1.0), lambda s: s[1].init_params),
    "distance over gradients": (
        optax.scale_by_distance_over_gradients(),
        lambda s: s.init_params,
    ),
    "cocob": (contrib.cocob(), lambda s: s[1].init_particles),
    "madgrad": (contrib.madgrad(0.1), lambda s: s[0].x0),
    "sam": (contrib.sam(optax.sgd(0.1), optax.sgd(0.1)), lambda s: s.cache),
    "injected": (
        optax.inject_hyperparams(contrib.schedule_free_sgd)(learning_rate=0.05),
        lambda s: s.inner_state.z,
    ),
    "several steps": (
        optax.MultiSteps(contrib.prodigy(0.1), 2),
        lambda s: s.inner_opt_state[0].params0,
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_weights_are_merged_wherever_they_are(name):
    tx, (spec, maps) = COPIES[name][0], fitted()
    _, state = trained(tx, doubled())
    fields = ("z", "params0", "x0", "init_params", "init_particles", "cache")
    get = lambda s: next(v for f in fields if (v := find(s, f)) is not None)  # noqa: E731
    carried = ifjax.fuse_tree(state, spec, maps)
    small = ifjax.apply_maps(doubled(), spec, maps)
    assert shapes(carried) == shapes(tx.init(small))
    assert_same_function(get(carried), get(state))
    assert network(ifjax.fuse_tree({"mu": get(state)}, spec, maps)["mu"], X).shape == (5, 3)
    selected = ifjax.fuse_tree(state, spec, maps, kind="select")
    assert np.abs(network(get(selected), X) - network(get(state), X)).max() > 1e-2


def test_schedule_free_is_evaluated_as_the_same_function():
    tx, (spec, maps) = COPIES["schedule free"][0], fitted()
    p, state = trained(tx, doubled())
    small, carried = ifjax.apply_maps(p, spec, maps), ifjax.fuse_tree(state, spec, maps)
    final = contrib.schedule_free_eval_params
    assert_same_function(final(carried, small), final(state, p))


def test_lookahead_keeps_its_slow_weights():
    spec, maps = fitted()
    tx = optax.lookahead(optax.sgd(0.1, momentum=0.9), 3, 0.5)
    both = optax.LookaheadParams(doubled(), jax.tree.map(lambda x: 0.9 * x, doubled()))
    state = tx.init(both)
    small = ifjax.fuse_tree(both, spec, maps)
    assert_same_function(small.fast, both.fast)
    assert_same_function(small.slow, both.slow)
    carried = ifjax.fuse_tree(state, spec, maps)
    assert shapes(carried) == shapes(tx.init(small))
    tx.update(small.fast, carried, small)


@pytest.mark.parametrize(
    "name", ["ema", "ema_params", "swa", "target_params", "slow", "avg", "teacher", "modelEma"]
)
def test_averages_are_weights_by_their_name(name):
    spec, maps = fitted()
    assert_same_function(ifjax.fuse_tree({name: doubled()}, spec, maps)[name], doubled())


@pytest.mark.parametrize("name", ["grads", "gradient", "acc_grads", "grad_accum"])
def test_gradients_are_gradients_by_their_name(name):
    spec, maps = fitted()
    want = ifjax.apply_maps(gradient(doubled()), spec, maps, kind="gradients")
    got = ifjax.fuse_tree({name: gradient(doubled())}, spec, maps)[name]
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_accumulated_gradients_are_those_of_the_small_network():
    spec, maps = fitted()
    tx = optax.MultiSteps(optax.adam(0.1), 4)
    p = doubled()
    _, state = tx.update(gradient(p), tx.init(p), p)
    small = ifjax.apply_maps(p, spec, maps)
    _, want = tx.update(gradient(small), tx.init(small), small)
    got = ifjax.fuse_tree(state, spec, maps)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6), got.acc_grads, want.acc_grads
    )


# All of optax -----------------------------------------------------------------------------------


OTHERS = {
    "muon": contrib.muon(0.1),
    "adafactor": optax.adafactor(0.1),
    "sm3": optax.sm3(0.1),
    "novograd": optax.novograd(0.1),
    "rprop": optax.rprop(0.1),
    "adan": optax.adan(0.1),
    "optimistic": optax.optimistic_gradient_descent(0.1),
    "adadelta": optax.adadelta(0.1),
    "adagrad": optax.adagrad(0.1),
    "apply every": optax.chain(optax.apply_every(3), optax.sgd(0.1)),
    "ademamix": contrib.ademamix(0.1),
    "simplified ademamix": contrib.simplified_ademamix(0.1),
    "dadapt": contrib.dadapt_adamw(0.1),
    "freeze": optax.chain(
        optax.zero_nans(),
        optax.masked(optax.adam(0.1), {"a": True, "c": False, "b": False}),
    ),
    "multi transform": optax.multi_transform(
        {"x": contrib.muon(0.1), "y": contrib.schedule_free_sgd(0.1)},
        {"a": "x", "b": "x", "c": "y"},
    ),
    "schedules": optax.inject_hyperparams(optax.adamw)(
        learning_rate=optax.cosine_decay_schedule(0.1, 9), weight_decay=0.1
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_shapes_of_a_fresh_state_and_steps_go_on(name):
    tx, (spec, maps) = OTHERS[name], fitted()
    p, state = trained(tx, doubled())
    small, carried = ifjax.apply_maps(p, spec, maps), ifjax.fuse_tree(state, spec, maps)
    assert shapes(carried) == shapes(tx.init(small))
    updates, _ = tx.update(gradient(small), carried, small)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))
    if name == "sm3":  # without its class it is nothing that is known
        return
    again = serialization.to_state_dict(state)  # dictionaries, as from a checkpoint
    plain = ifjax.fuse_tree(again, spec, maps)
    want = serialization.to_state_dict(carried)
    jax.tree.map(np.testing.assert_array_equal, plain, want)


def test_accumulators_along_one_axis_are_those_of_the_kept_neurons():
    spec, maps = fitted()
    tx = optax.sm3(0.1)
    _, state = trained(tx, doubled())
    got = ifjax.fuse_tree(state, spec, maps)
    kept = np.asarray(maps["a"].targets)
    np.testing.assert_array_equal(got[0].mu["a"][1], state[0].mu["a"][1][kept])
    np.testing.assert_array_equal(got[0].mu["a"][0], state[0].mu["a"][0])
    np.testing.assert_array_equal(got[0].mu["b"][0], state[0].mu["b"][0][kept])
    full = ifjax.fuse_tree(state, spec, maps, keep_shape=True)
    np.testing.assert_array_equal(full[0].mu["a"][0], state[0].mu["a"][0])
    assert np.count_nonzero(full[0].mu["a"][1]) == 4


REFUSED = {
    "lbfgs": (optax.lbfgs(0.1), r"0 \(ScaleByLBFGSState\): .* pairs differences of weights"),
    "galore": (contrib.galore(0.1, rank=2), r"0 \(GaLoreState\): .* projections to a low rank"),
    "line search": (
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5, store_grad=True)),
        r"1 \(ScaleBy\w+LinesearchState\): .* value and the gradient of the full network",
    ),
    "average alone": (optax.ema(0.9), r"ema: .* an average of updates and one of weights look"),
    "flattened": (optax.flatten(optax.adam(0.1)), r"0/mu: an array of shape \(80,\) .* flattened"),
    "factored": (
        optax.adafactor(0.1, min_dim_size_to_factor=3),
        r"0/v_\w+/\w: expected shape .* factored into rows and columns \(adafactor\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("plain", [False, True])
def test_what_cannot_be_carried_says_why(name, plain):
    (tx, message), (spec, maps) = REFUSED[name], fitted()
    state = tx.init(doubled())
    if plain:
        state = serialization.to_state_dict(state)
    with pytest.raises(ValueError, match=message):
        ifjax.fuse_tree(state, spec, maps)
