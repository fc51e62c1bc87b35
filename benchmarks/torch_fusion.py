"""Intra-Fusion in torch, one group after another: what `benchmarks/speed.py` compares with.

Written from the paper (arXiv 2402.07839, section 3) to do what its implementation does: batch
norms folded into the kernels before them, scores from the l1 norms, `torch.cdist(p=1)` between
normalised features, `ot.emd` with uniform marginals, an einsum per kernel. Needs torch, POT and
numpy alone, so that a process of its own pays for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import ot
import torch

Weights = dict[str, torch.Tensor]


def to_torch(leaves: Mapping[str, np.ndarray]) -> Weights:
    """Kernels of flax in torch's layouts: HWIO as OIHW, linear ones transposed."""
    order = {4: (3, 2, 0, 1), 2: (1, 0)}
    return {
        path: torch.from_numpy(np.array(x.transpose(order.get(x.ndim, (0,))), order="C"))
        for path, x in leaves.items()
    }


def tensor(x: Any) -> torch.Tensor:
    """A copy of an array."""
    return torch.from_numpy(np.array(x))


def fuse(
    weights: Weights,
    work: Mapping[str, Any],
    order: str,
    given: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> tuple[Weights, dict[str, float]]:
    """The fused network with its norms folded, and the exact transport cost of every group.

    Args:
      weights: leaves by path in torch's layouts.
      work: ``groups``, in the order of fusion: name, the number to keep, producers, consumers and
        additive vectors by path; ``norms``, the paths of each.
      order: ``"sequential"`` or ``"simultaneous"``.
      given: targets and plan of every group by its name, to merge by instead of the own ones.

    Returns:
      Kernels and biases by path, a norm's under the path of its offset; costs by group name.
    """
    leaves = fold(weights, work["norms"])
    first, costs = dict(leaves), {}
    for group in work["groups"]:
        source = leaves if order == "sequential" else first
        targets, plan = (None, None) if given is None else given[group["name"]]
        exact, costs[group["name"]] = transport(source, group, targets)
        plan = exact if plan is None else plan
        # Uniform mass: the rows of the plan sum to 1 / n.
        by_source = plan / plan.sum(1, keepdim=True)
        for path in group["producers"]:
            leaves[path] = torch.einsum("no...,nm->mo...", leaves[path], by_source)
        for path in group["consumers"]:
            leaves[path] = torch.einsum("on...,nm->om...", leaves[path], by_source)
        for path in group["additive"]:
            leaves[path] = torch.einsum("n,nm->m", leaves[path], by_source)
    return leaves, costs


def fold(weights: Weights, norms: list[Mapping[str, Any]]) -> Weights:
    """Every norm multiplied into its kernel; what is left of it is a bias."""
    leaves = dict(weights)
    for norm in norms:
        slope = leaves.pop(norm["scale"]) / torch.sqrt(leaves.pop(norm["variance"]) + norm["eps"])
        shift = leaves.pop(norm["mean"])
        if norm["bias"] is not None:
            shift = shift - leaves.pop(norm["bias"])
        leaves[norm["kernel"]] = leaves[norm["kernel"]] * slope[:, None, None, None]
        leaves[norm["offset"]] = leaves[norm["offset"]] - slope * shift
    return leaves


def transport(
    leaves: Weights, group: Mapping[str, Any], targets: torch.Tensor | None = None
) -> tuple[torch.Tensor, float]:
    """The exact plan from all neurons of a group to those of highest score, and its cost.

    Raises:
      ValueError: if given targets have lower scores than others, by more than rounding.
    """
    rows = [leaves[path].flatten(1) for path in group["producers"]]
    rows += [leaves[path].transpose(0, 1).flatten(1) for path in group["consumers"]]
    scores = torch.stack([x.abs().sum(1) for x in rows]).mean(0)
    top = torch.topk(scores, group["kept"])
    if targets is None:
        targets = top.indices.sort().values
    elif not scores[targets].min() > (1 - 1e-5) * top.values.min():
        raise ValueError(f"group {group['name']}: its targets are not those of highest score")
    x = torch.nn.functional.normalize(torch.cat(rows, 1), dim=1)
    cost = torch.cdist(x, x[targets], p=1).numpy().astype(np.float64)
    n, m = cost.shape
    plan, log = ot.emd(np.full(n, 1 / n), np.full(m, 1 / m), cost, numItermax=10_000_000, log=True)
    return torch.from_numpy(plan).to(x.dtype), log["cost"]
