"""Why a graph found nothing to cut, or less than it could, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ifjax.graph.analysis import Analysis
from ifjax.graph.coupling import Coupling
from ifjax.graph.facts.roles import Roles
from ifjax.tree import named_leaves

MOST_NAMED = 3


def hints(
    analysis: Analysis, found: Coupling, roles: Roles, inputs: Sequence[str]
) -> tuple[str, ...]:
    """What may be wrong with a call of `ifjax.trace`, in words.

    Args:
      analysis: of the function.
      found: what came of it.
      roles: of the leaves.
      inputs: paths of the arrays among the inputs.
    """
    said = []
    if "constant" in analysis.draws:
        said.append(
            "random numbers are drawn with a constant key, which pins what they meet: give the key "
            'with the call, as an input or as a keyword (rngs={"dropout": key}), or trace the '
            "function in eval mode (train=False, deterministic=True, model.eval())"
        )
    if "leaf" in analysis.draws:
        said.append(
            "random numbers are drawn with keys among the parameters: in train mode the running "
            "statistics of norms are not read; for inference call model.eval() first"
        )
    if found.structure.groups:
        return tuple(said)
    paths = [leaf.path for leaf in found.structure.leaves]
    holders = _holders(analysis, roles, paths, inputs)
    if holders:
        names = [*holders]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        said.append(
            f"{', '.join(names[:MOST_NAMED])}{more} fix the width of {holders[names[0]]}, for the "
            "axes of inputs and outputs cannot be cut. If they are state (running statistics, a "
            "cache, a recurrent carry), pass them with the parameters as one tree, "
            'trace(lambda p, *x: apply(p["params"], p["state"], *x), {"params": params, "state": '
            "state}, *inputs), or name them and the outputs that replace them, as in "
            f"state={_state(names)}"
        )
    if not said:
        reasons = Counter(p.reason for p in found.pinned)
        most = "; ".join(f"{n} axes: {reason}" for reason, n in reasons.most_common(MOST_NAMED))
        said.append(f"nothing can be cut ({most or 'the parameters have no axes'})")
    return tuple(said)


def _holders(
    analysis: Analysis, roles: Roles, paths: Sequence[str], inputs: Sequence[str]
) -> dict[str, str]:
    """Inputs that hold the neurons which a parameter produces, and that parameter.

    Also outputs that do, where an input is of the same shape.
    """
    store = analysis.store
    makers: dict[int, str] = {}
    for (leaf, axis), role in roles.of.items():
        if role == "producer":
            for root in store.pinned_classes(analysis.leaves[leaf][axis]):
                makers.setdefault(root, f"{paths[leaf]} (axis {axis})")
    makers.pop(store.find(store.one), None)
    given = {
        tuple(map(store.size, axes)): path
        for path, axes in zip(inputs, analysis.inputs, strict=True)
    }
    numbered = analysis.out_tree.unflatten(range(len(analysis.outputs)))
    outputs = [(f"outputs/{path}", analysis.outputs[i]) for path, i in named_leaves(numbered)]
    found: dict[str, str] = {}
    for path, axes in (*zip(inputs, analysis.inputs, strict=True), *outputs):
        shape = tuple(map(store.size, axes))
        for root in (root for node in axes for root in store.pinned_classes(node)):
            if root in makers and (path in inputs or shape in given):
                if path not in inputs:
                    found.setdefault(given[shape], makers[root])
                found.setdefault(path, makers[root])
    return found


def _state(names: Sequence[str]) -> tuple[str, ...]:
    """Patterns for what is to be named."""
    found = dict.fromkeys("/".join(name.split("/")[:2]) + "*" for name in names)
    if not any(name.startswith("outputs/") for name in found):
        found["outputs/1*"] = None
    return tuple(found)
