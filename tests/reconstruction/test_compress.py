"""`compress` on small networks of every kind, against brute force where there is one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from ifjax.reconstruction.journal import Journal
from tests.reconstruction.random_weights import normal


def error(got, want):
    return float(jnp.sqrt(jnp.mean((got - want) ** 2) / jnp.var(want)))


def errors(apply, params, x, ratio=0.5, **options):
    """Relative error of the outputs after plain pruning and after compress; and the rest."""
    graph = ifjax.trace(apply, params, x)
    spec = graph.spec(ratio, method="prune", importance="reconstruction", **options)
    plain = dataclasses.replace(spec, method=dataclasses.replace(spec.method, importance="l1"))
    small, report = ifjax.compress(apply, params, spec, [x])
    apply_small = ifjax.shrink(apply, spec)
    want = apply(params, x)
    before = error(apply_small(ifjax.fuse_params(params, plain), x), want)
    return before, error(apply_small(small, x), want), small, report, spec


def layer_norm(h):
    return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)


def conv(x, w, stride=1, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def batch_norm(p, x):
    return (x - p["mean"]) / jnp.sqrt(p["variance"] + 1e-5) * p["scale"] + p["offset"]


def residual(p, x):
    h = jax.nn.relu(x @ p["in"])
    return (h + jax.nn.relu(h @ p["up"] + p["bias"]) @ p["down"]) @ p["out"]


def convolutions(p, x):
    h = jax.nn.relu(batch_norm(p["norm"], conv(x, p["c1"])))
    h = jax.nn.relu(conv(conv(h, p["depthwise"], groups=p["depthwise"].shape[-1]), p["point"], 2))
    h = jax.nn.relu(conv(h, p["grouped"], groups=2))
    return h.reshape(h.shape[0], -1) @ p["out"]


def joined(p, x):
    """A convolution and the projection of its shortcut meet at an add."""
    h = jax.nn.relu(conv(x, p["c1"]))
    h = conv(jax.nn.relu(conv(h, p["a"], 2)), p["b"]) + conv(h, p["short"], 2) + p["bias"]
    return jax.nn.relu(h).mean((1, 2)) @ p["out"]


def attention(p, x):
    h = x @ p["in"]
    q, k, v = (jnp.einsum("btc,chd->bthd", h, p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(8), -1)
    h = h + jnp.einsum("bhts,bshd,hdc->btc", weights, v, p["o"])
    return layer_norm(h) @ p["out"]


def experts(p, x):
    gate = jax.nn.softmax(x @ p["gate"], -1)
    h = jax.nn.relu(jnp.einsum("nc,ecf->enf", x, p["up"]))
    return jnp.einsum("enf,efc,ne->nc", h, p["down"], gate) @ p["out"]


def siamese(p, x):
    """Two uses of every weight."""
    f = lambda x: jax.nn.relu(x @ p["a"]) @ p["b"]  # noqa: E731
    return f(x) + f(-x) @ p["out"]


def recurrent(p, x):
    """A gated unit over six steps, from a state of zeros; the last state is read."""

    def step(h, x):
        gate = jax.nn.sigmoid(x @ p["gx"] + h @ p["gh"] + p["gb"])
        return gate * h + (1 - gate) * jnp.tanh(x @ p["x"] + h @ p["h"] + p["b"]), None

    start = jnp.zeros((x.shape[0], p["h"].shape[0]), x.dtype)
    return lax.scan(step, start, x.swapaxes(0, 1))[0] @ p["out"]


CASES = {
    "recurrent": (
        recurrent,
        {
            **{"gx": (8, 24), "gh": (24, 24), "gb": (24,)},
            **{"x": (8, 24), "h": (24, 24), "b": (24,), "out": (24, 6)},
        },
        (64, 6, 8),
    ),
    "residual": (
        residual,
        {"in": (16, 32), "up": (32, 64), "bias": (64,), "down": (64, 32), "out": (32, 10)},
        (128, 16),
    ),
    "convolutions": (
        convolutions,
        {
            "c1": (3, 3, 3, 16),
            "norm": dict.fromkeys(("scale", "offset", "mean", "variance"), (16,)),
            "depthwise": (3, 3, 1, 16),
            "point": (1, 1, 16, 24),
            "grouped": (3, 3, 12, 32),
            "out": (4 * 4 * 32, 10),
        },
        (32, 8, 8, 3),
    ),
    "joined": (
        joined,
        {
            "c1": (3, 3, 3, 16),
            "a": (3, 3, 16, 24),
            "b": (3, 3, 24, 24),
            "short": (1, 1, 16, 24),
            "bias": (24,),
            "out": (24, 10),
        },
        (32, 8, 8, 3),
    ),
    "attention": (
        attention,
        {
            "in": (16, 32),
            **dict.fromkeys("qkv", (32, 4, 8)),
            "o": (4, 8, 32),
            "out": (32, 10),
        },
        (48, 6, 16),
    ),
    "experts": (
        experts,
        {"gate": (16, 3), "up": (3, 16, 24), "down": (3, 24, 16), "out": (16, 10)},
        (128, 16),
    ),
    "siamese": (siamese, {"a": (16, 24), "b": (24, 10), "out": (10, 10)}, (128, 16)),
}


def made(shapes):
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    params = jax.tree.unflatten(tree, [normal(i, *s) for i, s in enumerate(leaves)])
    if "norm" in params:
        norm = params["norm"]
        params["norm"] = norm | {k: 1 + abs(norm[k]) for k in ("scale", "variance")}
    return params


@pytest.mark.parametrize("name", CASES)
def test_nearer_to_the_dense_network(name):
    apply, shapes, inputs = CASES[name]
    params, x = made(shapes), jnp.asarray(np.random.default_rng(9).normal(size=inputs))
    before, after, small, report, spec = errors(apply, params, x)
    assert after < 0.8 * before, (before, after)
    assert {path: leaf.shape for path, leaf in _leaves(small).items()} == {
        path: spec.structure.shape(path) for path in spec.structure.leaf
    }
    assert {c.group for c in report.chosen} == set(spec.structure.widths)
    solved = {path for s in report.solved for path in s.sites}
    follows = {path for paths, _ in report.follows for path in paths.split(", ")}
    consumers = {m.path for g in spec.groups for m in g.members if m.role == "consumer"}
    assert consumers <= solved | follows, "every weight is solved for, or has a reason"
    for s in report.solved:
        assert s.after <= s.before * 1.001 + 1e-9
    assert str(report).startswith("group")


def _leaves(tree):
    return {
        jax.tree_util.keystr(p, simple=True, separator="/"): x
        for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_one_unit_is_the_ridge_solution_of_its_inputs():
    """Two layers: the second is what least squares give on what the small first one computes."""
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(64, 6))
        params = {"w1": normal(1, 6, 12), "b1": normal(2, 12), "w2": normal(3, 12, 5)}
        params |= {"b2": normal(4, 5)}
        apply = lambda p, x: jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] * 2 - p["b2"]  # noqa: E731
        graph = ifjax.trace(apply, params, x)
        spec = graph.spec(0.5, method="prune", importance="reconstruction")
        small, report = ifjax.compress(apply, params, spec, [x])
        biases = np.asarray(params["b1"])
        index = [int(np.flatnonzero(biases == b)[0]) for b in np.asarray(small["b1"])]
        hidden = np.asarray(jnp.tanh(x @ small["w1"] + small["b1"]))
        target = np.asarray(apply(params, x))
        [solved] = report.solved
        unit = np.sqrt(solved.shrinkage * (hidden**2).sum() / 6)
        start = 2 * np.asarray(params["w2"])[index]
        rows = np.vstack([hidden, unit * np.eye(6)])
        rows = np.hstack([rows, np.concatenate([np.ones(64), np.zeros(6)])[:, None]])
        want = np.linalg.lstsq(rows, np.vstack([target, unit * start]), rcond=None)[0]
        np.testing.assert_allclose(2 * np.asarray(small["w2"]), want[:6], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(-np.asarray(small["b2"]), want[6], rtol=1e-8, atol=1e-10)


def stack_of(layers):
    return jax.tree.map(lambda *xs: jnp.stack(xs), *layers)


def test_a_scan_is_what_its_layers_are():
    """Layers of a scan, stacked on any axis, and the same layers one by one give the same."""
    layers = [
        {"up": normal(i, 12, 24), "gate": normal(i + 5, 12, 24), "down": normal(i + 9, 24, 12)}
        for i in range(3)
    ]
    ends = {"in": normal(20, 8, 12), "out": normal(21, 12, 6)}

    def body(h, p):
        z = layer_norm(h)
        return h + (jax.nn.silu(z @ p["gate"]) * (z @ p["up"])) @ p["down"]

    def one_by_one(p, x):
        h = x @ p["in"]
        for layer in p["layers"]:
            h = body(h, layer)
        return h @ p["out"]

    def scanned(p, x):
        swapped = p["layers"] | {"up": jnp.swapaxes(p["layers"]["up"], 0, 1)}
        step = jax.checkpoint(lambda h, p: (body(h, p), None))
        return lax.scan(step, x @ p["in"], swapped)[0] @ p["out"]

    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 8)))
    stacked = stack_of(layers)
    stacked["up"] = jnp.swapaxes(stacked["up"], 0, 1)
    a = errors(one_by_one, {**ends, "layers": layers}, x)
    b = errors(scanned, {**ends, "layers": stacked}, x)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-3)
    up = np.swapaxes(b[2]["layers"]["up"], 0, 1)
    for i in range(3):
        np.testing.assert_allclose(a[2]["layers"][i]["up"], up[i], atol=1e-4)
        np.testing.assert_allclose(a[2]["layers"][i]["down"], b[2]["layers"]["down"][i], atol=1e-4)


def test_statistics_are_the_small_networks_own_and_change_nothing():
    apply, shapes, inputs = CASES["convolutions"]
    params, x = made(shapes), jnp.asarray(np.random.default_rng(9).normal(size=inputs))
    _, _, small, _, spec = errors(apply, params, x)
    read = conv(x, small["c1"])
    np.testing.assert_allclose(small["norm"]["mean"], read.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(small["norm"]["variance"], read.var((0, 1, 2)), rtol=1e-4)
    again = ifjax.reset_statistics(ifjax.shrink(apply, spec), small, [(x,)])
    before, after = (ifjax.shrink(apply, spec)(p, x) for p in (small, again))
    np.testing.assert_allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("merge", ["reference", "preserving"])
@pytest.mark.parametrize("name", ["convolutions", "attention", "scan"])
@pytest.mark.filterwarnings("ignore:.*less than a tenth is left")  # of 64 inputs held out, it is
def test_fused_producers_are_met_by_solved_consumers(name, merge):
    """The first layers are those of `fuse_params`; what reads them is nearer to the dense."""
    if name == "scan":
        layers = {"up": normal(1, 2, 12, 24), "down": normal(2, 2, 24, 12)}
        params = {"in": normal(3, 8, 12), "layers": layers, "out": normal(4, 12, 6)}
        step = lambda h, p: (h + jnp.tanh(h @ p["up"]) @ p["down"], None)  # noqa: E731
        apply = lambda p, x: lax.scan(step, x @ p["in"], p["layers"])[0] @ p["out"]  # noqa: E731
        inputs, include = (64, 8), "layers*"
    else:
        (apply, shapes, inputs), include = CASES[name], None
        params = made(shapes)
    x = jnp.asarray(np.random.default_rng(9).normal(size=inputs))
    graph = ifjax.trace(apply, params, x)
    spec = graph.spec(0.5, include=include, importance="l2", solver="nearest", merge=merge)
    fused = ifjax.fuse_params(params, spec)
    small, report = ifjax.compress(apply, params, spec, [x])
    apply_small = ifjax.shrink(apply, spec)
    want = apply(params, x)
    before, after = (error(apply_small(p, x), want) for p in (fused, small))
    assert after < 0.8 * before, (before, after)
    assert "importance; the others merged into them" in {c.how for c in report.chosen}
    for s in report.solved:
        assert s.after <= s.before * 1.001 + 1e-9


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", ["recurrent", "attention"])
def test_killed_anywhere_it_goes_on_to_the_same_bits(name, tmp_path, monkeypatch):
    apply, shapes, inputs = CASES[name]
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), made(shapes))
    x = jnp.asarray(np.random.default_rng(9).normal(size=inputs), jnp.bfloat16)
    spec = ifjax.trace(apply, params, x).spec(0.5)
    want, report = ifjax.compress(apply, params, spec, [x], folder=tmp_path / "whole")
    save, left = Journal._save, []

    def killed(self, *args):
        save(self, *args)
        left.append(1)
        if len(left) % 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "_save", killed)
    for _ in range(20):
        try:
            got, again = ifjax.compress(apply, params, spec, [x], folder=tmp_path / "killed")
            break
        except KeyboardInterrupt:
            continue
    assert len(left) > 2
    assert bits(got) == bits(want)
    assert str(again) == str(report)
    with pytest.raises(ValueError, match="holds another run of compress"):
        ifjax.compress(apply, params, spec, [x + 1], folder=tmp_path / "killed")
    monkeypatch.undo()
    (tmp_path / "at once").mkdir()
    (tmp_path / "at once" / "run.1.tmp").write_text("")  # killed before anything was done
    ifjax.compress(apply, params, spec, [x], folder=tmp_path / "at once")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(ValueError, match="expected an empty folder"):
        ifjax.compress(apply, params, spec, [x], folder=tmp_path / "other")
