"""The fixture networks of the Intra-Fusion reference, written in plain jax on torch-named leaves.

Weights stay in torch's layouts (OIHW, linears out x in), so that they compare leaf by leaf. The
same networks, smaller and with random weights, serve the tests of fusion.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ifjax
from ifjax.promotion import with_promotion
from ifjax.structure.structure import Structure

Leaves = dict[str, np.ndarray]
# Widths of the fixtures: hidden layers, convolutions, stages.
WIDTHS = {"mlp": (24, 18), "vgg": (12, 20, 16), "res": (8, 16)}
NORMS = ("weight", "bias", "running_mean", "running_var")


FOLDER = Path(__file__).parent / "fixtures/intra_fusion_reference"


def cases() -> dict[str, dict]:
    """Settings of all cases by name."""
    return json.loads((FOLDER / "index.json").read_text())


def load(name: str) -> Leaves:
    """All arrays of one case."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {k: arrays[k] for k in arrays}


def params(case: Leaves, when: str) -> Leaves:
    """Parameters ``before`` or ``after``."""
    return {k.removeprefix(f"{when}/"): v for k, v in case.items() if k.startswith(f"{when}/")}


def method(settings: dict) -> dict[str, Any]:
    """The options of ``graph.spec`` that a case was made with."""
    metric, ot = settings["importance"], settings["ot"]
    options = {"importance": "l1" if metric == "lamp" else metric}
    if ot is None:
        return options | {"method": "prune"}
    return options | {
        "solver": "exact",
        "cost_p": float(ot["p"]),
        "source_marginal": ot["source_probability"],
        "target_marginal": ot["target_probability"],
    }


def scores(settings: dict, case: Leaves, groups: Sequence[Any]) -> Leaves | None:
    """The stored scores where the reference's metric is not ours; groups are in its order."""
    if settings["importance"] != "lamp":
        return None
    return {g.name: case[f"group{k}/importance"] for k, g in enumerate(groups)}


def folded(plan: Structure, leaves: Mapping[str, Any]) -> Leaves:
    """Every kernel times its norm's slope, every norm as its offset, other leaves as they are.

    The reference leaves norms as the identity and its offset in the kernel's bias, which exists
    afterwards even where the layer had none.
    """
    leaves = {path: np.asarray(x, np.float64) for path, x in leaves.items()}
    for norm in plan.norms:
        slope = leaves.pop(norm.scale) / np.sqrt(leaves.pop(norm.variance) + norm.eps)
        leaves[norm.kernel] = leaves[norm.kernel] * slope[:, None, None, None]
        bias = leaves.pop(f"{norm.kernel.removesuffix('.weight')}.bias", 0)
        leaves[norm.offset] = leaves[norm.offset] + slope * (bias - leaves.pop(norm.mean))
    return leaves


def init(
    model: str, seed: int = 0, widths: Sequence[int] | None = None, dtype: Any = np.float32
) -> Leaves:
    """Random weights in general position, of the fixtures' widths or others."""
    rng = np.random.default_rng(seed)
    leaves: Leaves = {}

    def kernel(name: str, *shape: int, bias: bool = True) -> None:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        leaves[f"{name}.weight"] = rng.normal(size=shape) * scale
        if bias:
            leaves[f"{name}.bias"] = rng.normal(size=shape[0]) * 0.3

    def norm(name: str, n: int) -> None:
        signs = rng.choice([-1.0, 1.0], n)
        values = (rng.uniform(0.5, 1.5, n) * signs, *rng.normal(size=(2, n)) * 0.3)
        for key, value in zip(NORMS, (*values, rng.uniform(0.5, 2, n)), strict=True):
            leaves[f"{name}.{key}"] = value

    sizes = tuple(widths or WIDTHS[model])
    if model == "mlp":
        for i, (d, n) in enumerate(zip((6, *sizes), (*sizes, 5), strict=True)):
            kernel(f"fc{i}", n, d)
    elif model == "vgg":
        for i, (d, n) in enumerate(zip((3, *sizes[:-1]), sizes, strict=True)):
            kernel(f"conv{i}", n, d, 3, 3, bias=i < len(sizes) - 1)
            norm(f"bn{i}", n)
        kernel("fc", 10, sizes[-1])
    else:
        narrow, wide = sizes
        kernel("conv", narrow, 3, 3, 3)
        norm("bn", narrow)
        for name, d, n in (("b0", narrow, narrow), ("b1", narrow, wide), ("b2", wide, wide)):
            kernel(f"{name}.conv1", n, d, 3, 3)
            norm(f"{name}.bn1", n)
            kernel(f"{name}.conv2", n, n, 3, 3)
            norm(f"{name}.bn2", n)
            if d != n:
                kernel(f"{name}.short", n, d, 1, 1)
                norm(f"{name}.sbn", n)
        kernel("fc", 10, wide)
    return {path: np.asarray(x, dtype) for path, x in leaves.items()}


def inputs(model: str, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Two random inputs."""
    shape = (2, 6) if model == "mlp" else (2, 3, 8, 8)
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def trace(model: str, leaves: Leaves | None = None, eps: float = 0.0) -> ifjax.DependencyGraph:
    """The graph of a network."""
    return ifjax.trace(apply(model, eps), leaves or init(model), inputs(model))


def apply(model: str, eps: float = 0.0) -> Callable[..., jax.Array]:
    """The forward pass of ``mlp``, ``vgg`` or ``res``, eval mode."""
    return with_promotion({"mlp": _mlp, "vgg": _vgg(eps), "res": _res(eps)}[model])


def _linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _conv(p, name, x, stride=1):
    pad = p[f"{name}.weight"].shape[-1] // 2
    y = jax.lax.conv_general_dilated(
        x,
        p[f"{name}.weight"],
        (stride, stride),
        [(pad, pad)] * 2,
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )
    if f"{name}.bias" in p:
        y = y + p[f"{name}.bias"][:, None, None]
    return y


def _norm(p, name, x, eps):
    scale, bias, mean, var = (p[f"{name}.{k}"][:, None, None] for k in NORMS)
    return (x - mean) / jnp.sqrt(var + eps) * scale + bias


def _pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def _mlp(p, x):
    i = 0
    while f"fc{i + 1}.weight" in p:
        x = jax.nn.relu(_linear(p, f"fc{i}", x))
        i += 1
    return _linear(p, f"fc{i}", x)


def _vgg(eps):
    def network(p, x):
        i = 0
        while f"conv{i}.weight" in p:
            x = jax.nn.relu(_norm(p, f"bn{i}", _conv(p, f"conv{i}", x), eps))
            if i < 2:
                x = _pool(x)
            i += 1
        return _linear(p, "fc", x.mean((2, 3)))

    return network


def _res(eps):
    def network(p, x):
        x = jax.nn.relu(_norm(p, "bn", _conv(p, "conv", x), eps))
        for name, stride in (("b0", 1), ("b1", 2), ("b2", 1)):
            y = jax.nn.relu(_norm(p, f"{name}.bn1", _conv(p, f"{name}.conv1", x, stride), eps))
            y = _norm(p, f"{name}.bn2", _conv(p, f"{name}.conv2", y), eps)
            if f"{name}.short.weight" in p:
                x = _norm(p, f"{name}.sbn", _conv(p, f"{name}.short", x, stride), eps)
            x = jax.nn.relu(x + y)
        return _linear(p, "fc", x.mean((2, 3)))

    return network
