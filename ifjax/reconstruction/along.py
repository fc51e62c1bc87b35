"""What becomes of an array along a path of equations, and back."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ifjax.graph.facts.views import Path
from ifjax.jaxprs.program import Step
from ifjax.jaxprs.traits import traits_of
from ifjax.namespace import namespace
from ifjax.parallel.hosts import on_host
from ifjax.reconstruction.walk import Walk
from ifjax.tree import promoted


def push(walk: Walk, x: Any, path: Path, scaled: bool = True) -> Any:
    """What an array becomes along a path, without what is added to it.

    Args:
      walk: for shapes and parameters of the moment.
      x: in the place of the value at the beginning; of numpy, or of jax.
      path: of a site or view.
      scaled: without it entries only move.
    """
    for place, k in path:
        step = walk.program.steps[place]
        if traits_of(step.equation).kind != "elementwise":
            x = _moved(walk, x, step, k)
            continue
        name = step.equation.primitive.name
        if scaled and (name == "neg" or (name == "sub" and k == 1)):
            x = -x
        elif scaled and name in ("mul", "div"):
            other = promoted(walk.parameter(step.inputs[1 - k], dense=False))
            other = other if isinstance(x, jax.Array) else on_host(other)
            x = x * other if name == "mul" else x / other
        x = namespace(x).broadcast_to(x, walk.shape(step.outputs[0]))
    return x


def stands_still(walk: Walk, path: Path) -> bool:
    """Whether an array is the same at the end of a path, but for its dtype."""
    steps = (walk.program.steps[place] for place, _ in path)
    return all(traits_of(step.equation).kind == "same" for step in steps)


def _moved(walk: Walk, x: Any, step: Step, k: int) -> Any:
    """An array after a step that moves its entries; zeros where it joins others."""
    match step.equation.primitive.name:
        case "transpose":
            return x.transpose(step.equation.params["permutation"])
        case "reshape" | "squeeze" | "expand_dims":
            return x.reshape(walk.shape(step.outputs[0]))
        case "broadcast_in_dim":
            shape = walk.shape(step.outputs[0])
            at = step.equation.params["broadcast_dimensions"]
            sizes = dict(zip(at, x.shape, strict=True))
            x = x.reshape([sizes.get(i, 1) for i in range(len(shape))])
            return namespace(x).broadcast_to(x, shape)
        case "concatenate":
            shapes = enumerate(map(walk.shape, step.inputs))
            parts = [x if i == k else np.zeros(shape, x.dtype) for i, shape in shapes]
            return namespace(x).concatenate(parts, step.equation.params["dimension"])
    if traits_of(step.equation).kind == "same":
        return x
    [moved] = walk.resized.rebuild(step, [x])
    return moved if isinstance(x, jax.Array) else np.asarray(moved)


def pull(walk: Walk, z: Any, path: Path) -> Any:
    """The entries of an array at the end of a site's path, arranged as at its beginning."""
    for place, k in reversed(path):
        step = walk.program.steps[place]
        if step.equation.primitive.name == "transpose":
            z = z.transpose(np.argsort(step.equation.params["permutation"]))
        z = z.reshape(walk.shape(step.inputs[k]))
    return z
