"""`allocate` on small networks whose best widths are known, or found by trying all."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.allocation.divergence import divergence_of


def normal(seed, *shape):
    scale = np.sqrt(shape[0]) if len(shape) > 1 else 10.0
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / scale, jnp.float32)


def chain(p, x):
    for name in sorted(p)[:-1]:
        x = jax.nn.relu(x @ p[name])
    return x @ p[max(p)]


X = normal(0, 96, 6) * 6


def network():
    """A chain of three groups, the second of which is made of duplicates."""
    b = normal(2, 8, 4)
    return {
        "a": normal(1, 6, 8),
        "b": jnp.concatenate([b, b], -1),
        "c": normal(3, 8, 8),
        "d": normal(4, 8, 5),
    }


def allocated(params, budget, of="flops", apply=chain, x=X, **options):
    graph = ifjax.trace(apply, params, x[:1])
    return ifjax.allocate(apply, params, graph, [x], budget, of, **options)


def kept(spec):
    return {g.name: g.kept for g in spec.groups}


@pytest.mark.parametrize("divergence", ["kl", "squared"])
def test_duplicates_go_first(divergence):
    params = {"a": network()["a"], "b": network()["b"], "c": normal(3, 8, 5)}
    spec = allocated(params, 0.3, divergence=divergence)
    assert kept(spec) == {"a": 8, "b": 4}
    small, _ = ifjax.compress(chain, params, spec, [X])
    moved = divergence_of("squared")(chain(params, X), ifjax.shrink(chain, spec)(small, X))
    assert moved < 1e-3


@pytest.mark.parametrize("of", ["flops", "weights", "neurons"])
def test_the_budget_is_met_to_within_a_neuron(of):
    params = network()
    spec = allocated(params, 0.5, of, levels=3, floor=1)
    count = {"flops": spec.structure.flops, "weights": spec.structure.weights}.get(
        of, spec.structure.neurons
    )
    assert count() <= 0.5 * count({})
    for g in spec.groups:
        assert g.kept == g.size or count({**kept(spec), g.name: g.kept + 1}) > 0.5 * count({})


def test_no_combination_of_widths_is_better_by_much():
    params = {"a": normal(1, 6, 5), "b": normal(2, 5, 6), "c": normal(3, 6, 4)}
    graph = ifjax.trace(chain, params, X[:1])
    budget, count = 0.45, graph.structure.weights
    effects = {}
    for a, b in itertools.product(range(1, 6), range(1, 7)):
        widths = {"a": a, "b": b}
        fits = count(widths) <= (1 - budget) * count({})
        if fits and all(
            count({**widths, k: n + 1}) > (1 - budget) * count({})
            for k, n in widths.items()
            if n < graph.structure.group[k].size
        ):
            effects[a, b] = effect(params, graph, widths)
    spec = allocated(params, budget, "weights", floor=1)
    found = effects[tuple(kept(spec).values())]
    assert found <= 1.05 * min(effects.values())
    assert found < max(effects.values()) / 2


def effect(params, graph, widths):
    """What compress to these widths does to the outputs."""
    spec = graph.spec(keep=widths, method="prune", importance="reconstruction")
    small, _ = ifjax.compress(chain, params, spec, [X])
    return divergence_of("kl")(chain(params, X), ifjax.shrink(chain, spec)(small, X))


def test_tied_groups_have_one_width():
    spec = allocated(network(), 0.4, uniform="[bc]", levels=3)
    found = kept(spec)
    assert found["b"] == found["c"] < 8
    spec = allocated(network(), 0.4, uniform="*", levels=2)
    assert len({*kept(spec).values()}) == 1


def test_floors_caps_and_multiples():
    spec = allocated(network(), 0.3, levels=2, floor={"b": 6, "*": 1}, cap={"a": 6})
    assert kept(spec)["b"] >= 6
    assert kept(spec)["a"] <= 6
    spec = allocated(network(), 0.3, levels=2, round_to=4)
    assert {*kept(spec).values()} <= {4, 8}
    spec = allocated(network(), 0.0, levels=2, cap={"b": 0.5})
    assert kept(spec) == {"a": 8, "b": 4, "c": 8}
    spec = allocated(network(), 0.1, levels=2, exclude="b")
    assert kept(spec)["b"] == 8


def test_layers_of_a_scan_have_one_width():
    params = {
        "in": normal(0, 6, 8),
        "up": normal(1, 3, 8, 12),
        "down": normal(2, 3, 12, 8),
        "out": normal(3, 8, 5),
    }

    def apply(p, x):
        def layer(h, w):
            return h + jax.nn.relu(h @ w[0]) @ w[1], None

        h, _ = jax.lax.scan(layer, x @ p["in"], (p["up"], p["down"]))
        return h @ p["out"]

    spec = allocated(params, 0.4, apply=apply, levels=2)
    assert {*kept(spec)} == {"in", "up"}
    assert spec.flops()[1] <= 0.6 * spec.flops()[0]
    small, _ = ifjax.compress(apply, params, spec, [X])
    assert ifjax.shrink(apply, spec)(small, X).shape == (96, 5)


def test_recurrent_layers():
    params = {
        "w": normal(1, 4, 8),
        "u": normal(2, 8, 8),
        "out": normal(3, 8, 6),
        "head": normal(4, 6, 5),
    }
    x = normal(5, 48, 3 * 4).reshape(48, 3, 4) * 10

    def apply(p, x):
        def step(h, x):
            return jnp.tanh(x @ p["w"] + h @ p["u"]), None

        h, _ = jax.lax.scan(step, jnp.zeros((x.shape[0], 8)), x.swapaxes(0, 1))
        return jax.nn.relu(h @ p["out"]) @ p["head"]

    spec = allocated(params, 0.4, apply=apply, x=x, levels=2)
    assert spec.flops()[1] <= 0.6 * spec.flops()[0]
    assert {*kept(spec)} == {"w", "out"}


def test_other_importances_and_groups_without_a_consumer():
    params = network()
    spec = allocated(params, 0.3, levels=2, importance="l1")
    assert spec.method.importance == "l1"
    assert spec.flops()[1] <= 0.7 * spec.flops()[0]
    scale = {"w": normal(1, 6, 8), "v": normal(2, 6, 8)}

    def product(p, x):  # no contraction with a weight reads the neurons
        return jax.nn.relu(x @ p["w"]) @ jax.nn.relu(x[:5] @ p["v"]).T

    [group] = ifjax.trace(product, scale, X).groups
    spec = allocated(scale, 0.3, apply=product, levels=2, x=X)
    assert kept(spec)[group.name] <= 6


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"budget": 1.0}, "budget: expected the fraction to remove"),
        ({"budget": 0.5, "of": "bytes"}, "of must be one of flops, weights, neurons"),
        (
            {"budget": 0.9, "floor": 0.5},
            r"budget 90.0% of the flops: at most \d\d.\d% can be removed",
        ),
        ({"budget": 0.5, "divergence": "cosine"}, "divergence must be 'kl', 'squared'"),
        ({"budget": 0.5, "levels": 0}, "levels: expected a positive number"),
        ({"budget": 0.5, "floor": {"z": 1}}, "floor pattern 'z' matches none"),
    ],
)
def test_what_cannot_be_had_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        allocated(network(), **options)


def test_kl_needs_logits():
    params = {"a": normal(1, 6, 8), "b": normal(2, 8, 1)}
    with pytest.raises(ValueError, match="expected logits along the last axis"):
        allocated(params, 0.3)
    spec = allocated(params, 0.3, divergence="squared", levels=2)
    assert spec.flops()[1] <= 0.7 * spec.flops()[0]
    chosen = allocated(params, 0.3, divergence=lambda a, b: float(jnp.abs(a - b).max()), levels=2)
    assert chosen.flops() == spec.flops()


def test_dimensions_of_queries_and_keys_count_by_what_is_left_of_their_products():
    """Of one product every dimension stands there twice: half of them give the same logits."""
    params = {f"{n}{i}": normal(10 * i + j, 8, 6) for i in (0, 1) for j, n in enumerate("qk")}
    params |= {n: jnp.concatenate([params[n][:, :3]] * 2, -1) for n in ("q0", "k0")}

    def apply(p, x):
        logits = [x @ p[f"q{i}"] @ (x @ p[f"k{i}"]).swapaxes(1, 2) for i in "01"]
        return sum(jax.nn.softmax(z, -1) @ x for z in logits)

    x = np.asarray(normal(5, 64, 4, 8)) * 2
    spec = allocated(params, 1 / 6, "weights", apply, x, divergence="squared", levels=2)
    assert {g.name: g.kept for g in spec.groups} == {"q0": 4, "q1": 6}
