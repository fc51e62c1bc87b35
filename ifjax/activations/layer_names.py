"""The names of layers: the paths of the weights that they multiply with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ifjax.jaxprs.program import Program, Step
from ifjax.jaxprs.traits import traits_of


def layer_names(program: Program, paths: Sequence[str]) -> dict[int, str]:
    """Names the contractions of something that depends on the data with a weight.

    Args:
      program: whose first inputs are the leaves of the parameters.
      paths: of the leaves.

    Returns:
      By the number of its result, the path of the weight, of the first leaf where several make it;
      where a weight is used again, the path followed by ``#2`` and so on.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from ifjax.jaxprs.program import flatten
      >>> jaxpr = jax.make_jaxpr(lambda w, x: x @ (2 * w) @ w)(jnp.ones((3, 3)), jnp.ones(3))
      >>> [*layer_names(flatten(jaxpr, [False, True]), ["w"]).values()]
      ['w', 'w#2']
    """
    made_from = dict(zip(program.inputs, paths, strict=False))
    times, found = Counter[str](), dict[int, str]()
    for step in program.steps:
        weights = _weights(step, made_from)
        name = next((w for w in weights if w is not None), None)
        if name is None:
            continue
        if not any(step.data):
            made_from.update(dict.fromkeys(step.outputs, name))
        elif traits_of(step.equation).kind == "contraction" and len(weights) == 1:
            times[name] += 1
            found[step.outputs[0]] = name if times[name] == 1 else f"{name}#{times[name]}"
    return found


def _weights(step: Step, made_from: dict[int, str]) -> list[str | None]:
    """The leaves that the operands of an equation without data were made from."""
    sources = traits_of(step.equation).sources
    pairs = zip(step.inputs[sources], step.data[sources], strict=True)
    return [made_from.get(n) for n, data in pairs if not data]
