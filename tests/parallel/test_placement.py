"""Costs, products and picks on eight devices against numpy and scipy; without a mesh, no change."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance as sd
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ifjax
from ifjax.parallel import placement as mesh
from ifjax.parallel import ring
from ifjax.transport import costs

if jax.device_count() < 8:
    pytest.skip("eight devices are needed: leave XLA_FLAGS unset", allow_module_level=True)

RNG = np.random.default_rng(0)
INDEX = np.array([7, 0, 7])
METRIC = {1: "cityblock", 2: "euclidean", math.inf: "chebyshev", "cosine": "cosine"}
MESHES = {"8": ((8,), ("x",)), "2 x 4": ((2, 4), ("x", "y")), "5": ((5,), ("x",))}


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


X, Y, BY, LEAF = normal(13, 5), normal(9, 5), normal(9, 13), normal(3, 13, 11)
EVEN = normal(16, 8), normal(8, 8), normal(8, 16), normal(2, 16, 8)
FEW = normal(5, 3), normal(3, 3), normal(3, 5), normal(2, 5, 1)


def devices(shape, names, kind=AxisType.Auto) -> Mesh:
    places = np.array(jax.devices()[: math.prod(shape)]).reshape(shape)
    return Mesh(places, names, axis_types=(kind,) * len(names))


def cost(x, y, p=1):
    return ring.pairwise(lambda x, y: costs.cost_matrix(x, y, p), x, y)


def everything(x, y, by, leaf):
    """What the module computes, by name."""
    thin = leaf[:, :, :1]  # here sums go round the devices, in LEAF the matrix
    return {
        **{f"cost {p}": cost(x, y, p) for p in METRIC},
        "costs": jax.vmap(cost)(jnp.stack([x, -x]), jnp.stack([y, y])),
        "product": ring.product(by, leaf, 1),
        "thin product": ring.product(by, thin, 1),
        "vector": ring.product(by, leaf[0, :, 0], 0),
        "products": jax.vmap(lambda leaf: ring.product(by, leaf, 0))(leaf),
        "take": mesh.take(x, jnp.asarray(INDEX % len(x)), 0),
        "take of the last axis": mesh.take(leaf, jnp.asarray(INDEX % leaf.shape[2]), 2),
        "spread": mesh.split_along(leaf, 1),
        "whole": mesh.whole_along(leaf, 1),
    }


def expected(x, y, by, leaf):
    x, y, by, leaf = (np.asarray(a, np.float64) for a in (x, y, by, leaf))
    return {
        **{f"cost {p}": sd.cdist(x, y, metric) for p, metric in METRIC.items()},
        "costs": np.stack([sd.cdist(x, y, "cityblock"), sd.cdist(-x, y, "cityblock")]),
        "product": np.einsum("mn,anb->amb", by, leaf),
        "thin product": np.einsum("mn,anb->amb", by, leaf[:, :, :1]),
        "vector": by @ leaf[0, :, 0],
        "products": np.einsum("mn,anb->amb", by, leaf),
        "take": x[INDEX % len(x)],
        "take of the last axis": leaf[:, :, INDEX % leaf.shape[2]],
        "spread": leaf,
        "whole": leaf,
    }


@pytest.mark.parametrize(
    ("shape", "arrays"),
    [("8", EVEN), ("2 x 4", (X, Y, BY, LEAF)), ("2 x 4", FEW), ("5", (X, Y, BY, LEAF))],
    ids=["8 even", "2 x 4 uneven", "2 x 4 few", "5 uneven"],
)
def test_on_a_mesh_as_on_one_device(shape, arrays):
    on = devices(*MESHES[shape])
    given = jax.device_put(arrays, NamedSharding(on, P()))
    found = jax.jit(lambda *a: mesh.on_mesh(everything, *a, outputs=P))(*given)
    wanted = expected(*arrays)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name], rtol=2e-6, atol=2e-6, err_msg=name)
        assert value.sharding.mesh.size == on.size, name


@pytest.mark.parametrize("shape", MESHES)
def test_rows_are_spread_and_go_round_the_devices(shape):
    """No device is given all rows of one side: blocks are permuted, nothing is gathered."""
    on = devices(*MESHES[shape])
    rows = NamedSharding(on, P(on.axis_names))
    x, y = (jax.device_put(normal(5 * on.size, 4), rows) for _ in "xy")
    run = jax.jit(lambda x, y: mesh.on_mesh(cost, x, y, outputs=P))
    program = run.lower(x, y).compile()
    (place,) = jax.tree.leaves(program.output_shardings)
    assert place.is_equivalent_to(rows, 2)
    text = program.as_text()
    assert "collective-permute" in text
    assert "all-gather" not in text
    assert program.memory_analysis().output_size_in_bytes == 4 * 25 * on.size


def test_axes_are_spread_over_as_many_devices_as_they_have_entries():
    on = devices((2, 4), ("x", "y"))
    for shape, axis, wanted in (
        ((16, 2), 0, P(("x", "y"))),
        ((13, 2), 0, P(("x", "y"))),
        ((5, 3), 0, P("y")),
        ((3, 2), 0, P()),
        ((2, 8), 1, P(None, ("x", "y"))),
    ):
        found = []

        def f(x, axis=axis, found=found):
            jax.debug.inspect_array_sharding(mesh.split_along(x, axis), callback=found.append)
            return x

        x = jax.device_put(jnp.ones(shape), NamedSharding(on, P()))
        jax.jit(lambda x, f=f: mesh.on_mesh(f, x, outputs=P))(x)
        assert found[0].is_equivalent_to(NamedSharding(on, wanted), 2), (shape, found)


@pytest.mark.parametrize(("count", "wanted"), [(6, P("x")), (5, P())])
def test_entries_of_a_batch_go_over_what_their_axis_is_too_short_for(count, wanted):
    """Where they divide evenly a device computes the costs of its own entries alone."""
    on = devices((2, 4), ("x", "y"))
    given = [normal(count, k, 7) for k in (5, 4)]
    x, y = (jax.device_put(z, NamedSharding(on, P())) for z in given)

    def spread(x, y):
        return mesh.over_batch(cost, 4, count)(x, y)

    run = jax.jit(lambda x, y: mesh.on_mesh(spread, x, y, outputs=P)).lower(x, y).compile()
    found = run(x, y)
    np.testing.assert_allclose(found, jax.vmap(cost)(*given), rtol=2e-6)
    assert found.sharding.is_equivalent_to(NamedSharding(on, wanted), 3)
    own = count // 2 if wanted else count
    assert f"f32[{own},2,4]" in run.as_text()  # rows of the ring


def test_layers_are_spread_where_a_group_has_few_neurons():
    """Four layers of four neurons on 4 x 2 devices: each holds the features of one layer."""
    on = devices((4, 2), ("x", "y"))
    params = {"up": normal(4, 256, 4), "down": normal(4, 4, 256)}
    layout = {"up": P(None, "x", "y"), "down": P(None, "y", "x")}
    given = jax.device_put(params, {k: NamedSharding(on, p) for k, p in layout.items()})

    def apply(p, x):
        def block(h, p):
            return h + jax.nn.relu(h @ p["up"]) @ p["down"], None

        return jax.lax.scan(block, x, p)[0]

    spec = ifjax.trace(apply, params, jnp.ones((1, 256))).spec(0.5, solver="sinkhorn_kernel")
    run = jax.jit(lambda p: ifjax.fuse_params(p, spec)).lower(given).compile()
    # Of 4 layers, 512 features, 4 neurons; on the axis of two devices are two of the four.
    assert set(re.findall(r"f32\[(\d),512,\d\]", run.as_text())) == {"1"}
    wanted = jax.jit(lambda p: ifjax.fuse_params(p, spec))(params)
    for name, value in run(given).items():
        np.testing.assert_allclose(value, wanted[name], rtol=0, atol=3e-5, err_msg=name)


def test_without_a_mesh_nothing_changes():
    x = jnp.asarray(LEAF)
    assert not mesh.active()
    assert mesh.split_along(x, 1) is x
    assert mesh.whole_along(x, 1) is x
    assert mesh.on_mesh(lambda x: x, x, outputs=P) is x
    np.testing.assert_array_equal(mesh.take(x, jnp.array([7, 0]), 1), LEAF[:, [7, 0]])
    a, b = jnp.asarray(X), jnp.asarray(Y)
    for p in METRIC:
        np.testing.assert_array_equal(cost(a, b, p), costs.cost_matrix(a, b, p))
    got, want = ring.product(jnp.asarray(BY), x, 1), np.einsum("mn,anb->amb", BY, LEAF)
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)
    text = str(jax.make_jaxpr(everything)(*EVEN))
    assert "sharding_constraint" not in text
    assert "shard_map" not in text


def test_a_mesh_of_the_user_says_nothing():
    """Where parameters lie on one device, an ambient mesh spreads nothing."""
    x = jnp.ones((8, 2))
    with jax.set_mesh(devices((8,), ("x",))):
        assert not mesh.active()
        assert mesh.split_along(x, 0) is x
        assert not mesh.on_mesh(lambda x: mesh.active(), x, outputs=P)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_mesh_of_the_arguments_is_ambient_within_and_forgotten_after(kind):
    on = devices((8,), ("x",), kind)
    place = NamedSharding(on, P("x"))
    x, seen = jax.device_put(jnp.arange(8.0), place), []

    def double(x, other):
        seen.append(mesh.active())
        return mesh.split_along(2 * x["x"], 0)

    run = lambda x: mesh.on_mesh(double, {"x": x}, None, outputs=lambda: P("x"))  # noqa: E731
    for f in (run, jax.jit(run)):
        found = f(x)
        np.testing.assert_array_equal(found, 2.0 * np.arange(8))
        assert found.sharding.is_equivalent_to(place, 1)
        assert found.sharding.mesh == on
    assert seen == [True, True]
    assert not mesh.active()
    with pytest.raises(ZeroDivisionError):
        mesh.on_mesh(lambda x: 1 / 0, x, outputs=P)
    assert not mesh.active()


# Networks with convolutions and batch norms -----------------------------------------------------


def convolutional():
    """Parameters and eval-mode function: convolutions, norms, a residual, a depthwise kernel."""
    shapes = {"a": (3, 3, 3, 16), "deep": (3, 3, 1, 16), "b": (3, 3, 16, 24), "c": (1, 1, 24, 16)}
    kernels = {name: jnp.asarray(normal(*shape)) for name, shape in shapes.items()}
    norms = {
        f"norm_{name}": {
            "scale": jnp.asarray(normal(shape[-1])),
            "offset": jnp.asarray(normal(shape[-1])),
            "mean": jnp.asarray(normal(shape[-1])),
            "variance": 0.5 + jnp.asarray(normal(shape[-1])) ** 2,
        }
        for name, shape in shapes.items()
    }

    def conv(x, kernel, groups=1):
        places = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=places, feature_group_count=groups
        )

    def norm(x, p):
        return (x - p["mean"]) * jax.lax.rsqrt(p["variance"] + 1e-5) * p["scale"] + p["offset"]

    def apply(p, x):
        x = jax.nn.relu(norm(conv(x, p["a"]), p["norm_a"]))
        y = jax.nn.relu(norm(conv(x, p["deep"], p["deep"].shape[-1]), p["norm_deep"]))
        y = jax.nn.relu(norm(conv(y, p["b"]), p["norm_b"]))
        x = x + norm(conv(y, p["c"]), p["norm_c"])
        return x.mean((1, 2)) @ p["out"]

    return {**kernels, **norms, "out": jnp.asarray(normal(16, 10))}, apply


def fsdp(shape: tuple[int, ...]) -> P:
    """The longest axis that divides by the devices."""
    dividing = [i for i, n in enumerate(shape) if n % 8 == 0]
    return _split(shape, max(dividing, key=lambda i: shape[i], default=None))


def tensor(shape: tuple[int, ...]) -> P:
    """Every neuron of a kernel on its device."""
    return _split(shape, max((i for i, n in enumerate(shape) if n % 8 == 0), default=None))


def _split(shape, axis):
    return P(*("x" if i == axis else None for i in range(len(shape))))


@pytest.mark.filterwarnings("ignore:.*do not divide")
@pytest.mark.parametrize(
    ("layout", "method"),
    [(fsdp, {"order": "simultaneous"}), (tensor, {"merge": "preserving"})],
    ids=["fsdp", "tensor"],
)
def test_convolutions_and_batch_norms(layout, method):
    params, apply = convolutional()
    graph = ifjax.trace(apply, params, jnp.zeros((1, 4, 4, 3)))
    assert len(graph.groups) == 2
    assert len(graph.structure.norms) == 4
    spec = graph.spec(0.5, solver="nearest", **method)  # 8 of 16, and 12 of 24, which do not divide
    on = devices((8,), ("x",))
    full = jax.device_put(
        params, jax.tree.map(lambda x: NamedSharding(on, layout(x.shape)), params)
    )
    places = ifjax.small_shardings(spec, full)
    found = jax.jit(lambda p: ifjax.fuse_params(p, spec), out_shardings=places)(full)
    wanted = ifjax.fuse_params(params, spec)
    for (path, x), y, place in zip(
        jax.tree_util.tree_leaves_with_path(found),
        *map(jax.tree.leaves, (wanted, places)),
        strict=True,
    ):
        assert x.sharding.is_equivalent_to(place, x.ndim), path
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=3e-5, err_msg=str(path))


def test_scores_are_computed_where_the_parameters_lie():
    """On explicit axes, too, which nothing but `on_mesh` takes away."""
    params = {"a": jnp.asarray(normal(8, 16)), "b": jnp.asarray(normal(16, 8))}
    spec = ifjax.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.zeros((1, 8))).spec(0.5)
    (wanted,) = ifjax.neuron_scores(params, spec).values()
    for kind in (AxisType.Auto, AxisType.Explicit):
        place = NamedSharding(devices((8,), ("x",), kind), P("x"))
        full = jax.device_put(params, place)
        for run in (ifjax.neuron_scores, jax.jit(ifjax.neuron_scores, static_argnums=1)):
            (found,) = run(full, spec).values()
            np.testing.assert_allclose(found, wanted, rtol=1e-6)
            assert found.sharding.mesh == place.mesh
