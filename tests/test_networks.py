"""What the graph and fusion promise, on the networks that ifjax brings and on real weights."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax import data, interop, models

NETWORKS = {
    "mlp": lambda: models.create("mlp", 5, hidden=(12, 9)),
    "cnn": lambda: models.create("cnn", 5, widths=(6, 10), hidden=(7,)),
    "resnet8-A": lambda: models.CifarResNet(models.ResNetWidths.standard(8, "A", 8), 5, "A"),
    "resnet8-B": lambda: models.CifarResNet(models.ResNetWidths.standard(8, "B", 8), 5, "B"),
}
IMAGE = (2, 8, 8, 3)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    module = NETWORKS[request.param]()
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(IMAGE))
    return module, variables, ifjax.trace(module.apply, variables, jnp.zeros(IMAGE))


def random_variables(graph, variables, seed=0):
    from ifjax.graph.verify import general_position
    from ifjax.tree import leaves_by_path, with_leaves

    leaves = leaves_by_path(variables)
    values = general_position(graph.structure, leaves, np.random.default_rng(seed))
    return with_leaves(variables, dict(zip(leaves, values, strict=True)))


def test_every_group_passes_verification_with_power(network):
    module, variables, graph = network
    result = graph.verify(module.apply, variables, jnp.zeros(IMAGE))
    assert result.ok
    assert max(result.changes.values()) < 1e-6
    assert result.unverified == ()


def test_nothing_but_windows_inputs_and_outputs_is_pinned(network):
    _, _, graph = network
    reasons = ("inputs", "outputs", "spatial axis", "window")
    assert [p for p in graph.pinned if not any(r in p.reason for r in reasons)] == []
    assert graph.unused == ()
    assert all(g.kind == "neuron" for g in graph.groups)


def test_a_wrong_graph_does_not_verify(network):
    """A graph that lacks one member of a group is found out."""
    import dataclasses

    module, variables, graph = network
    group = graph.groups[0]
    wrong = dataclasses.replace(group, members=group.members[:-1])
    structure = dataclasses.replace(graph.structure, groups=(wrong, *graph.groups[1:]))
    with pytest.raises(ValueError, match="changes the output"):
        dataclasses.replace(graph, structure=structure).verify(
            module.apply, variables, jnp.zeros(IMAGE)
        )


def test_take_and_shrink_equal_zeroing(network):
    module, variables, graph = network
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        full = random_variables(graph, variables)
        x = rng.normal(size=IMAGE)
        keep = {
            g.name: np.sort(rng.permutation(g.size)[: max(1, g.size // 2)]) for g in graph.groups
        }
        spec = graph.spec(keep={g.name: len(keep[g.name]) for g in graph.groups}, method="prune")
        small = ifjax.take(full, graph, keep)
        got = ifjax.shrink(module.apply, spec)(small, x)
        leaves = {leaf.path: leaf for leaf in graph.structure.leaves}
        from ifjax.structure import axis_arrays
        from ifjax.tree import leaves_by_path, with_leaves

        zeroed = {path: np.array(value) for path, value in leaves_by_path(full).items()}
        for path, value in zeroed.items():
            for axis, expression in enumerate(leaves[path].axes):
                kept = np.zeros(value.shape[axis], bool)
                kept[axis_arrays.indices(expression, keep)] = True
                np.moveaxis(value, axis, 0)[~kept] = 0
        want = jax.jit(module.apply)(with_leaves(full, zeroed), x)
        scale = float(jnp.abs(want).max())
        assert float(jnp.abs(got - want).max()) <= 1e-9 * scale
        # with power: the small network is not the dense one
        dense = jax.jit(module.apply)(full, x)
        assert float(jnp.abs(got - dense).max()) > 1e-3 * scale


def test_module_from_spec_computes_what_shrink_computes(network):
    module, variables, graph = network
    full = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32), random_variables(graph, variables, 2)
    )
    spec = graph.spec({g.name: 0.3 + 0.04 * i for i, g in enumerate(graph.groups)}, method="prune")
    small = ifjax.fuse_params(full, spec)
    x = jnp.asarray(np.random.default_rng(3).normal(size=IMAGE), jnp.float32)
    again = type(module).from_spec(spec)
    np.testing.assert_allclose(
        jax.jit(again.apply)(small, x),
        jax.jit(ifjax.shrink(module.apply, spec))(small, x),
        rtol=1e-5,
        atol=1e-5,
    )


def test_residual_stream_of_zero_padded_shortcuts():
    """The stage streams are nested: stage 3 = [lo | stage 2 = [lo | stage 1 | hi] | hi]."""
    module = models.create("resnet20", 5)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(IMAGE))
    graph = ifjax.trace(module.apply, variables, jnp.zeros(IMAGE))
    stream = {g.name: g.size for g in graph.groups if not g.name.endswith("conv1/kernel")}
    assert stream == {
        "params/layer2_0/conv2/kernel (0:8)": 8,
        "params/layer2_0/conv2/kernel (24:32)": 8,
        "params/layer3_0/conv2/kernel (0:16)": 16,
        "params/layer3_0/conv2/kernel (48:64)": 16,
    }
    stem = graph.structure.group["params/conv1/kernel"]
    where = {m.path: m.where for m in stem.members if m.role == "consumer"}
    assert where["params/layer1_0/conv1/kernel"] == ("0:16",)
    assert where["params/layer2_1/conv1/kernel"] == ("8:24",)
    assert where["params/linear/kernel"] == ("24:40",)


def test_train_mode_updates_statistics_at_the_small_widths(network):
    module, variables, graph = network
    if "batch_stats" not in variables:
        pytest.skip("a network without batch norm has no statistics to update")
    full = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), random_variables(graph, variables))
    spec = graph.spec(0.5, method="prune")
    small = ifjax.fuse_params(full, spec)

    def train(v, x):
        return module.apply(v, x, train=True, mutable=["batch_stats"])

    x = jnp.asarray(np.random.default_rng(4).normal(size=IMAGE), jnp.float32)
    logits, updates = jax.jit(ifjax.shrink(train, spec))(small, x)
    want_logits, want = jax.jit(
        lambda v, x: type(module).from_spec(spec).apply(v, x, True, mutable=["batch_stats"])
    )(small, x)
    np.testing.assert_allclose(logits, want_logits, rtol=2e-4, atol=2e-4)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, dict(want))


# real weights


@pytest.fixture(scope="module")
def resnet20(shared: Path):
    state = interop.load_safetensors(shared / "checkpoints/resnet20_cifar10.safetensors")
    module, variables = interop.cifar_resnet_from_torch(state)
    images, labels = data.cifar10_split("test[:500]", data_dir=shared / "tensorflow_datasets")
    x = data.normalize(images, data.CIFAR10_MEAN, data.CIFAR10_STD)
    return module, variables, x, labels, ifjax.trace(module.apply, variables, x[:1])


def accuracy(apply_fn, params, x, labels) -> float:
    return float(np.mean(np.argmax(jax.jit(apply_fn)(params, x), -1) == labels))


@pytest.mark.slow
def test_fusing_beats_pruning_on_the_real_resnet20(resnet20):
    """On all 10,000 images the reference gives 91.7 dense, 47.6 pruned, 72.7 fused (30 %)."""
    module, variables, x, labels, graph = resnet20
    found = {"dense": accuracy(module.apply, variables, x, labels)}
    for method in ("prune", "fuse"):
        spec = graph.spec(0.3, include="params/layer*/conv1/kernel", method=method, solver="exact")
        small = ifjax.fuse_params(variables, spec)
        found[method] = accuracy(ifjax.shrink(module.apply, spec), small, x, labels)
    # within four standard errors of 500 images
    for method, want in {"dense": 0.9173, "prune": 0.4759, "fuse": 0.7274}.items():
        error = 4 * np.sqrt(want * (1 - want) / len(labels))
        assert abs(found[method] - want) < error, found


@pytest.mark.slow
def test_cutting_the_residual_stream_of_the_real_resnet20(resnet20):
    """One group of the stream alone, which the reference joins wrongly and cannot cut."""
    module, variables, x, labels, graph = resnet20
    name = "params/layer3_0/conv2/kernel (48:64)"
    spec = graph.spec({name: 0.25}, solver="exact")
    small = ifjax.fuse_params(variables, spec)
    assert small["params"]["linear"]["kernel"].shape == (60, 10)
    assert accuracy(ifjax.shrink(module.apply, spec), small, x, labels) > 0.8
