"""What optimizers and training states hold, carried by its place: against the same function.

Every neuron of the network stands twice, so that merging changes no function: copies of weights
that are carried rightly are still the same function, whatever they were in.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training import train_state
from optax import contrib

import ifjax
from ifjax.frameworks import cut_nnx, equinox_function, nnx_function

pytestmark = pytest.mark.promotes(ranks="its own functions do", dtypes="its own functions do")

N = 8
X = jnp.asarray(np.random.default_rng(1).standard_normal((5, 6)), jnp.float32)


def network(p, x):
    return jnp.tanh(x @ p["a"] + p["c"]) @ p["b"]


def doubled(seed=0):
    rng = np.random.default_rng(seed)
    a, c, b = (rng.standard_normal(s).astype(np.float32) for s in ((6, 4), (4,), (4, 3)))
    p = {"a": np.repeat(a, 2, 1), "c": np.repeat(c, 2), "b": np.repeat(b, 2, 0) / 2}
    return jax.tree.map(jnp.asarray, p)


@functools.cache
def fitted(**method):
    spec = ifjax.trace(network, doubled(), X).spec(
        0.5, solver="exact", **{"merge": "preserving", **method}
    )
    scores = {"a": np.tile([2.0, 1.0], 4)}
    return spec, ifjax.transport_maps(doubled(), spec, scores=scores)


def gradient(p, seed=0):
    """Of a loss; equal for equal neurons, as the loss of training is."""
    del seed
    return jax.grad(lambda p: ((network(p, X) - 1) ** 2).mean())(p)


def trained(tx, p, steps=3):
    state = tx.init(p)
    for _ in range(steps):
        updates, state = tx.update(gradient(p), state, p)
        p = optax.apply_updates(p, updates)
    return p, state


def assert_same_function(small, full):
    np.testing.assert_allclose(network(small, X), network(full, X), atol=1e-5)


def shapes(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


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


def find(state, name):
    """The state with a field, wherever it is."""
    if hasattr(state, name):
        return getattr(state, name)
    children = state if isinstance(state, tuple) else ()
    return next((f for f in (find(c, name) for c in children) if f is not None), None)


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


# Of a size that a parameter happens to have -------------------------------------------------------


class Recorded(NamedTuple):
    """A state with arrays as long as a bias."""

    count: Any
    history: Any
    mu: Any


def recorded(p):
    return Recorded(jnp.zeros(N, jnp.int32), jnp.arange(float(N)), jax.tree.map(jnp.ones_like, p))


def test_a_vector_as_long_as_a_bias_stays():
    spec, maps = fitted()
    got = ifjax.fuse_tree(recorded(doubled()), spec, maps)
    np.testing.assert_array_equal(got.history, jnp.arange(float(N)))
    assert got.count.shape == (N,)
    assert got.mu["c"].shape == (4,)


def test_it_stays_beside_parameters_that_are_a_list():
    """There the places in the parameters and those in a chain are numbers alike."""
    names = ("a", "c", "b")

    def as_list(p, x):
        return network(dict(zip(names, p, strict=True)), x)

    p = [doubled()[k] for k in names]
    spec = ifjax.trace(as_list, p, X).spec(0.5, solver="nearest")
    maps = ifjax.transport_maps(p, spec)
    state = (optax.EmptyState(), jnp.arange(float(N)), optax.adam(0.1).init(p), [None, jnp.ones(N)])
    got = ifjax.fuse_tree(state, spec, maps)
    assert got[1].shape == (N,)
    assert [x.shape for x in got[2][0].mu] == [(6, 4), (4,), (4, 3)]
    assert got[3][1].shape == (N,)
    masked = optax.masked(optax.adam(0.1), [False, True, False]).init(p)
    assert ifjax.fuse_tree(masked, spec, maps).inner_state[0].mu[1].shape == (4,)


def test_one_record_per_parameter_stays():
    spec, maps = fitted()
    state = {"norms": jax.tree.map(lambda x: jnp.zeros(5), doubled())}
    assert shapes(ifjax.fuse_tree(state, spec, maps)) == shapes(state)
    with pytest.raises(ValueError, match=r"norms/\w: expected shape .* say kind="):
        ifjax.fuse_tree({"norms": jax.tree.map(lambda x: jnp.zeros(8), doubled())}, spec, maps)
    kept = {"norms": jax.tree.map(lambda x: jnp.zeros(8), doubled())}
    assert shapes(ifjax.fuse_tree(kept, spec, maps, {"norms": "keep"})) == shapes(kept)


# Masks and quantised moments ----------------------------------------------------------------------


MASKS = [(d, k) for d in ("bool", "int8", "uint8", "int32") for k in (None, "weights", "gradients")]


@pytest.mark.parametrize(
    ("dtype", "kind"), [*MASKS, ("float8_e4m3fn", None), ("float8_e5m2", "select")]
)
def test_masks_and_quantised_trees_are_selected(dtype, kind):
    spec, maps = fitted()
    kept = np.asarray(maps["a"].targets)
    rng = np.random.default_rng(0)
    values = {
        k: jnp.asarray(rng.integers(0, 2, x.shape)).astype(dtype) for k, x in doubled().items()
    }
    got = ifjax.fuse_tree({"state": values, "count": jnp.zeros((), dtype)}, spec, maps, kind)
    np.testing.assert_array_equal(got["state"]["a"].astype("f4"), values["a"][:, kept].astype("f4"))
    np.testing.assert_array_equal(got["state"]["c"].astype("f4"), values["c"][kept].astype("f4"))
    np.testing.assert_array_equal(got["state"]["b"].astype("f4"), values["b"][kept].astype("f4"))
    assert got["state"]["a"].dtype == dtype


def test_scales_of_quantised_moments_go_with_them():
    """One per row or column, of which the other axis is one."""
    spec, maps = fitted()
    kept = np.asarray(maps["a"].targets)
    scales = {"a": jnp.arange(8.0)[None], "c": jnp.ones(1), "b": jnp.arange(3.0)[None]}
    got = ifjax.fuse_tree({"mu_scale": scales}, spec, maps, kind={"mu*": "select"})["mu_scale"]
    np.testing.assert_array_equal(got["a"], scales["a"][:, kept])
    np.testing.assert_array_equal(got["c"], scales["c"])
    np.testing.assert_array_equal(got["b"], scales["b"])


# What cannot be told ------------------------------------------------------------------------------


class Own(NamedTuple):
    """A state of one's own."""

    p: Any
    q: Any


