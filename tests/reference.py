"""The fixture networks of the Intra-Fusion reference, written in plain jax on torch-named leaves.

Weights stay in torch's layouts (OIHW, linears out x in), so that they compare leaf by leaf.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np


def cases(shared: Path) -> dict[str, dict]:
    """Settings of all cases by name."""
    return json.loads((shared / "fixtures/intra_fusion_reference/index.json").read_text())


def load(shared: Path, name: str) -> dict[str, np.ndarray]:
    """All arrays of one case."""
    with np.load(shared / "fixtures/intra_fusion_reference" / f"{name}.npz") as arrays:
        return {k: arrays[k] for k in arrays}


def params(case: dict[str, np.ndarray], when: str) -> dict[str, np.ndarray]:
    """Parameters ``before`` or ``after``."""
    return {k.removeprefix(f"{when}/"): v for k, v in case.items() if k.startswith(f"{when}/")}


def apply(model: str):
    """The forward pass of ``mlp``, ``vgg`` or ``res``, eval mode, batch-norm eps 0."""
    return {"mlp": _mlp, "vgg": _vgg, "res": _res}[model]


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


def _bn(p, name, x):
    mean, var, scale, bias = (
        p[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / jnp.sqrt(var + 0.0) * scale + bias


def _pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def _mlp(p, x):
    for name in ("fc0", "fc1"):
        x = jax.nn.relu(_linear(p, name, x))
    return _linear(p, "fc2", x)


def _vgg(p, x):
    for i in range(3):
        x = jax.nn.relu(_bn(p, f"bn{i}", _conv(p, f"conv{i}", x)))
        if i < 2:
            x = _pool(x)
    return _linear(p, "fc", x.mean((2, 3)))


def _res(p, x):
    x = jax.nn.relu(_bn(p, "bn", _conv(p, "conv", x)))
    for name, stride in (("b0", 1), ("b1", 2), ("b2", 1)):
        y = jax.nn.relu(_bn(p, f"{name}.bn1", _conv(p, f"{name}.conv1", x, stride)))
        y = _bn(p, f"{name}.bn2", _conv(p, f"{name}.conv2", y))
        if f"{name}.short.weight" in p:
            x = _bn(p, f"{name}.sbn", _conv(p, f"{name}.short", x, stride))
        x = jax.nn.relu(x + y)
    return _linear(p, "fc", x.mean((2, 3)))
