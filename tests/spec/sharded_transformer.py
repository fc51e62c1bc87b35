"""A transformer whose parameters lie spread over a mesh, and what its programs move."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ifjax

SEED = 0


def transformer(blocks: int, width: int, hidden: int, heads: int = 8, tokens: int = 32):
    """Parameters and function of a decoder with gated feed-forward blocks."""
    rng = np.random.default_rng(SEED)

    def kernel(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)

    dim = width // heads
    params = {"embed": kernel(tokens, width), "out": kernel(width, tokens)}
    for i in range(blocks):
        attention = {name: kernel(width, heads, dim) for name in "qkv"}
        inner = {"gate": kernel(width, hidden), "up": kernel(width, hidden)}
        down = kernel(hidden, width)
        params[f"block{i}"] = {**attention, "o": kernel(heads, dim, width), **inner, "down": down}

    def norm(x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    def apply(params, tokens):
        x = params["embed"][tokens]
        for i in range(blocks):
            p, h = params[f"block{i}"], norm(x)
            q, k, v = (jnp.einsum("btd,dhk->bthk", h, p[name]) for name in "qkv")
            weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
            x = x + jnp.einsum("bhts,bshk,hkd->btd", weights, v, p["o"])
            h = norm(x)
            x = x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]
        return x @ params["out"]

    return params, apply


LAYOUTS = {
    # Every kernel on its first axis; every neuron on its device; both.
    "fsdp": ((8,), {}, P("x")),
    "tensor": (
        (8,),
        {"o": P("x"), "down": P("x"), "embed": P(None, "x"), "out": P("x")},
        P(None, "x"),
    ),
    "mixed": (
        (2, 4),
        {"o": P("y", None, "x"), "down": P("y", "x"), "embed": P("y", "x")},
        P("x", "y"),
    ),
}


def devices(shape, explicit=False):
    names = ("x", "y")[: len(shape)]
    kind = (AxisType.Explicit if explicit else AxisType.Auto,) * len(shape)
    return Mesh(np.array(jax.devices()[: math.prod(shape)]).reshape(shape), names, axis_types=kind)


def shardings(params, layout, mesh=None):
    shape, special, other = LAYOUTS[layout]
    mesh = mesh or devices(shape)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: NamedSharding(mesh, special.get(path[-1].key, other)), params
    )


@functools.cache
def network():
    params, apply = transformer(1, 16, 48)
    return params, apply, ifjax.trace(apply, params, jnp.zeros((1, 3), jnp.int32))


BYTES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4}
COLLECTIVE = r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("


def collectives(text: str) -> list[tuple[str, int]]:
    """Every collective of a program, and the bytes that one device holds of its results.

    What a loop of known length does counts as often; another, Sinkhorn's, counts once.
    """
    times, parts = {}, re.split(r"\n(?=%\S+ \(|ENTRY )", text)
    for part in parts:
        for line in part.splitlines():
            if body := re.search(r" while\(.*body=%([\w.-]+)", line):
                count = re.search(r'known_trip_count":{"n":"(\d+)"', line)
                times[body[1]] = int(count[1]) if count else 1
    found = []
    for part in parts:
        name = re.match(r"%([\w.-]+)", part)
        for shape, kind in re.findall(COLLECTIVE, part):
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", shape)
            size = sum(
                BYTES[t] * math.prod(map(int, filter(None, s.split(",")))) for t, s in shapes
            )
            found.append((kind, size * (times.get(name[1], 1) if name else 1)))
    return found