def own():
    return optax.GradientTransformation(
        lambda p: Own(jax.tree.map(jnp.zeros_like, p), p), lambda u, s, p=None: (u, s)
    )


def test_what_cannot_be_told_is_refused_and_can_be_said():
    spec, maps = fitted()
    state = (optax.EmptyState(), Own(gradient(doubled()), doubled()))
    with pytest.raises(ValueError, match=r"1/p: .* nothing says what it holds: say kind={'1/p': "):
        ifjax.fuse_tree(state, spec, maps)
    with pytest.raises(ValueError, match=r"the tree: .* nothing says .*\{'\*': 'weights'\}"):
        ifjax.fuse_tree(doubled(), spec, maps)
    for kind in ({"*/q": "weights", "*": "select"}, {"1/q": "weights", "1": "select"}):
        got = ifjax.fuse_tree(state, spec, maps, kind)[1]
        assert_same_function(got.q, doubled())
        want = ifjax.apply_maps(state[1].p, spec, maps, kind="select")
        jax.tree.map(np.testing.assert_array_equal, got.p, want)
    kept = ifjax.fuse_tree(state, spec, maps, {"*/q": "weights", "*/p": "keep"})[1]
    assert kept.p["a"].shape == (6, 8)
    with pytest.raises(ValueError, match=r"pattern '\*/r' matches nothing .* 1/p"):
        ifjax.fuse_tree(state, spec, maps, {"*/r": "weights", "*": "select"})
    with pytest.raises(ValueError, match=r"got 'moments'"):
        ifjax.fuse_tree(state, spec, maps, {"*": "moments"})
    with pytest.raises(ValueError, match=r"kind must be one of weights, gradients, select"):
        ifjax.fuse_tree(state, spec, maps, "moments")


def test_an_optimizer_of_ones_own_says_it_itself():
    spec, maps = fitted()
    tx = optax.chain(optax.clip(1.0), own())
    _, state = trained(tx, doubled())
    got = ifjax.fuse_tree(state, spec, maps, optimizer=tx, params=doubled())[1]
    assert_same_function(got.q, doubled())
    assert got.p["a"].shape == (6, 4)
    with pytest.raises(ValueError, match="needs params="):
        ifjax.fuse_tree(state, spec, maps, optimizer=tx)


