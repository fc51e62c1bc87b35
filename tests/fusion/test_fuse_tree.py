"""Optimizer states, averages and gradients that go along, against indices and lifts by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ifjax
from tests import reference

pytestmark = pytest.mark.promotes(ranks="its own functions do", dtypes="its own functions do")

WIDTHS = (8, 6)
LABELS = {"fc0": "fast", "fc1": "slow", "fc2": "slow"}


def tree(seed=0, dtype=np.float32):
    """The mlp as nested variables; statistics that nothing normalises by, to have both kinds."""
    flat = reference.init("mlp", seed, WIDTHS, dtype)
    params = {}
    for path, x in flat.items():
        layer, name = path.split(".")
        params.setdefault(layer, {})[name] = jnp.asarray(x)
    return {"params": params, "batch_stats": {"fc0": {"mean": jnp.zeros(8, dtype)}}}


def apply(variables, x):
    p = variables["params"]
    x = x @ p["fc0"]["weight"].T + p["fc0"]["bias"] - variables["batch_stats"]["fc0"]["mean"]
    x = jax.nn.relu(x) @ p["fc1"]["weight"].T + p["fc1"]["bias"]
    return jax.nn.relu(x) @ p["fc2"]["weight"].T + p["fc2"]["bias"]


@functools.cache
def fitted(keep_shape=False, **method):
    variables = tree()
    graph = ifjax.trace(apply, variables, reference.inputs("mlp"))
    spec = graph.spec(0.5, solver="nearest", **method)
    return spec, ifjax.transport_maps(variables, spec)


def selected(params, maps):
    """The rows and columns of the kept neurons."""
    a, b = (np.asarray(maps[f"params/{n}/weight"].targets) for n in ("fc0", "fc1"))
    index = {"fc0": (a, slice(None)), "fc1": (b, a), "fc2": (slice(None), b)}
    return {
        name: {
            "weight": np.asarray(layer["weight"])[index[name][0]][:, index[name][1]],
            "bias": np.asarray(layer["bias"])[index[name][0]],
        }
        for name, layer in params.items()
    }


def noise(state, seed=3):
    """The state with random numbers in its moments, positive ones."""
    rng = np.random.default_rng(seed)

    def random(x):
        wide = jnp.ndim(x) > 0 and jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(rng.uniform(0.5, 1, x.shape), x.dtype) if wide else x

    return jax.tree.map(random, state)


def assert_equal(got, expected, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        assert x.shape == y.shape, path
        np.testing.assert_allclose(
            x, y, rtol=0, atol=tolerance.get("atol", 0), err_msg=jax.tree_util.keystr(path)
        )


def is_kernel(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def labels(params):
    return {k: dict.fromkeys(layer, LABELS[k]) for k, layer in params.items()}


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(optax.cosine_decay_schedule(0.1, 10), momentum=0.9, nesterov=True),
    "adam": optax.adam(optax.linear_schedule(0.1, 0, 9)),
    "adamw, mask": optax.adamw(0.1, weight_decay=0.1, mask=is_kernel),
    "amsgrad": optax.amsgrad(0.1),
    "lion": optax.lion(0.1),
    "chain": optax.chain(optax.clip(0.5), optax.scale_by_rms(), optax.trace(0.9)),
    "masked": optax.masked(optax.adam(0.1), is_kernel),
    "masked by layer": optax.masked(
        optax.adam(0.1), {"fc0": False, "fc1": True, "fc2": {"weight": False, "bias": True}}
    ),
    "partition": optax.multi_transform(
        {"fast": optax.adam(0.1), "slow": optax.sgd(0.1, momentum=0.5)}, labels
    ),
    "several steps": optax.MultiSteps(optax.adam(0.1), 3),
    "if finite": optax.apply_if_finite(optax.adam(0.1), 3),
    "hyperparameters": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "average": optax.chain(optax.ema(0.9), optax.scale(-0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_the_kept_neurons_and_nothing_else(name):
    """Every step of these is elementwise: carried before it or after it, all is the same."""
    optimizer, (spec, maps) = OPTIMIZERS[name], fitted()
    params, grads = tree()["params"], tree(1)["params"]
    state = noise(optimizer.init(params))
    got = ifjax.fuse_tree(state, spec, maps)
    small = jax.tree.map(jnp.asarray, selected(params, maps))
    like = jax.eval_shape(optimizer.init, small)
    shapes = jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), got, like)
    assert all(jax.tree.leaves(shapes))
    updates, state = optimizer.update(grads, state, params)
    # gradients that are accumulated are gradients: neurons that are merged add theirs
    summed = ifjax.fuse_tree(grads, spec, maps, kind="gradients")
    small_grads = summed if name == "several steps" else selected(grads, maps)
    small_updates, got = optimizer.update(small_grads, got, small)
    assert_equal(small_updates, selected(updates, maps), atol=1e-6)
    assert_equal(got, ifjax.fuse_tree(state, spec, maps), atol=1e-6)


@pytest.mark.parametrize("name", ["momentum", "adam", "chain", "hyperparameters", "average"])
def test_the_same_places_as_optax_finds(name):
    optimizer, (spec, maps) = OPTIMIZERS[name], fitted()
    state = noise(optimizer.init(tree()["params"]))
    got = ifjax.fuse_tree(state, spec, maps)
    places = selected(
        jax.tree.map(lambda x: np.arange(x.size).reshape(x.shape), tree()["params"]), maps
    )
    expected = optax.tree_map_params(
        optimizer, lambda x, at: np.asarray(x).reshape(-1)[at], state, places
    )
    assert_equal(got, expected)


def test_one_number_per_leaf_stays():
    optimizer, (spec, maps) = optax.novograd(0.1), fitted()
    state = optimizer.init(tree()["params"])
    got = ifjax.fuse_tree(state, spec, maps)
    assert_equal(got[0].nu, state[0].nu)
    assert got[0].mu["fc1"]["weight"].shape == (3, 4)


def test_the_state_of_all_variables_or_of_a_layer():
    spec, maps = fitted()
    variables = tree()
    expected = {**variables, "params": selected(variables["params"], maps)}
    targets = maps["params/fc0/weight"].targets
    expected["batch_stats"] = {"fc0": {"mean": np.zeros(8)[targets]}}
    state = {"whole": variables, "part": [variables["params"]], "layer": variables["params"]["fc1"]}
    got = ifjax.fuse_tree(state, spec, maps, kind="select")
    assert_equal(got["whole"], expected)
    assert_equal(got["part"][0], expected["params"])
    assert_equal(got["layer"], expected["params"]["fc1"])  # by its shapes


def test_dtypes_integers_and_keys_stay():
    spec, maps = fitted()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree()["params"])
    state = {"moments": half, "count": jnp.arange(3), "key": jax.random.split(jax.random.key(0), 2)}
    got = ifjax.fuse_tree(state, spec, maps)
    assert got["moments"]["fc0"]["weight"].dtype == jnp.bfloat16
    assert got["count"].tolist() == [0, 1, 2]
    assert got["key"] is state["key"]


def test_full_shape_holds_the_kept_neurons_and_zeros():
    spec, maps = fitted()
    state = noise(optax.adam(0.1).init(tree()["params"]))
    full = ifjax.fuse_tree(state, spec, maps, keep_shape=True)
    assert_equal(ifjax.fuse_tree(full, spec, maps), ifjax.fuse_tree(state, spec, maps))
    mask = ifjax.kept_mask(state, spec, maps)
    assert_equal(full, jax.tree.map(lambda x, y: x * y, state, mask))
    for x, y in zip(
        jax.tree.leaves(mask[0].mu), jax.tree.leaves(selected(state[0].mu, maps)), strict=True
    ):
        assert jnp.sum(x) == y.size
        assert set(np.unique(x)) <= {0, 1}


def test_inside_jit():
    spec, maps = fitted()
    state = noise(optax.adam(0.1).init(tree()["params"]))
    got = jax.jit(ifjax.fuse_tree, static_argnums=1)(state, spec, maps)
    assert_equal(got, ifjax.fuse_tree(state, spec, maps))


# Averages of the weights ------------------------------------------------------------------------


def norm_variables(seed):
    leaves = reference.init("vgg", seed, (6, 8))
    stats = {k: jnp.asarray(v) for k, v in leaves.items() if "running" in k}
    params = {k: jnp.asarray(v) for k, v in leaves.items() if k not in stats}
    return {"params": params, "batch_stats": stats}


def norm_spec(**method):
    def network(variables, x):
        return reference.apply("vgg", 1e-2)({**variables["params"], **variables["batch_stats"]}, x)

    graph = ifjax.trace(network, norm_variables(0), reference.inputs("vgg"))
    return graph.spec(0.5, solver="nearest", **method)


def test_averages_are_fused_like_the_weights():
    spec, variables, average = norm_spec(), norm_variables(0), norm_variables(1)
    maps = ifjax.transport_maps(variables, spec)
    mixed = {"params": average["params"], "batch_stats": variables["batch_stats"]}
    expected = ifjax.apply_maps(mixed, spec, maps)["params"]
    got = ifjax.fuse_tree({"ema": average["params"]}, spec, maps, "weights", params=variables)
    assert_equal(got["ema"], expected)
    whole = ifjax.fuse_tree({"ema": average, "step": 3}, spec, maps, kind="weights")
    assert_equal(whole["ema"], ifjax.apply_maps(average, spec, maps))
    with pytest.raises(ValueError, match=r"batch_stats/bn0\.running_mean: expected a leaf"):
        ifjax.fuse_tree({"ema": average["params"]}, spec, maps, kind="weights")


# Gradients --------------------------------------------------------------------------------------

MERGES = {"reference": {}, "preserving": {"merge": "preserving"}}


@pytest.mark.parametrize("merge", MERGES)
def test_gradients_are_those_of_the_full_function_at_lifted_weights(merge):
    """For any plan: out_i = sum_j M_ji out_j, in_i = sum_j P_ji in_j, by the chain rule."""
    with jax.enable_x64(True):
        variables, x = tree(dtype=np.float64), reference.inputs("mlp", dtype=np.float64)
        graph = ifjax.trace(apply, variables, x)
        spec = graph.spec(0.5, epsilon=0.5, **MERGES[merge])
        maps = ifjax.transport_maps(variables, spec)
        plans = [np.asarray(maps[f"params/{n}/weight"].map) for n in ("fc0", "fc1")]
        assert all(np.sum(p > 1e-3) > len(p) for p in plans)  # every neuron goes to several
        (m0, p0), (m1, p1) = (((t / t.sum(1, keepdims=True)).T, (t / t.sum(0)).T) for t in plans)

        def lift(w):
            p = w["params"]
            return {
                "params": {
                    "fc0": {k: m0.T @ v for k, v in p["fc0"].items()},
                    "fc1": {
                        "weight": m1.T @ p["fc1"]["weight"] @ p0,
                        "bias": m1.T @ p["fc1"]["bias"],
                    },
                    "fc2": {"weight": p["fc2"]["weight"] @ p1, "bias": p["fc2"]["bias"]},
                },
                "batch_stats": {"fc0": {"mean": m0.T @ w["batch_stats"]["fc0"]["mean"]}},
            }

        def loss(w):
            return jnp.sum(jnp.sin(apply(w, x)))

        small = ifjax.apply_maps(variables, spec, maps)
        got = ifjax.apply_maps(jax.grad(loss)(lift(small)), spec, maps, kind="gradients")
        assert_equal(got, jax.grad(lambda w: loss(lift(w)))(small), atol=1e-12)


def duplicated(model):
    """Neurons i and i + n / 2 have equal producers and norms, and consumers that differ."""
    widths = {"mlp": (8, 6), "vgg": (6, 8)}[model]
    graph = reference.trace(model, reference.init(model, 0, widths), 1e-2)
    leaves = reference.init(model, 0, widths, np.float64)
    for group in graph.groups:
        n = group.size // 2
        for m in group.members:
            if m.role != "consumer":
                leaves[m.path] = np.take(leaves[m.path], np.arange(2 * n) % n, m.axis)
    scores = {g.name: np.arange(g.size)[::-1].copy() for g in graph.groups}
    return graph, leaves, scores


@pytest.mark.parametrize("model", ["mlp", "vgg"])
def test_gradients_of_merged_duplicates_are_those_of_the_small_network(model):
    """All of them: kernels, biases, and of batch norms also the running statistics."""
    with jax.enable_x64(True):
        graph, leaves, scores = duplicated(model)
        leaves = {k: jnp.asarray(v) for k, v in leaves.items()}
        function, x = reference.apply(model, 1e-2), reference.inputs(model, 1, np.float64)
        spec = graph.spec(0.5, merge="preserving", solver="nearest")
        maps = ifjax.transport_maps(leaves, spec, scores)

        def gradient(f, p):
            return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(f(p, x)))))(p)

        small = ifjax.apply_maps(leaves, spec, maps)
        expected = gradient(ifjax.shrink(function, spec), small)
        got = ifjax.fuse_tree(gradient(function, leaves), spec, maps, kind="gradients")
        for path in leaves:
            np.testing.assert_allclose(got[path], expected[path], rtol=1e-7, atol=1e-7)
        sum_only = ifjax.fuse_tree(gradient(function, leaves), spec, maps, kind="select")
        assert any(np.abs(sum_only[p] - expected[p]).max() > 1e-2 for p in leaves)


def test_gradients_of_pruned_neurons_are_dropped():
    spec, maps = fitted(method="prune")
    grads = tree(1)["params"]
    got = ifjax.fuse_tree(grads, spec, maps, kind="gradients")
    assert_equal(got, selected(grads, maps))
    # ... which is right: dropped neurons are zeros, and the function is the full one there.
    variables, x = tree(), reference.inputs("mlp")
    full = ifjax.apply_maps(variables, spec, maps, keep_shape=True)
    small = ifjax.apply_maps(variables, spec, maps)
    loss = lambda f: jax.grad(lambda v: jnp.sum(jnp.sin(f(v, x))))  # noqa: E731
    expected = loss(ifjax.shrink(apply, spec))(small)
    assert_equal(ifjax.fuse_tree(loss(apply)(full), spec, maps, "gradients"), expected, atol=1e-5)


# What is refused --------------------------------------------------------------------------------


def test_factored_moments_are_refused_by_leaf():
    spec, maps = fitted()
    optimizer = optax.adafactor(0.1, min_dim_size_to_factor=4)
    state = optimizer.init(tree()["params"])
    message = r"v_row/fc0/weight: expected shape \(8, 6\) of the parameter params/fc0/weight, got "
    with pytest.raises(ValueError, match=message + r"\(\d,\); what is factored .* anew"):
        ifjax.fuse_tree(state, spec, maps)
    unfactored = optax.adafactor(0.1).init(tree()["params"])  # these matrices are too small
    got = ifjax.fuse_tree(unfactored, spec, maps)
    like = jax.eval_shape(optax.adafactor(0.1).init, selected(tree()["params"], maps))
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, like)


BLOCKS = {"fc0": {"weight": [jnp.ones((8, 8)), jnp.ones((6, 6))]}}
SMALL = {"fc0": {"weight": jnp.ones((4, 6)), "bias": jnp.ones(4)}}
NO_LEAF = "that belongs to no leaf of the parameters"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"stats": BLOCKS}, rf"stats/fc0/weight/0: an array of shape \(8, 8\) {NO_LEAF}"),
        (
            SMALL,
            r"fc0/bias: expected shape \(8,\) of the parameter params/fc0/bias, got \(4,\), the "
            "small shape: what already has the widths",
        ),
        (
            optax.flatten(optax.adam(0.1)).init(tree()["params"]),
            r"0/mu: an array of shape \(145,\) .* flattened",
        ),
        (
            {"mu": jax.tree.map(lambda x: jnp.stack([x, x]), SMALL)},
            r"mu/fc0/bias: .* got \(2, 4\); what is factored or blocked",
        ),
        (
            {"mu": {"fc0": {"bias": jnp.ones((3, 8))}}},
            r"mu/fc0/bias: .* got \(3, 8\); a stack of 3 of them is carried by jax.vmap",
        ),
    ],
    ids=["blocks", "small", "flat", "small stack", "stack"],
)
def test_arrays_that_belong_to_no_parameter_are_refused(state, message):
    with pytest.raises(ValueError, match=message):
        ifjax.fuse_tree(state, *fitted())


def test_a_layer_that_could_be_two_is_refused():
    params = {"a": {"w": jnp.eye(4)}, "b": {"w": jnp.eye(4)}, "c": {"w": jnp.eye(4)}}

    def chain(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["a"]["w"]) @ p["b"]["w"]) @ p["c"]["w"]

    spec = ifjax.trace(chain, params, jnp.ones((1, 4))).spec(0.5, solver="nearest")
    maps = ifjax.transport_maps(params, spec)
    with pytest.raises(ValueError, match=r"mu/w: belongs to one of the parameters a/w, b/w, c/w"):
        ifjax.fuse_tree({"mu": {"w": jnp.ones((4, 4))}}, spec, maps)
    masked = optax.masked(optax.adam(0.1), {"a": False, "b": True, "c": False}).init(params)
    got = ifjax.fuse_tree(masked, spec, maps)
    assert got.inner_state[0].mu["b"]["w"].shape == (2, 2)


def test_bad_kinds_and_maps_are_refused():
    spec, maps = fitted()
    with pytest.raises(ValueError, match=r"kind must be one of weights, gradients, select"):
        ifjax.apply_maps(tree(), spec, maps, kind="moments")
    with pytest.raises(ValueError, match=r"expected a transport map of shape \(8, 4\), got none"):
        ifjax.fuse_tree(tree(), spec, {}, kind="select")
    with pytest.raises(ValueError, match=r"extra: not a leaf of the network"):
        ifjax.apply_maps({"extra": jnp.ones(3)}, spec, maps, kind="gradients")
    with pytest.raises(ValueError, match=r"params/fc0/bias: expected shape \(8,\), got \(3,\)"):
        ifjax.apply_maps({"params": {"fc0": {"bias": jnp.ones(3)}}}, spec, maps, kind="select")
