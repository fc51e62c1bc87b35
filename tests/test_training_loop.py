"""Fusing inside training loops: recipes for optax, flax and nnx, and what the first step sees."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import ifjax

DIGITS = pytest.importorskip(
    "sklearn.datasets", reason="needs scikit-learn: pip install 'ifjax[data]'"
).load_digits()
IMAGES = jnp.asarray(DIGITS.images[:512, ..., None] / 16, jnp.float32)
LABELS = jnp.asarray(DIGITS.target[:512])


def cross_entropy(logits, labels=LABELS):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# Train mode goes on where eval mode left off ----------------------------------------------------

EPS = 1e-5


def convnet(p, x, train=()):
    """Two stages; the norms named in ``train`` use the statistics of the batch."""
    for name in ("a", "b"):
        layer = p[name]
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean, variance = layer["mean"], layer["variance"]
        if name in train:
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = (x - mean) * (layer["scale"] * jax.lax.rsqrt(variance + EPS)) + layer["offset"]
        x = jax.nn.relu(x)[:, ::2, ::2]
    return x.reshape(len(x), -1) @ p["head"]


@functools.cache
def trained():
    """A network fitted for a moment, its scales unlike, its running statistics the data's."""
    rng = np.random.default_rng(0)

    def stage(d, n):
        return {
            "kernel": rng.normal(size=(3, 3, d, n)) * np.sqrt(2 / 9 / d),
            "scale": rng.uniform(0.1, 2, n),
            "offset": 0.1 * rng.normal(size=n),
            "mean": np.zeros(n),
            "variance": np.ones(n),
        }

    p = {"a": stage(1, 16), "b": stage(16, 12), "head": 0.05 * rng.normal(size=(48, 10))}
    p = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), p)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(p, state, i):
        x, y = (jax.lax.dynamic_slice_in_dim(v, 64 * i, 64) for v in (IMAGES, LABELS))
        grads = jax.grad(lambda p: cross_entropy(convnet(p, x, ("a", "b")), y))(p)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(p, updates), state

    state = optimizer.init(p)
    for i in range(24):
        p, state = step(p, state, i % 8)
    x = IMAGES
    for name in ("a", "b"):
        x = jax.lax.conv_general_dilated(
            x, p[name]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        p[name] |= {"mean": x.mean((0, 1, 2)), "variance": x.var((0, 1, 2))}
        x = (x - p[name]["mean"]) * jax.lax.rsqrt(p[name]["variance"] + EPS) * p[name]["scale"]
        x = jax.nn.relu(x + p[name]["offset"])[:, ::2, ::2]
    return p


def identity(layer):
    """The same in eval mode, as the reference leaves norms: scale one, variance one."""
    slope = layer["scale"] / jnp.sqrt(layer["variance"] + EPS)
    ones = jnp.ones_like(slope)
    folded = {"kernel": layer["kernel"] * slope, "mean": layer["mean"] * slope}
    return {**layer, **folded, "scale": ones, "variance": ones - EPS}


@pytest.mark.parametrize("merge", ["reference", "preserving"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5])
def test_the_first_train_mode_loss_is_that_of_eval_mode(sparsity, merge):
    """Where the fused norm uses batch statistics; the norms behind it see inputs of another kind.

    Before fusion the two modes agree to rounding, for the running statistics are the batch's.
    """
    p = trained()
    graph = ifjax.trace(convnet, p, IMAGES[:2]) & ifjax.trace(convnet, p, IMAGES[:2], ("a", "b"))
    dense = [float(cross_entropy(convnet(p, IMAGES, train))) for train in ((), ("a", "b"))]
    assert dense[0] < 0.9
    np.testing.assert_allclose(*dense, rtol=1e-4)
    spec = graph.spec({"a/kernel": sparsity}, merge=merge)
    small = ifjax.fuse_params(p, spec)
    plain = {**small, "a": identity(small["a"])}
    apply = jax.jit(ifjax.shrink(convnet, spec), static_argnums=2)
    evaluated, same, refit, naive = (
        np.asarray(apply(p, IMAGES, train))
        for p, train in ((small, ()), (plain, ()), (small, ("a",)), (plain, ("a",)))
    )
    np.testing.assert_allclose(same, evaluated, atol=1e-3)
    far = [np.linalg.norm(x - evaluated) / np.linalg.norm(evaluated) for x in (refit, naive)]
    assert far[0] < 0.04
    assert far[1] > 3 * far[0]
    np.testing.assert_allclose(cross_entropy(refit), cross_entropy(evaluated), rtol=0.05)


# Plain optax: shapes change between steps -------------------------------------------------------


def mlp(p, x):
    x = x.reshape(len(x), -1)
    for name in ("w0", "w1"):
        x = jax.nn.relu(x @ p[name] + p[name.replace("w", "b")])
    return x @ p["w2"]


def mlp_params():
    rng = np.random.default_rng(0)
    shapes = {"w0": (64, 24), "b0": (24,), "w1": (24, 16), "b1": (16,), "w2": (16, 10)}
    return {
        k: jnp.asarray(rng.normal(size=n) * (0 if k[0] == "b" else n[0] ** -0.5), jnp.float32)
        for k, n in shapes.items()
    }


def test_plain_optax_prunes_a_little_and_trains_a_little():
    """Parameters, moments and the average go on together: the loss falls in every round."""
    params, optimizer = mlp_params(), optax.adamw(3e-3)
    state, average = optimizer.init(params), params
    spec = ifjax.trace(mlp, params, IMAGES[:1]).spec(0.5)

    def fit(apply, params, state, average, steps):
        @jax.jit
        def step(params, state, average):
            loss, grads = jax.value_and_grad(lambda p: cross_entropy(apply(p, IMAGES)))(params)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return params, state, optax.incremental_update(params, average, 0.1), loss

        found = []
        for _ in range(steps):
            params, state, average, loss = step(params, state, average)
            found.append(float(loss))
        return params, state, average, found

    params, state, average, first = fit(mlp, params, state, average, 40)
    for i, (step, total) in enumerate(ifjax.iterated(spec, 3)):
        maps = ifjax.transport_maps(params, step)
        params = ifjax.apply_maps(params, step, maps)
        average = ifjax.fuse_tree(average, step, maps, kind="weights")
        state = ifjax.fuse_tree(state, step, maps)
        apply = ifjax.shrink(mlp, total)
        params, state, average, losses = fit(apply, params, state, average, 20)
        assert losses[-1] < losses[0]
        assert int(state[0].count) == 40 + 20 * (i + 1)
    assert params["w1"].shape == average["w1"].shape == state[0].mu["w1"].shape == (12, 8)
    assert losses[-1] < first[-1]
    assert cross_entropy(apply(average, IMAGES)) < 1.1 * first[-1]


# Inside a jitted step: shapes stay --------------------------------------------------------------


@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.sigmoid])
def test_fusing_inside_a_jitted_step_compiles_once_and_dropped_neurons_stay_dropped(activation):
    """Every fifth step; sigmoid(0) is not 0, so that only the mask keeps its neurons dropped."""

    def apply(p, x):
        x = activation(x.reshape(len(x), -1) @ p["w0"] + p["b0"])
        return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"]

    params, optimizer = mlp_params(), optax.adamw(1e-2)
    spec = ifjax.trace(apply, params, IMAGES[:1]).spec(0.5)

    @functools.partial(jax.jit, static_argnames="masked")
    def step(params, state, mask, i, masked):
        def fuse(params, state, mask):
            maps = ifjax.transport_maps(params, spec)
            return (
                ifjax.apply_maps(params, spec, maps, keep_shape=True),
                ifjax.fuse_tree(state, spec, maps, keep_shape=True),
                ifjax.kept_mask(params, spec, maps),
            )

        params, state, mask = jax.lax.cond(
            i % 5 == 4, fuse, lambda *trees: trees, params, state, mask
        )
        loss, grads = jax.value_and_grad(lambda p: cross_entropy(apply(p, IMAGES)))(params)
        updates, state = optimizer.update(grads, state, params)
        if masked:
            updates = jax.tree.map(jnp.multiply, updates, mask)
        return optax.apply_updates(params, updates), state, mask, loss

    for masked in (True, False):
        p, state, mask = params, optimizer.init(params), jax.tree.map(jnp.ones_like, params)
        for i in range(13):
            p, state, mask, loss = step(p, state, mask, i, masked)
        assert np.isfinite(loss)
        assert np.sum(mask["b0"]) == 12
        assert np.sum(mask["w1"]) == 12 * 8
        revived = [k for k in p if np.any(p[k] * (1 - mask[k]) != 0)]
        assert revived == ([] if masked or activation is jax.nn.relu else ["b0", "w0", "w1"])
    assert step._cache_size() == 2  # one for every value of the static argument
    if activation is jax.nn.relu:  # what is trained at full shape compacts to the small network
        maps = {
            name: np.flatnonzero(mask[name.replace("w", "b")]) for name in spec.structure.widths
        }
        small = ifjax.compact(p, spec, maps)
        got = ifjax.shrink(apply, spec)(small, IMAGES)
        np.testing.assert_allclose(got, apply(p, IMAGES), atol=1e-4)