# Training states ----------------------------------------------------------------------------------


class Net(nn.Module):
    """A convolution, a batch norm and a dense layer."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x.mean((1, 2)))


class State(train_state.TrainState):
    """With statistics and averages."""

    batch_stats: Any
    ema_params: Any


IMAGES = jnp.asarray(np.random.default_rng(2).standard_normal((2, 6, 6, 2)), jnp.float32)


@pytest.mark.parametrize("traced", ["variables", "jitted"])
def test_a_train_state_each_part_right(traced):
    net = Net()
    variables = net.init(jax.random.key(0), IMAGES)
    tx = optax.chain(optax.clip(1.0), contrib.schedule_free_adamw(0.1))
    ema = jax.tree.map(lambda x: 0.5 * x, variables["params"])
    state = State.create(apply_fn=net.apply, tx=tx, ema_params=ema, **variables)
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    spec = ifjax.trace(net.apply, variables, IMAGES).spec(0.5, solver="nearest")
    full = {"params": state.params, "batch_stats": state.batch_stats}
    maps = ifjax.transport_maps(full, spec)
    carry = ifjax.fuse_tree if traced == "variables" else jax.jit(ifjax.fuse_tree, static_argnums=1)
    small = carry(state, spec, maps)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    want = ifjax.apply_maps(full, spec, maps)
    jax.tree.map(close, small.params, want["params"])
    jax.tree.map(close, small.batch_stats, want["batch_stats"])
    of_ema = ifjax.apply_maps({**full, "params": ema}, spec, maps)["params"]
    jax.tree.map(close, small.ema_params, of_ema)
    of_z = ifjax.apply_maps({**full, "params": state.opt_state[1].z}, spec, maps)["params"]
    jax.tree.map(close, small.opt_state[1].z, of_z)
    assert int(small.step) == 1
    assert small.tx is state.tx
    got = small.apply_fn({"params": small.params, "batch_stats": small.batch_stats}, IMAGES)
    close(got, ifjax.shrink(net.apply, spec)(want, IMAGES))
    small = small.apply_gradients(grads=jax.tree.map(jnp.ones_like, small.params))
    again = carry(state, spec, maps)
    assert again.apply_fn is small.apply_fn  # nothing is compiled twice
    in_place = ifjax.fuse_tree(state, spec, maps, keep_shape=True)
    assert in_place.apply_fn == state.apply_fn
    assert in_place.params["Conv_0"]["kernel"].shape == (3, 3, 2, 8)


class Mlp(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(jnp.tanh(nn.Dense(N)(x)))


@pytest.mark.parametrize("form", ["variables", "params", "within"])
def test_the_function_of_a_state_takes_what_it_took(form):
    """The spec may be of module.apply, or of a function of the parameters alone."""
    net = Mlp()
    variables = net.init(jax.random.key(0), X)
    apply_fn, f, p = {
        "variables": (net.apply, net.apply, variables),
        "params": (net.apply, lambda p, x: net.apply({"params": p}, x), variables["params"]),
        "within": (lambda p, x: net.apply({"params": p}, x), net.apply, variables),
    }[form]
    state = train_state.TrainState.create(
        apply_fn=apply_fn, params=variables["params"], tx=optax.adam(0.1)
    )
    spec = ifjax.trace(f, p, X).spec(0.5, method="prune")
    maps = ifjax.transport_maps(p, spec)
    small = ifjax.fuse_tree(state, spec, maps)
    want = ifjax.shrink(f, spec)(ifjax.apply_maps(p, spec, maps), X)
    given = small.params if form == "within" else {"params": small.params}
    np.testing.assert_allclose(small.apply_fn(given, X), want, atol=1e-6)


def test_a_train_state_without_a_function_and_with_an_optimizer_of_ones_own():
    spec, maps = fitted()
    state = train_state.TrainState.create(apply_fn=None, params=doubled(), tx=own())
    small = ifjax.fuse_tree(state, spec, maps)
    assert small.apply_fn is None
    assert_same_function(small.params, doubled())
    assert_same_function(small.opt_state.q, doubled())


class Together(NamedTuple):
    """As in examples of haiku."""

    params: Any
    avg_params: Any
    opt_state: Any


@pytest.mark.parametrize("form", ["tuple", "list", "dict", "named", "nested", "beside"])
def test_a_tree_of_parameters_and_optimizer(form):
    spec, maps = fitted()
    p, s = trained(optax.adam(0.1), doubled(), 1)
    tree, get = {
        "tuple": ((p, s), lambda t: t),
        "list": ([p, s], lambda t: t),
        "dict": ({"params": p, "opt_state": s, "step": 3}, lambda t: (t["params"], t["opt_state"])),
        "named": (Together(p, p, s), lambda t: (t.avg_params, t.opt_state)),
        "nested": (
            [{"model": p, "optimizer": {"state": s}}],
            lambda t: (t[0]["model"], t[0]["optimizer"]["state"]),
        ),
        "beside": ({**p, "opt_state": s}, lambda t: ({k: t[k] for k in p}, t["opt_state"])),
    }[form]
    small, state = get(ifjax.fuse_tree(tree, spec, maps))
    assert_same_function(small, p)
    want = ifjax.apply_maps(s[0].mu, spec, maps, kind="select")
    jax.tree.map(np.testing.assert_array_equal, state[0].mu, want)


def test_two_trees_beside_an_optimizer_that_nothing_names_are_refused():
    spec, maps = fitted()
    p, s = trained(optax.adam(0.1), doubled(), 1)
    with pytest.raises(ValueError, match=r"0: shaped like the parameters, and nothing says"):
        ifjax.fuse_tree((p, gradient(p), s), spec, maps)
    small, grads, _ = ifjax.fuse_tree((p, gradient(p), s), spec, maps, {"1": "gradients"})
    assert_same_function(small, p)
    assert grads["a"].shape == (6, 4)


def test_equinox_model_and_optimizer():
    model = eqx.nn.MLP(6, 3, N, 1, key=jax.random.key(0))
    f, arrays = equinox_function(model, lambda m, x: jax.vmap(m)(x))
    spec = ifjax.trace(f, arrays, X).spec(0.5, solver="nearest")
    maps = ifjax.transport_maps(arrays, spec)
    state = contrib.schedule_free_sgd(0.1).init(eqx.filter(model, eqx.is_inexact_array))
    small, carried = ifjax.fuse_tree((arrays, state), spec, maps)
    want = ifjax.apply_maps(arrays, spec, maps)
    for got in (small, carried.z):
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(x, y)


# nnx ----------------------------------------------------------------------------------------------


class Module(nnx.Module):
    """Two layers."""

    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(6, N, rngs=rngs), nnx.Linear(N, 3, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.tanh(self.a(x)))


NNX = {
    "muon": contrib.muon(0.1),
    "schedule free": contrib.schedule_free_sgd(0.1),
    "prodigy": contrib.prodigy(0.1),
    "history": optax.chain(
        optax.adam(0.1),
        optax.GradientTransformation(
            lambda p: Recorded(jnp.zeros((), int), jnp.arange(float(N)), ()),
            lambda u, s, p=None: (u, s),
        ),
    ),
    "own": own(),
}


@pytest.mark.parametrize("name", NNX)
def test_cut_nnx_takes_the_optimizer_along(name):
    module = Module(nnx.Rngs(0))
    optimizer = nnx.Optimizer(module, NNX[name], wrt=nnx.Param)
    f, state = nnx_function(module)
    spec = ifjax.trace(f, state, X).spec(0.5, solver="nearest")
    maps = ifjax.transport_maps(state, spec)
    want = ifjax.apply_maps(state, spec, maps)["a"]["kernel"][...]
    cut_nnx(module, spec, X, maps=maps, optimizer=optimizer)
    fresh = nnx.Optimizer(module, NNX[name], wrt=nnx.Param)
    assert shapes(nnx.state(optimizer)) == shapes(nnx.state(fresh))
    found = find(optimizer.opt_state, {"schedule free": "z", "prodigy": "params0"}.get(name, "q"))
    if found is not None:
        np.testing.assert_allclose(found["a"]["kernel"][...], want, atol=1e-6)
    optimizer.update(module, nnx.grad(lambda m: (m(X) ** 2).mean())(module))
