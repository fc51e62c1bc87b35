"""Whether train mode of a fused network goes on where its eval mode left off.

Pretrained CIFAR-10 ResNets, block-inner groups fused (l1, the default method), all at once and,
in the middle block of every stage, one at a time; cross-entropy on test images in batches of 128:

* eval: with the running statistics, the same for any refit;
* train: with batch statistics, as the first step of fine-tuning sees it, with the norms refit (see
  `ifjax.fusion.batch_norm`);
* train, identity: the same with the norms left as the identity (scale one, mean zero, variance
  one), as the reference implementation leaves them; eval is the same, train is not;
* spread: the standard deviation of a fused channel's normalised output that the refit predicts
  (its scale), over the one that makes train mode equal eval mode; median of its distance from one
  over all channels of the norms. identity: the same for a scale of one.

Norms behind the fused ones see other inputs than their running statistics were made for; train
mode corrects that, which is why it is often the better of the two.

    python benchmarks/train_mode.py             # about 5 minutes on 2 cores
    python benchmarks/train_mode.py --images 256 --networks resnet20
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import record
from tqdm import tqdm

import ifjax
from ifjax import data, interop

INNER = "params/layer*/conv1/kernel"
BLOCKS = ("layer1_1", "layer2_1", "layer3_1")
BATCH = 128
Network = Callable[..., Any]


def loss(logits: Any, labels: Any) -> jax.Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def jobs() -> Iterator[tuple[str, float, str]]:
    """What is fused: (groups, sparsity, pattern)."""
    for sparsity in (0.3, 0.5, 0.7):
        yield "all inner", sparsity, INNER
    for sparsity in (0.3, 0.5, 0.7):
        for block in BLOCKS:
            yield "one inner", sparsity, f"params/{block}/conv1/kernel"


def measure(network: str, path: Path, images: Any, labels: Any) -> list[dict[str, Any]]:
    """All rows of one network."""
    module, variables = interop.cifar_resnet_from_torch(interop.load_safetensors(path))
    train = functools.partial(module.apply, train=True, mutable=["batch_stats"])
    graph = ifjax.trace(module.apply, variables, images[:1]) & ifjax.trace(
        train, variables, images[:2]
    )
    rows = [{"groups": "none", "sparsity": 0.0}]
    rows[0] |= losses(module.apply, train, variables, variables, images, labels)
    for what, sparsity, include in tqdm(list(jobs()), desc=network):
        spec = graph.spec(sparsity, include=include)
        small = ifjax.fuse_params(variables, spec)
        functions = ifjax.shrink(module.apply, spec), ifjax.shrink(train, spec)
        found = losses(*functions, small, identity(small, spec), images, labels)
        if what == "one inner":
            found |= spreads(functions[1], small, spec, images)
        rows.append({"groups": what, "sparsity": sparsity, **found})
    return [{"network": network, **row} for row in averaged(rows)]


def losses(
    apply: Network, train: Network, small: Any, plain: Any, images: Any, labels: Any
) -> dict[str, float]:
    """Mean losses in eval mode and train mode, of the refit network and of the plain one."""

    @jax.jit
    def all_three(small: Any, plain: Any, x: Any, y: Any) -> list[jax.Array]:
        return [loss(apply(small, x), y), loss(train(small, x)[0], y), loss(train(plain, x)[0], y)]

    parts = range(0, len(images), BATCH)
    found = [all_three(small, plain, images[i : i + BATCH], labels[i : i + BATCH]) for i in parts]
    means = np.mean(np.asarray(found), 0).tolist()
    return dict(zip(("eval", "train", "train, identity"), means, strict=True))


def identity(small: Any, spec: ifjax.FusionSpec) -> Any:
    """The same network in eval mode, with scales one, means zero and variances one."""
    flat = leaves(small)
    for norm in cut_norms(spec):
        slope = flat[norm.scale] / jnp.sqrt(flat[norm.variance] + norm.eps)
        flat[norm.kernel] = flat[norm.kernel] * slope
        flat[norm.offset] = flat[norm.offset] - slope * flat[norm.mean]
        flat[norm.mean] = jnp.zeros_like(slope)
        flat[norm.scale] = jnp.ones_like(slope)
        flat[norm.variance] = jnp.ones_like(slope) - norm.eps
    return jax.tree.unflatten(jax.tree.structure(small), flat.values())


def spreads(train: Network, small: Any, spec: ifjax.FusionSpec, images: Any) -> dict[str, float]:
    """How far the fused scales are from those that would give train mode the slope of eval mode."""
    step = jax.jit(train)
    zeroed = jax.tree.map(jnp.zeros_like, small["batch_stats"])
    parts = range(0, len(images), BATCH)
    # from zero, one update leaves (1 - momentum) times the batch statistics
    after = [step({**small, "batch_stats": zeroed}, images[i : i + BATCH])[1] for i in parts]
    refit, plain = [], []
    for norm in cut_norms(spec):
        flat = leaves(small)
        variance = np.mean([leaves(x)[norm.variance] for x in after], 0) / 0.1
        right = flat[norm.scale] * np.sqrt((variance + norm.eps) / (flat[norm.variance] + norm.eps))
        refit.append(np.median(np.abs(flat[norm.scale] / right - 1)))
        plain.append(np.median(np.abs(1 / np.abs(right) - 1)))
    return {"spread": float(np.mean(refit)), "spread, identity": float(np.mean(plain))}


def cut_norms(spec: ifjax.FusionSpec) -> list[Any]:
    """The norms of the kernels that are fused."""
    return [n for n in spec.structure.norms if n.kernel in spec.structure.widths]


def leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def averaged(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per setting: means over the groups that are fused one at a time."""
    for key in dict.fromkeys((r["groups"], r["sparsity"]) for r in rows):
        same = [r for r in rows if (r["groups"], r["sparsity"]) == key]
        yield {
            "groups": key[0] + (f" ({len(same)} times)" if len(same) > 1 else ""),
            "sparsity": key[1],
            "eval": round(float(np.mean([r["eval"] for r in same])), 4),
            "train": round(float(np.mean([r["train"] for r in same])), 4),
            "train, identity": round(float(np.mean([r["train, identity"] for r in same])), 4),
            "spread": _percent([r.get("spread") for r in same]),
            "spread, identity": _percent([r.get("spread, identity") for r in same]),
        }


def _percent(values: list[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{100 * np.mean(known):.1f} %" if known else "-"


def main() -> None:
    """Makes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--networks", nargs="+", default=["resnet20"])
    args = parser.parse_args()
    shared = record.shared_folder()
    folder = shared / "tensorflow_datasets"
    raw, labels = data.cifar10_split(f"test[:{args.images}]", data_dir=folder)
    images = np.asarray(data.normalize(raw, data.CIFAR10_MEAN, data.CIFAR10_STD))
    rows = []
    for network in args.networks:
        path = shared / f"checkpoints/{network}_cifar10.safetensors"
        rows += measure(network, path, images, labels)
    print(record.markdown(rows))
    print("written:", record.write("train_mode", rows, images=args.images).name)


if __name__ == "__main__":
    main()
