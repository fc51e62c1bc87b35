"""What fusing inside a training loop costs, and what a warm start saves.

The digits CNN and a CIFAR ResNet-20, batches of 128, SGD with momentum; a network trains, and every
k steps its fused form is made anew: in place and at full shape (`keep_shape`), by Sinkhorn from the
potentials of the time before. States are donated.

* inside: `jax.lax.cond` in the jitted step; k is an argument, so that one program serves all. A
  step that fuses, one that does not, and the plain step run in turn; medians. The overhead for k is
  (T_fuse + (k - 1) T_not) / k against the plain step. "compilations" counts the step's.
* outside: a jitted function of its own, called every k steps.
* iterations: of Sinkhorn, mean over groups, on weights that are k steps older than those of the
  start, against none.

Images of CIFAR's shape are noise: neither time nor iterations ask for more.

    python benchmarks/in_training.py              # minutes on 2 quiet cores
    python benchmarks/in_training.py --networks cnn --repeats 5
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import record
from tqdm import tqdm

import ifjax
from ifjax.models import create

EVERY = (1, 10, 100)
BATCH = 128


def main() -> None:
    """Makes both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["cnn", "resnet20"])
    parser.add_argument("--solver", default="sinkhorn")
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args()
    overheads, iterations = [], []
    for name in tqdm(args.networks):
        loop = Loop(name, args.solver)
        overheads += loop.overheads(args.repeats)
        iterations += loop.iterations()
    print(record.markdown(overheads))
    print(record.markdown(iterations))
    path = record.write("in_training", overheads, iterations=iterations, solver=args.solver)
    print("written:", path.name)


class Loop:
    """A training loop in which the network is fused."""

    def __init__(self, name: str, solver: str = "sinkhorn", sparsity: float = 0.5) -> None:
        self.name, self.module = name, create(name)
        images, labels = digits() if name == "cnn" else noise()
        self.images, self.labels = jnp.asarray(images), jnp.asarray(labels)
        variables = jax.jit(self.module.init)(jax.random.key(0), self.images[:1])
        graph = ifjax.trace(self.module.apply, variables, self.images[:1])
        self.spec = graph.spec(sparsity, solver=solver)
        self.optimizer = optax.sgd(0.05, momentum=0.9)
        self.start = variables, self.optimizer.init(variables["params"])
        self.maps = ifjax.transport_maps(variables, self.spec)
        self.plain = jax.jit(self.step, donate_argnums=(0, 1))
        self.inside = jax.jit(self.fusing_step, donate_argnums=(0, 1, 2, 3))
        self.outside = jax.jit(self.fused)

    def step(self, variables: Any, state: Any, i: Any) -> tuple[Any, Any]:
        """One step of SGD on batch i."""
        at = BATCH * (i % (len(self.labels) // BATCH))
        x = jax.lax.dynamic_slice_in_dim(self.images, at, BATCH)
        y = jax.lax.dynamic_slice_in_dim(self.labels, at, BATCH)

        def loss(params: Any) -> tuple[Any, Any]:
            logits, updates = self.module.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updates

        gradients, updates = jax.grad(loss, has_aux=True)(variables["params"])
        change, state = self.optimizer.update(gradients, state)
        params = optax.apply_updates(variables["params"], change)
        return {**variables, **updates, "params": params}, state

    def fused(self, variables: Any, maps: Any) -> tuple[Any, Any]:
        """The fused network at full shape, and the maps to start from the next time."""
        maps = ifjax.transport_maps(variables, self.spec, init=maps)
        return ifjax.apply_maps(variables, self.spec, maps, keep_shape=True), maps

    def fusing_step(
        self, variables: Any, state: Any, small: Any, maps: Any, i: Any, every: Any
    ) -> tuple[Any, Any, Any, Any]:
        """A step, after which the network is fused every so many steps."""
        variables, state = self.step(variables, state, i)
        small, maps = jax.lax.cond(
            (i + 1) % every == 0, lambda: self.fused(variables, maps), lambda: (small, maps)
        )
        return variables, state, small, maps

    def overheads(self, repeats: int) -> list[dict[str, Any]]:
        """Per k, what fusing adds to a step, inside of it and outside."""
        plain, fusing = jax.tree.map(jnp.copy, (self.start, self.start))
        small, maps = self.outside(fusing[0], self.maps)
        fusing = *fusing, small, maps
        times = []
        for i in range(repeats + 1):
            alone, _ = seconds(self.outside, plain[0], self.maps)
            step, plain = seconds(self.plain, *plain, i)
            not_, fusing = seconds(self.inside, *fusing, i, i + 2)
            fuse, fusing = seconds(self.inside, *fusing, i, i + 1)
            times.append((step, fuse, not_, alone))
        plain, fuse, not_, alone = (
            1e3 * statistics.median(x[1:]) for x in zip(*times, strict=True)
        )
        return [
            {
                "network": self.name,
                "groups": len(self.spec.structure.widths),
                "k": k,
                "plain step ms": plain,
                "inside: ms per step": (fuse + (k - 1) * not_) / k - plain,
                "inside: % of a step": 100 * ((fuse + (k - 1) * not_) / k / plain - 1),
                "outside: ms per step": alone / k,
                "outside: % of a step": 100 * alone / k / plain,
                "compilations": self.inside._cache_size(),
            }
            for k in EVERY
        ]

    def iterations(self, every: Sequence[int] = EVERY, first: int = 100) -> list[dict[str, Any]]:
        """Per k, Sinkhorn's iterations from the maps of k steps before, and from none."""
        variables, state = jax.tree.map(jnp.copy, self.start)
        snapshots = {}
        for i in tqdm(range(first + max(every)), desc=self.name, leave=False):
            variables, state = self.plain(variables, state, i)
            if i + 1 - first in {0, *every}:
                snapshots[i + 1 - first] = jax.tree.map(jnp.copy, variables)
        solve = jax.jit(lambda v, maps: ifjax.transport_maps(v, self.spec, init=maps))
        cold = {name: x._replace(potential=x.potential * jnp.nan) for name, x in self.maps.items()}
        before, rows = solve(snapshots[0], cold), []
        for k in every:
            times = np.array(
                [[seconds(solve, snapshots[k], m)[0] for m in (cold, before)] for _ in range(5)]
            )
            times, found = np.median(times, 0), [solve(snapshots[k], m) for m in (cold, before)]
            means = [np.mean([int(x.iterations) for x in maps.values()]) for maps in found]
            rows.append(
                {
                    "network": self.name,
                    "k": k,
                    "iterations, cold": float(means[0]),
                    "warm": float(means[1]),
                    "ms, cold": 1e3 * float(times[0]),
                    "ms, warm": 1e3 * float(times[1]),
                    "converged": all(bool(x.converged) for maps in found for x in maps.values()),
                }
            )
        return rows


def seconds(call: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """How long a call takes, and its result."""
    start = time.perf_counter()
    result = jax.block_until_ready(call(*args))
    return time.perf_counter() - start, result


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 8 x 8 digits of scikit-learn."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.float32(data.images[..., None] / 16), np.int32(data.target)


def noise() -> tuple[np.ndarray, np.ndarray]:
    """Four batches of noise of CIFAR's shape, with labels."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4 * BATCH, 32, 32, 3)).astype(np.float32)
    return images, rng.integers(0, 10, 4 * BATCH).astype(np.int32)


if __name__ == "__main__":
    main()
