"""Why a soft plan can beat the exact one: VGG11-BN, half of all its neurons gone.

Maps are changed, and merged by `ifjax.apply_maps`; everything else stays: l1, uniform marginals,
the reference's merge. With T a plan, the merged neuron j is the sum of the neurons i that go to
it, each with the share of its mass that it sends there.

* Sinkhorn at several epsilons, and the exact plan.
* the exact plan, s spread: of what goes to another neuron's target the share s is dealt out over
  all targets alike. With s = 1 every kept neuron is itself, plus the same sum of all that went.
* Sinkhorn's plan, own x 1: neurons that are kept send all of their mass to themselves.
* activations x c: the scales and offsets of all norms times c, after merging by the exact plan and
  by Sinkhorn at 0.01: every layer reads c times what it would.

For every plan, means over groups: "own" is the share of a merged neuron's weight that is the kept
neuron's own; "sources" the exponential of the entropy of the shares, how many neurons it is made
of; "size" its norm beside that of the kept one. Accuracy as merged, and with the norms' statistics
reset on 512 training images.

    python benchmarks/soft_plans.py            # about 5 minutes on 2 cores
    python benchmarks/soft_plans.py --images 250 --epsilons 0.01 --shares 1 --factors 0.8
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import record
from cut_network import CutNetwork
from flax.traverse_util import flatten_dict, unflatten_dict

import ifjax

EPSILONS = (0.01, 0.05, 0.02, 0.005)
SHARES = (0.25, 1.0)
FACTORS = (0.7, 0.8, 0.9)
Maps = dict[str, ifjax.Transport]


def shares_of(plan: np.ndarray) -> np.ndarray:
    """The share of its mass that neuron i sends to target j, ``[n, m]``."""
    return plan / plan.sum(1, keepdims=True)


def changed(maps: Maps, change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Maps:
    """Maps whose shares are others."""
    found = {}
    for name, transport in maps.items():
        plan, targets = np.asarray(transport.map, np.float64), np.asarray(transport.targets)
        shares = change(shares_of(plan), targets)
        found[name] = transport._replace(map=jnp.asarray(shares, jnp.float32))
    return found


def own_of(shares: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The part of the shares that stays with the kept neurons."""
    own = np.zeros_like(shares)
    own[targets, range(len(targets))] = shares[targets, range(len(targets))]
    return own


def spread(shares: np.ndarray, targets: np.ndarray, s: float) -> np.ndarray:
    """The share s of what goes to another neuron's target is dealt out alike."""
    own = own_of(shares, targets)
    gone = shares - own
    return own + (1 - s) * gone + s * gone.sum(1, keepdims=True) / len(targets)


def all_own(shares: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Kept neurons send everything to themselves."""
    found = shares.copy()
    found[targets] = 0.0
    found[targets, range(len(targets))] = 1.0
    return found


def entropy_of(maps: Maps) -> dict[str, float]:
    """Own share and number of sources, means over groups."""
    own, sources = [], []
    for transport in maps.values():
        shares = shares_of(np.asarray(transport.map, np.float64))
        weights = shares / np.maximum(shares.sum(0), 1e-12)
        targets = np.asarray(transport.targets)
        own.append(weights[targets, range(len(targets))].mean())
        safe = np.where(weights > 0, weights, 1.0)
        sources.append(np.exp(-(weights * np.log(safe)).sum(0)).mean())
    return {"own": round(float(np.mean(own)), 3), "sources": round(float(np.mean(sources)), 2)}


class Study:
    """The network, and what is measured of a set of maps."""

    def __init__(self, images: int) -> None:
        self.network = CutNetwork("vgg11", 0.5, images)
        self.spec = self.network.changed(method="fuse", solver="exact")
        self.kernels = self._norms(ifjax.fuse_params(self.network.params, self.network.spec))

    def _norms(self, params: Any) -> list[float]:
        """Of every kernel's columns, the mean."""
        leaves = {k: x for k, x in leaves_of(params).items() if k.endswith("kernel")}
        return [
            float(np.sqrt((x**2).sum(tuple(range(x.ndim - 1)))).mean()) for x in leaves.values()
        ]

    def maps(self, **changes: Any) -> Maps:
        """As the network's own weights give them."""
        return ifjax.transport_maps(self.network.params, self.network.changed(**changes))

    def row(self, plan: str, maps: Maps | None, factor: float = 1.0) -> dict[str, Any]:
        """What a set of maps leaves; None: what pruning does."""
        network = self.network
        if maps is None:
            small, seen = ifjax.fuse_params(network.params, network.spec), {"own": 1, "sources": 1}
        else:
            small, seen = ifjax.apply_maps(network.params, self.spec, maps), entropy_of(maps)
        sizes = np.divide(self._norms(small), self.kernels)
        row = {"plan": plan, **seen, "size": round(float(np.mean(sizes)), 3)}
        row["accuracy"] = round(network.accuracy(scaled(small, factor)), 2)
        if factor == 1:
            row["statistics reset"] = round(network.accuracy(network.reset(small)), 2)
        print(row, flush=True)
        return row


def scaled(params: Any, factor: float) -> Any:
    """With what every norm gives times a factor."""
    leaves = flatten_dict(params)
    normed = {
        k: x * factor if k[-2].startswith("bn") and k[-1] in ("scale", "bias") else x
        for k, x in leaves.items()
    }
    return unflatten_dict(normed)


def leaves_of(params: Any) -> dict[str, np.ndarray]:
    """By path."""
    return {"/".join(k): np.asarray(x) for k, x in flatten_dict(params).items()}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000, help="of the test set")
    parser.add_argument("--epsilons", nargs="+", type=float, default=EPSILONS)
    parser.add_argument("--factors", nargs="*", type=float, default=FACTORS)
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    args = parser.parse_args()
    study, rows = Study(args.images), []

    def add(plan: str, maps: Maps | None, factor: float = 1.0) -> None:
        rows.append(study.row(plan, maps, factor))
        record.write("soft_plans", rows, images=args.images)

    def by_factors(plan: str, maps: Maps) -> None:
        for factor in args.factors:
            add(f"{plan}, activations x {factor:g}", maps, factor)

    add("plain pruning", None)
    exact = study.maps(method="fuse", solver="exact")
    add("exact", exact)
    by_factors("exact", exact)
    for epsilon in args.epsilons:
        soft = study.maps(method="fuse", solver="sinkhorn_kernel", epsilon=epsilon)
        add(f"Sinkhorn {epsilon:g}", soft)
        if epsilon == EPSILONS[0]:
            by_factors(f"Sinkhorn {epsilon:g}", soft)
            add(f"Sinkhorn {epsilon:g}, own x 1", changed(soft, all_own))
    for s in args.shares:
        add(f"exact, {s:g} spread", changed(exact, functools.partial(spread, s=s)))
    print(record.markdown([{"statistics reset": ""} | row for row in rows]))


if __name__ == "__main__":
    main()