# flax: TrainState -------------------------------------------------------------------------------


class Net(nn.Module):
    """A convolution, a batch norm and a dense layer."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(16, (3, 3), strides=2, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.8)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


class TrainState(train_state.TrainState):
    """With batch statistics."""

    batch_stats: dict


def fuse_state(state, spec):
    """The recipe: weights and statistics together, the optimizer's state by itself."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    maps = ifjax.transport_maps(variables, spec)
    small = ifjax.apply_maps(variables, spec, maps)
    return state.replace(
        apply_fn=ifjax.shrink(state.apply_fn, spec),
        params=small["params"],
        batch_stats=small["batch_stats"],
        opt_state=ifjax.fuse_tree(state.opt_state, spec, maps),
    )


@jax.jit
def flax_step(state):
    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = state.apply_fn(variables, IMAGES, train=True, mutable=["batch_stats"])
        return cross_entropy(logits), updates["batch_stats"]

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads).replace(batch_stats=stats), loss


def test_a_flax_train_state_goes_on_with_fewer_channels():
    model = Net()
    variables = model.init(jax.random.key(0), IMAGES[:1])
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    state = TrainState.create(apply_fn=model.apply, tx=optimizer, **variables)
    for _ in range(15):
        state, before = flax_step(state)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    graph = ifjax.trace(model.apply, variables, IMAGES[:2]) & ifjax.trace(
        train, variables, IMAGES[:2]
    )
    small = fuse_state(state, graph.spec(0.25))
    losses = []
    for _ in range(10):
        small, loss = flax_step(small)
        losses.append(float(loss))
    assert small.params["Conv_0"]["kernel"].shape == (3, 3, 1, 12)
    assert small.batch_stats["BatchNorm_0"]["mean"].shape == (12,)
    assert small.opt_state[1][0].nu["Conv_0"]["kernel"].shape == (3, 3, 1, 12)
    assert int(small.opt_state[1][0].count) == int(small.step) == 25
    assert losses[-1] < min(losses[0], float(before))


