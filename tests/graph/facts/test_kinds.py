"""Neurons, heads, their dimensions, and what is cut only when it is named."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import ifjax
from ifjax.graph.facts.kinds import joint_kind
from tests.graph.laws import array, arrays, between, hold

X = array(2, 5, 4)


def kinds(graph):
    return {g.name: (g.size, g.kind) for g in graph.groups}


def attention(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 4)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def test_separate_projections():
    def f(p, x):
        q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
        return jnp.einsum("bthd,hdc->btc", attention(q, k, v), p["o"]).sum(1)

    p = arrays(q=(4, 3, 6), k=(4, 3, 6), v=(4, 3, 5), o=(3, 5, 2))
    graph = hold(f, p, X)
    assert kinds(graph) == {
        "q": (3, "head"),
        "q (head_dim)": (6, "head_dim"),
        "v": (5, "head_dim"),
    }


@pytest.mark.parametrize("stacked", [False, True])
def test_values_of_several_layers_are_no_heads(stacked):
    """Their dimension stays as it is in products of two layers, none of which is of the other."""

    def f(p, x):
        for i in range(2):
            layer = {k: w[i] for k, w in p.items()} if stacked else p
            q, k, v = (jnp.einsum("btc,chd->bthd", x, layer[n]) for n in "qkv")
            x = x + jnp.einsum("bthd,hdc->btc", attention(q, k, v), layer["o"])
        return x.sum(1)

    shapes = {"q": (4, 3, 6), "k": (4, 3, 6), "v": (4, 3, 5), "o": (3, 5, 4)}
    p = arrays(**{k: ((2,) if stacked else ()) + shape for k, shape in shapes.items()})
    graph = ifjax.trace(f, p, X)
    assert sorted(kinds(graph).values()) == [(3, "head"), (5, "head_dim"), (6, "head_dim")]


@pytest.mark.parametrize("order", ["heads outside", "heads inside", "interleaved"])
def test_one_kernel_for_all_three(order):
    def f(p, x):
        y = x @ p["qkv"]
        if order == "heads outside":
            q, k, v = (z.reshape(2, 5, 3, 6) for z in jnp.split(y, 3, -1))
        elif order == "heads inside":
            q, k, v = jnp.moveaxis(y.reshape(2, 5, 3, 3, 6), 2, 0)
        else:
            q, k, v = jnp.split(y.reshape(2, 5, 3, 18), 3, -1)
        return attention(q, k, v).reshape(2, 5, 18) @ p["o"]

    graph = hold(f, arrays(qkv=(4, 54), o=(18, 2)), X)
    found = sorted((g.size, g.kind) for g in graph.groups)
    heads, tied = (3, "head"), (6, "head_dim")  # one factor of three cannot be cut at two depths
    assert found == ([heads, tied] if order == "heads inside" else [heads, tied, tied])


def test_one_head_without_a_batch_axis():
    def f(p, x):
        q, k, v = (x[0] @ p[n] for n in "qkv")
        return jax.nn.softmax(q @ k.T) @ v @ p["o"]

    graph = hold(f, arrays(q=(4, 6), k=(4, 6), v=(4, 5), o=(5, 2)), X)
    assert kinds(graph) == {"q": (6, "head_dim"), "v": (5, "neuron")}


def test_experts_are_cut_by_name_and_their_inner_width_by_default():
    def f(p, x):
        gate = jax.nn.softmax(x @ p["router"])
        h = jax.nn.relu(jnp.einsum("btc,ecf->btef", x, p["up"]))
        return jnp.einsum("bte,btef,efc->btc", gate, h, p["down"]).sum(1)

    p = arrays(router=(4, 3), up=(3, 4, 6), down=(3, 6, 2))
    graph = hold(f, p, X)
    by_size = {g.size: g.kind for g in graph.groups}
    assert by_size == {3: "free", 6: "neuron"}


def by_rows(p, x, expert):
    """Every example by its own loop step, with kernels cut out at a place that data chooses."""

    def one(row):
        x, i = row
        up, down = (jax.lax.dynamic_index_in_dim(p[n], i, keepdims=False) for n in ("up", "down"))
        return jax.nn.relu(x @ up) @ down

    return jax.lax.map(one, (x, expert))


GATHERED = {
    "by einsum": lambda p, x, e: jnp.einsum(
        "bf,bfd->bd", jax.nn.relu(jnp.einsum("bc,bcf->bf", x, p["up"][e])), p["down"][e]
    ),
    "mapped": lambda p, x, e: jax.vmap(lambda x, i: jax.nn.relu(x @ p["up"][i]) @ p["down"][i])(
        x, e
    ),
    "in a loop": by_rows,
    "with a bias, gated": lambda p, x, e: jnp.einsum(
        "bf,bfd->bd",
        jax.nn.silu(jnp.einsum("bc,bcf->bf", x, p["gate"][e]))
        * (jnp.einsum("bc,bcf->bf", x, p["up"][e]) + p["bias"][e]),
        p["down"][e],
    ),
    "taken along the axis": lambda p, x, e: jnp.einsum(
        "bf,bfd->bd",
        jax.nn.relu(jnp.einsum("bc,bcf->bf", x, jnp.take(p["up"], e, axis=0))),
        jnp.take(p["down"], e, axis=0),
    ),
    "two for each": lambda p, x, e: jnp.einsum(
        "bkf,bkfd->bd",
        jax.nn.relu(jnp.einsum("bc,bkcf->bkf", x, 2 * p["up"][jnp.stack([e, (e + 1) % 4], 1)])),
        p["down"][jnp.stack([e, (e + 1) % 4], 1)],
    ),
}


@pytest.mark.parametrize("how", GATHERED)
def test_experts_that_are_gathered_by_index_are_of_neurons(how):
    """What data looks up are kernels: what they are multiplied with is compared with nothing."""

    def f(p, x):
        h = jnp.tanh(x @ p["in"])
        expert = jnp.argmax(x @ p["router"], -1)
        return GATHERED[how](p, h, expert) @ p["out"]

    shapes = {"in": (3, 5), "router": (3, 4), "up": (4, 5, 8), "down": (4, 8, 6), "out": (6, 2)}
    shapes |= {"gate": (4, 5, 8), "bias": (4, 8)} if "gated" in how else {}
    graph = hold(f, arrays(**shapes), array(7, 3))
    assert {g.size: g.kind for g in graph.groups if g.size > 4} == dict.fromkeys(
        (5, 6, 8), "neuron"
    )


def test_what_is_looked_up_and_compared_is_a_head_dim():
    """Rows of two tables: a factorisation of what users and items have in common."""

    def f(p, users, items):
        u, v = p["users"][users] @ p["a"], p["items"][items] @ p["b"]
        return jnp.einsum("bd,bd->b", u, v)

    p = arrays(users=(5, 4), items=(6, 3), a=(4, 8), b=(3, 8))
    graph = ifjax.trace(f, p, jnp.arange(5), jnp.arange(5))
    assert {g.size: g.kind for g in graph.groups}[8] == "head_dim"


EMBEDDED = {
    "as they are": lambda p, e: (e, e @ p["a"], e),
    "projected": lambda p, e: [
        jnp.einsum("btd,dhk->bthk", e.reshape(2, 5, 12), p[name]) for name in "abc"
    ],
}


@pytest.mark.parametrize("how", EMBEDDED)
def test_rows_of_an_embedding_with_several_axes_are_no_kernels(how):
    """A table of heads: its rows are compared and weighed like others."""

    def f(p, tokens):
        q, k, v = EMBEDDED[how](p, p["table"][tokens])
        weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
        y = jnp.einsum("bhts,bshd->bthd", weights, v)
        return jnp.einsum("bthd,hdo->bto", y, p["out"])

    p = arrays(table=(7, 2, 6), out=(2, 6, 3))
    p |= arrays(a=(6, 6)) if how == "as they are" else arrays(**dict.fromkeys("abc", (12, 2, 6)))
    graph = ifjax.trace(f, p, jnp.zeros((2, 5), int))
    found = sorted(g.kind for g in graph.groups)
    more = ["head_dim", "neuron", "neuron"] if how == "projected" else []
    assert found == ["head", "head_dim", *more]


def test_group_norm_is_cut_by_groups():
    def middle(h):
        g = h.reshape(4, 4, 2)
        g = (g - g.mean(2, keepdims=True)) / jnp.sqrt(g.var(2, keepdims=True) + 1e-5)
        return g.reshape(4, 8)

    graph = hold(*between(middle))
    assert [(g.size, g.kind, g.exact) for g in graph.groups] == [
        (4, "neuron", True),
        (2, "free", False),
    ]


def test_maxout_and_learned_tokens_are_free():
    def f(p, x):
        h = jnp.einsum("btc,ckf->btkf", x, p["a"]).max(2)
        tokens = jnp.broadcast_to(p["tokens"], (2, 3, 4)) @ p["t"]
        return (jnp.concatenate([h, tokens], 1) @ p["b"]).max(1)

    p = arrays(a=(4, 3, 6), tokens=(3, 4), t=(4, 6), b=(6, 2))
    graph = ifjax.trace(f, p, X)
    assert {g.size: g.kind for g in graph.groups if g.size == 3} == {3: "free"}
    assert [g.kind for g in graph.groups if g.size == 6] == ["neuron"]


def test_the_kind_that_one_of_two_functions_sees():
    assert joint_kind(["neuron", "head"]) == "head"
    assert joint_kind(["neuron", "free", "head_dim"]) == "head_dim"
    assert joint_kind(["free", "free"]) == "free"


@pytest.mark.parametrize("readout", ["bc,c->bc", "bcn,cn->bc"])
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_one_output_per_channel_makes_no_expert(readout):
    """A scale, or a state-space readout, as a product that batches the channels."""

    def f(p, x):
        x = x @ p["a"]
        state = x if "n" not in readout else jnp.tanh(x[..., None] * p["in"])
        return jnp.einsum(readout, state, p["scale"]) @ p["b"]

    n = (8, 3) if "n" in readout else (8,)
    shapes = {"a": (3, 8), "scale": n, "b": (8, 2)} | ({"in": (8, 3)} if "n" in readout else {})
    graph = hold(f, arrays(**shapes), array(4, 3))
    (group,) = (g for g in graph.groups if g.size == 8)
    assert group.kind == "neuron"
    assert {m.path: m.role for m in group.members}["scale"] == "multiplicative"


# Classes that a value is compared with itself by

ITSELF = {
    "einsum": lambda h: jnp.einsum("bi,bi->b", h, h) / h.shape[-1],
    "vdot": lambda h: jax.vmap(jnp.vdot)(h, h),
    "inner": lambda h: jax.vmap(jnp.inner)(h, h),
    "matrix product": lambda h: (h[:, None] @ h[:, :, None])[:, 0, 0],
    "transposed": lambda h: jnp.diagonal(h @ h.T),
    "scaled": lambda h: jnp.einsum("bi,bi->b", h * 0.3, h),
    "stopped": lambda h: jnp.einsum("bi,bi->b", jax.lax.stop_gradient(h), h),
    "centred twice": lambda h: jnp.einsum(
        "bi,bi->b", h - h.mean(-1, keepdims=True), h - h.mean(-1, keepdims=True)
    ),
    "jitted": jax.jit(lambda h: jnp.einsum("bi,bi->b", h, h)),
    "converted": lambda h: jnp.einsum("bi,bi->b", h.astype(jnp.float32), h.astype(jnp.float32)),
    "mapped": lambda h: jax.lax.map(lambda row: row @ row, h),
    "absolute": lambda h: jnp.einsum("bi,bi->b", jnp.abs(h), jnp.abs(h)),
}


@pytest.mark.parametrize("norm", ITSELF)
def test_a_layer_that_is_normed_by_a_product_is_one_of_neurons(norm):
    def middle(h):
        return h * jax.lax.rsqrt(ITSELF[norm](h) + 1)[:, None]

    f, p, x = between(middle, 16)
    graph = ifjax.trace(f, p, x)
    assert [(g.size, g.kind) for g in graph.groups] == [(16, "neuron")]
    if norm not in ("converted", "mapped"):
        hold(f, p, x)


BESIDE = {
    "of the batch": lambda h: ((h @ h.T) ** 2).sum(),
    "of features": lambda h: ((h.T @ h) ** 2).sum(),
    "of centred features": lambda h: (((h - h.mean(0)).T @ (h - h.mean(0))) ** 2).sum(),
    "normalised": lambda h: (
        (h / jnp.linalg.norm(h, axis=1, keepdims=True))
        @ (h / jnp.linalg.norm(h, axis=1, keepdims=True)).T
    ).sum(),
    "kernel": lambda h: jnp.exp(-((h @ h.T) ** 2)).sum(),
    "contrastive": lambda h: jax.nn.logsumexp(h @ h.T, 1).sum(),
    "of every example": lambda h: jnp.einsum("bi,bj->bij", h, h).std(),
    "of layer norms": lambda h: (jax.nn.standardize(h) @ jax.nn.standardize(h).T).std(),
}


@pytest.mark.parametrize("gram", BESIDE)
def test_a_gram_matrix_beside_the_output_makes_no_heads(gram):
    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        return h @ p["b"], BESIDE[gram](h)

    graph = ifjax.trace(f, arrays(a=(3, 8), b=(8, 2)), array(4, 3))
    assert [(g.size, g.kind) for g in graph.groups] == [(8, "neuron")]


def test_a_norm_by_a_product_in_a_loop():
    def f(p, x):
        def step(h, k):
            h = h * jax.lax.rsqrt(jnp.einsum("bi,bi->b", h, h))[:, None]
            return jnp.tanh(h @ k), None

        return jax.lax.scan(step, x @ p["a"], p["layers"])[0] @ p["b"]

    graph = ifjax.trace(f, arrays(a=(3, 8), layers=(3, 8, 8), b=(8, 2)), array(4, 3))
    assert {g.size: g.kind for g in graph.groups if g.size == 8} == {8: "neuron"}


def test_gates_by_einsum_make_no_heads():
    def f(p, x):
        h = jnp.einsum("bhwc,cd->bhwd", x, p["a"])
        gate = jax.nn.sigmoid(jax.nn.relu(h.mean((1, 2)) @ p["down"]) @ p["up"])
        return jnp.einsum("bhwd,bd->bhwd", h, gate).sum((1, 2)) @ p["b"]

    p = arrays(a=(3, 8), down=(8, 5), up=(5, 8), b=(8, 2))
    graph = hold(f, p, array(2, 4, 3, 3))
    assert sorted((g.size, g.kind) for g in graph.groups) == [(5, "neuron"), (8, "neuron")]


@pytest.mark.parametrize("kernel", ["softmax", "sigmoid"])
def test_attention_of_features_with_themselves_is_attention(kernel):
    """A softmax of their products weighs values."""

    def f(p, x):
        h = x @ p["a"]
        weights = getattr(jax.nn, kernel)(jnp.einsum("bqd,bkd->bqk", h, h))
        return (jnp.einsum("bqk,bkd->bqd", weights, h) @ p["b"]).sum(1)

    graph = ifjax.trace(f, arrays(a=(4, 6), b=(6, 2)), X)
    assert kinds(graph) == {graph.groups[0].name: (6, "head_dim")}


COMPARED = {
    "product": lambda q, k: (q[:, :, None] * k[:, None]).sum(-1) / 2,
    "distance": lambda q, k: -((q[:, :, None] - k[:, None]) ** 2).sum(-1),
    "absolute distance": lambda q, k: -jnp.abs(k[:, None] - q[:, :, None]).sum(-1),
}


@pytest.mark.parametrize("how", COMPARED)
def test_queries_and_keys_that_are_compared_by_hand(how):
    """Entry by entry and summed up: a softmax of it weighs values."""

    def f(p, x):
        q, k, v = (x @ p[n] for n in "qkv")
        return (jax.nn.softmax(COMPARED[how](q, k)) @ v @ p["o"]).sum(1)

    p = arrays(q=(4, 6), k=(4, 6), v=(4, 5), o=(5, 2))
    graph = hold(f, p, X) if how == "product" else ifjax.trace(f, p, X)
    assert {g.size: g.kind for g in graph.groups} == {6: "head_dim", 5: "neuron"}


def test_a_gated_layer_is_no_comparison():
    """Its products are normed, and summed up into a gate; values are weighed by a softmax."""

    def f(p, x):
        h = jax.nn.silu(x @ p["a"]) * (x @ p["g"])
        h = h / (h.std(-1, keepdims=True) + 1)
        weights = jax.nn.softmax(h @ p["w"], 1)
        return jnp.einsum("bt,btf->bf", weights, h) @ p["b"]

    graph = hold(f, arrays(a=(4, 6), g=(4, 6), w=(6,), b=(6, 2)), X)
    assert [(g.size, g.kind) for g in graph.groups] == [(6, "neuron")]


def test_two_projections_that_are_compared_are_head_dims_without_a_softmax():
    def f(p, x):
        q, k, v = (x @ p[n] for n in "qkv")
        return (jnp.einsum("bqd,bkd->bqk", q, k) @ v @ p["o"]).sum(1)

    graph = ifjax.trace(f, arrays(q=(4, 6), k=(4, 6), v=(4, 5), o=(5, 2)), X)
    assert {g.size: g.kind for g in graph.groups} == {6: "head_dim", 5: "neuron"}


def test_what_is_only_compared_with_itself_is_a_head_dim():
    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        return jnp.einsum("bqd,bkd->bqk", h, h)

    graph = hold(f, arrays(a=(4, 6)), X)
    assert [(g.size, g.kind) for g in graph.groups] == [(6, "head_dim")]
