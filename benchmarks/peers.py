"""Plain pruning of the same checkpoint on the same images, beside Torch-Pruning.

ResNet-20, the groups inside its blocks at 30, 50 and 70 %, on two threads, each side in a process
of its own.

* same neurons: both sides keep the neurons that ifjax's l1 chooses: the accuracy has to be equal.
* own choice: each side by its own l1 (Torch-Pruning's does not fold batch norms).
* seconds: to find the groups (Torch-Pruning builds its graph from a backward pass, ifjax traces a
  jaxpr), and to prune, from the found graph to the small network, first call; of the processors.
* architectures: small networks in torch, see torch_architectures.py. Torch-Pruning removes the
  first half of every group that it finds, in a copy of the network each; the outputs have to be
  those of the network with these channels set to zero. "refused" and "fails" count groups whose
  pruning raises an error, or whose network then does; "wrong" those with another output.

    pip install torch==2.13.0 torch-pruning==1.6.*     # in an environment of its own, with numpy
    python benchmarks/peers.py --torch-python /path/to/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SPARSITIES = (0.3, 0.5, 0.7)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processors of a call, and its result."""
    start = time.process_time()
    result = function()
    return round(time.process_time() - start, 2), result


def with_ifjax(folder: Path, images: int) -> list[dict[str, Any]]:
    """Our rows; images, and the neurons that were kept, go to the folder."""
    import jax
    from checkpoints import INNER, accuracy
    from reconstruction import images_of, network_of

    import ifjax

    apply_fn, params = network_of("resnet20")
    x, labels = images_of(f"test[:{images}]")
    np.savez(folder / "images.npz", images=x, labels=labels)
    traced, graph = timed(lambda: ifjax.trace(apply_fn, params, x[:1]))
    rows = []
    for sparsity in SPARSITIES:
        spec = graph.spec(sparsity, include=INNER, method="prune")
        pruned, small = timed(lambda s=spec: jax.block_until_ready(ifjax.fuse_params(params, s)))
        maps = ifjax.transport_maps(params, spec)
        kept = {name: np.asarray(found.targets) for name, found in maps.items()}
        np.savez(
            folder / f"kept-{sparsity}.npz", **{k.replace("/", "."): v for k, v in kept.items()}
        )
        found = accuracy(ifjax.shrink(apply_fn, spec), small, x, labels)
        row = {"by": "ifjax", "sparsity": sparsity, "choice": "own"}
        weights = sum(leaf.size for leaf in jax.tree.leaves(small))
        rows.append(row | _measured(found, weights, traced, pruned))
    return rows


def _measured(accuracy: float, weights: int, graph: float, prune: float) -> dict[str, Any]:
    return {
        "accuracy": round(accuracy, 2),
        "weights": weights,
        "graph, s": graph,
        "prune, s": prune,
    }


def with_torch(folder: Path, checkpoint: Path) -> list[dict[str, Any]]:
    """Torch-Pruning's rows."""
    import torch
    import torch_architectures
    import torch_pruning

    torch.set_num_threads(2)
    with np.load(folder / "images.npz") as file:
        x = torch.from_numpy(file["images"].transpose(0, 3, 1, 2).copy())
        labels = torch.from_numpy(file["labels"].astype(np.int64))

    def accuracy(network: Any) -> float:
        with torch.no_grad():
            found = torch.cat([network(part).argmax(-1) for part in x.split(500)])
        return 100 * float((found == labels).float().mean())

    rows = []
    for sparsity in SPARSITIES:
        with np.load(folder / f"kept-{sparsity}.npz") as file:
            kept = {k.removeprefix("params.").removesuffix(".kernel"): file[k] for k in file.files}
        for choice in ("ifjax's", "own"):
            network = torch_architectures.resnet20(checkpoint)
            blocks = network.inner()
            build = torch_pruning.DependencyGraph().build_dependency
            seconds, graph = timed(lambda n=network, b=build: b(n, example_inputs=x[:1]))
            if choice == "own":
                # A group with an ignored layer stays as it is: batch norms must not be among them.
                kinds = torch.nn.Conv2d, torch.nn.Linear
                layers = [m for m in network.modules() if isinstance(m, kinds)]
                pruner = torch_pruning.pruner.MagnitudePruner(
                    network,
                    x[:1],
                    importance=torch_pruning.importance.MagnitudeImportance(p=1),
                    pruning_ratio=sparsity,
                    ignored_layers=[m for m in layers if m not in blocks.values()],
                )
                pruned, _ = timed(pruner.step)
            else:
                pruned, _ = timed(lambda g=graph, b=blocks, k=kept: _remove(g, b, k))
            weights = sum(p.numel() for p in network.parameters())
            weights += sum(b.numel() for n, b in network.named_buffers() if "running" in n)
            row = {"by": "Torch-Pruning", "sparsity": sparsity, "choice": choice}
            rows.append(row | _measured(accuracy(network), weights, seconds, pruned))
    return rows


def _remove(graph: Any, blocks: dict[str, Any], kept: dict[str, np.ndarray]) -> None:
    import torch_pruning

    for name, layer in blocks.items():
        gone = sorted(set(range(layer.out_channels)) - set(kept[name].tolist()))
        graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=gone).prune()


def architectures() -> list[dict[str, Any]]:
    """What Torch-Pruning makes of every architecture."""
    import torch_architectures

    return [torch_architectures.check(name) for name in torch_architectures.NETWORKS]


def child(python: str, *part: str) -> list[dict[str, Any]]:
    """The rows of a part, from a process of its own."""
    command = [python, __file__, "--part", *part]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Makes the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch-python", default=sys.executable, help="with torch-pruning")
    parser.add_argument("--images", type=int, default=10_000, help="of the test set")
    every = ["accuracy", "architectures"]
    parser.add_argument("--parts", nargs="+", default=every, choices=every)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        name, *given = args.part
        if name == "ifjax":
            print(json.dumps(with_ifjax(Path(given[0]), int(given[1]))))
        elif name == "torch":
            print(json.dumps(with_torch(Path(given[0]), Path(given[1]))))
        else:
            print(json.dumps(architectures()))
        return
    import record

    if "accuracy" in args.parts:
        checkpoint = record.shared_folder() / "checkpoints/resnet20_cifar10.safetensors"
        with tempfile.TemporaryDirectory() as folder:
            rows = child(sys.executable, "ifjax", folder, str(args.images))
            rows += child(args.torch_python, "torch", folder, str(checkpoint))
        rows.sort(key=lambda row: row["sparsity"])
        print(record.markdown(rows), flush=True)
        record.write("peers", rows, images=args.images)
    if "architectures" in args.parts:
        found = child(args.torch_python, "architectures")
        print(record.markdown(found))
        record.write("peers-architectures", found)


if __name__ == "__main__":
    main()
