"""Evaluates a function at the widths of a spec, whatever framework wrote it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable
from typing import TypeAlias

import jax
from jaxtyping import PyTree

from ifjax.graph.resized import resized
from ifjax.jaxprs.arguments import Arguments, struct
from ifjax.jaxprs.compat import Values
from ifjax.promotion import with_promotion
from ifjax.spec.spec import FusionSpec, check_spec
from ifjax.structure.leaves import check_small
from ifjax.tree import is_concrete

Evaluate: TypeAlias = Callable[[Values, Values], PyTree]

# How many values of static arguments have a program of their own.
_PROGRAMS = 4
# What a trace depends on besides the arguments.
_CONTEXT = ("jax_enable_x64", "jax_default_matmul_precision")


def shrink(apply_fn: Callable[..., PyTree], spec: FusionSpec) -> Callable[..., PyTree]:
    """The same function at the widths of a spec.

    ``apply_fn`` is traced at full size for the inputs it is called with, and its equations are
    evaluated on small arrays, with every shape in them rewritten. It works under `jax.jit`,
    `jax.grad` and `jax.vmap`, in train mode and at other batch sizes. Called with arrays it is
    compiled as a whole, anew for other shapes of the inputs: a program of all equations takes less
    time to make than one for each. So it is for the first few values of a static argument; further
    ones are evaluated equation by equation, for a number that changes at every call.

    Args:
      apply_fn: the function that was traced for the spec, or another one of the same parameters.
      spec: made by `DependencyGraph.spec`.

    Returns:
      ``apply_small(small_params, *inputs, **static)``.

    Raises:
      TypeError: for anything but a function and a spec.
      ValueError: by the returned function, where the parameters have not the widths of the spec,
        or ``apply_fn`` couples the spec's groups in a way that the traced function did not.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> spec = ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5, method="prune")
      >>> small = ifjax.fuse_params(params, spec)
      >>> shrink(apply, spec)(small, jnp.ones((3, 4))).shape
      (3, 2)
    """
    check_spec(spec)
    if not callable(apply_fn):
        raise TypeError(
            f"expected shrink(apply_fn, spec) with a function first, got {type(apply_fn).__name__}"
        )
    cache: dict[Hashable, tuple[Evaluate, Evaluate]] = {}
    programs: Counter[Hashable] = Counter()

    @functools.wraps(apply_fn, updated=())
    @with_promotion
    def apply_small(params: PyTree, *inputs: PyTree, **static: object) -> PyTree:
        arguments = Arguments.split(inputs, static)
        leaves, tree = jax.tree.flatten(params)
        avals = tuple(map(struct, (*leaves, *arguments.arrays)))
        keywords = sorted((k, v) for k, v in static.items() if k not in arguments.keywords)
        fixed = (*arguments.static, *keywords)
        # 1, 1.0 and True are equal, 0.0 and -0.0 too
        kinds = tuple((type(x), repr(x) if isinstance(x, float) else "") for _, x in fixed)
        context = tuple(getattr(jax.config, name) for name in _CONTEXT)
        form = (tree, arguments.tree, avals, context)
        key = (*form, fixed, kinds)
        try:
            found = cache.get(key)
        except TypeError:  # a static argument that cannot be hashed
            key = found = None
        if found is None:
            check_small(params, spec.structure)
            shrunk = resized(apply_fn, spec.structure, params, arguments, static)
            found = shrunk, shrunk
            if key is not None and is_concrete(*shrunk.constants()):
                programs[form] += 1
                if programs[form] <= _PROGRAMS:
                    found = shrunk, jax.jit(shrunk.__call__)
                cache[key] = found
        traced, compiled = found
        evaluate = compiled if is_concrete(*leaves, *arguments.arrays) else traced
        return evaluate(leaves, arguments.arrays)

    return apply_small