# nnx --------------------------------------------------------------------------------------------


class Module(nnx.Module):
    """A convolution, a batch norm and a linear layer."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def test_an_nnx_module_and_its_optimizer_go_on_with_fewer_channels():
    model, optimizer = Module(nnx.Rngs(0)), optax.adamw(1e-2)
    state = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def step(model, state):
        loss, grads = nnx.value_and_grad(lambda m: cross_entropy(m(IMAGES)))(model)
        state.update(model, grads)
        return loss

    for _ in range(15):
        before = step(model, state)

    # The recipe: split, fuse, merge; the optimizer anew, with the old one's state.
    model.eval()
    definition, variables = nnx.split(model)
    spec = ifjax.trace(lambda v, x: nnx.merge(definition, v)(x), variables, IMAGES[:1]).spec(0.25)
    maps = ifjax.transport_maps(variables, spec)
    small = nnx.merge(definition, ifjax.apply_maps(variables, spec, maps))
    carried = ifjax.fuse_tree(nnx.state(state), spec, maps)
    state = nnx.Optimizer(small, optimizer, wrt=nnx.Param)
    nnx.update(state, carried)

    # These layers read their width off their arrays; for others call ifjax.shrink's function.
    def apply(v, x):
        return nnx.merge(definition, v)(x)

    got = ifjax.shrink(apply, spec)(nnx.state(small), IMAGES)
    np.testing.assert_allclose(small(IMAGES), got, atol=1e-5)
    small.train()
    losses = [float(step(small, state)) for _ in range(10)]
    assert small.conv.kernel.shape == (3, 3, 1, 12)
    assert int(state.step[...]) == 25
    assert losses[-1] < min(losses[0], float(before))
