"""Recurrent networks, a mixture of experts and a vision transformer, cut without fine-tuning.

A GRU and an LSTM that read the digits of scikit-learn row by row, a mixture of experts and a small
vision transformer on the same images, trained here in half a minute; half of their neurons (of the
transformer: of every group) go, by plain pruning, Intra-Fusion (exact transport) and
`ifjax.compress` on 256 training images without labels. Means over five seeds, with the lowest and
highest.

    python benchmarks/other_networks.py
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import record
from flax import linen as nn

import ifjax
from ifjax import data

WIDTH, EXPERTS = 64, 4


class Recurrent(nn.Module):
    """Reads an image row by row; the last state says what it is."""

    cell: str

    @nn.compact
    def __call__(self, images: Any) -> Any:
        """Logits of ``[batch, 8, 8, 1]``."""
        cell = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}[self.cell](WIDTH)
        return nn.Dense(10)(nn.RNN(cell)(images[..., 0])[:, -1])


class Experts(nn.Module):
    """Layers of experts, each with neurons of its own, weighted by a gate."""

    @nn.compact
    def __call__(self, images: Any) -> Any:
        """Logits of ``[batch, 8, 8, 1]``."""
        h = nn.Dense(WIDTH)(images.reshape(len(images), -1))
        for i in range(2):
            x = nn.LayerNorm()(h)
            gate = nn.softmax(nn.Dense(EXPERTS)(x))
            up = self.param(f"up{i}", nn.initializers.lecun_normal(), (EXPERTS, WIDTH, WIDTH))
            down = self.param(f"down{i}", nn.initializers.lecun_normal(), (EXPERTS, WIDTH, WIDTH))
            inner = nn.relu(jnp.einsum("nc,ecf->enf", x, up))
            h = h + jnp.einsum("enf,efc,ne->nc", inner, down, gate)
        return nn.Dense(10)(nn.LayerNorm()(h))


class Transformer(nn.Module):
    """A vision transformer: patches of 2 x 2, two blocks of four heads, their mean."""

    @nn.compact
    def __call__(self, images: Any) -> Any:
        """Logits of ``[batch, 8, 8, 1]``."""
        h = nn.Conv(WIDTH, (2, 2), 2)(images).reshape(len(images), -1, WIDTH)
        h = h + self.param("position", nn.initializers.normal(0.02), h.shape[1:])
        for _ in range(2):
            h = h + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(h))
            h = h + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(h))))
        return nn.Dense(10)(nn.LayerNorm()(h).mean(1))


NETWORKS = {
    "gru": Recurrent("gru"),
    "lstm": Recurrent("lstm"),
    "experts": Experts(),
    "vit": Transformer(),
}


def trained(module: nn.Module, seed: int, images: Any, labels: Any) -> Any:
    """Parameters after 30 epochs of Adam."""
    params = module.init(jax.random.key(seed), images[:1])
    optimizer = optax.adam(3e-3)

    @jax.jit
    def run(params: Any, order: Any) -> Any:
        def step(carry: Any, index: Any) -> Any:
            params, state = carry

            def loss(params: Any) -> Any:
                logits = module.apply(params, images[index])
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels[index]).mean()

            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), order)[0][0]

    rng = np.random.default_rng(seed)
    count = len(images) // 64 * 64
    orders = [rng.permutation(len(images))[:count].reshape(-1, 64) for _ in range(30)]
    return run(params, jnp.asarray(np.concatenate(orders)))


def measure(name: str, seed: int, split: Any) -> list[dict[str, Any]]:
    """Accuracy in percent of a network and of its halves."""
    images, labels, test_images, test_labels = split
    module = NETWORKS[name]
    params = trained(module, seed, images, labels)

    def accuracy(apply_fn: Any, params: Any) -> float:
        found = jnp.argmax(apply_fn(params, test_images), -1)
        return 100 * float(jnp.mean(found == test_labels))

    found = {"dense": accuracy(module.apply, params)}
    graph = ifjax.trace(module.apply, params, images[:64])
    spec = graph.spec(0.5, method="prune", solver="exact")
    fused = dataclasses.replace(spec, method=dataclasses.replace(spec.method, method="fuse"))
    apply_small = ifjax.shrink(module.apply, spec)
    found["plain"] = accuracy(apply_small, ifjax.fuse_params(params, spec))
    found["Intra-Fusion"] = accuracy(apply_small, ifjax.fuse_params(params, fused))
    small, _ = ifjax.compress(module.apply, params, spec, [images[:256]])
    found["compress"] = accuracy(apply_small, small)
    return [{"network": name, "seed": seed, "method": k, "accuracy": v} for k, v in found.items()]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    digits = data.load("digits")
    images, test = (
        np.asarray(digits.normalize(x)) for x in (digits.train_images, digits.test_images)
    )
    split = (
        jnp.asarray(images),
        jnp.asarray(digits.train_labels),
        jnp.asarray(test),
        digits.test_labels,
    )
    rows = [
        row for name in args.networks for s in range(args.seeds) for row in measure(name, s, split)
    ]
    table = []
    for name in args.networks:
        for method in dict.fromkeys(row["method"] for row in rows):
            every = [r["accuracy"] for r in rows if (r["network"], r["method"]) == (name, method)]
            lowest, highest = min(every), max(every)
            spread = {"lowest": round(lowest, 1), "highest": round(highest, 1)}
            mean = round(float(np.mean(every)), 1)
            table.append({"network": name, "method": method, "accuracy": mean, **spread})
    print(record.markdown(table))
    record.write("other_networks", table, seeds=args.seeds)


if __name__ == "__main__":
    main()
