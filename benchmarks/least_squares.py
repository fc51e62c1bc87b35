r"""Per-channel least squares, a baseline: channels that go are put together of those that stay.

Every kernel that reads a cut group is solved for by itself, on what it reads in the *dense* network
(the idea of GRAIL). With G the Gram matrix of the channels of its input, over pixels and images, S
the channels that stay and :math:`\mu` the mean diagonal of :math:`G_{SS}`, all channels are best
made of those in S by

.. math::
    B = (G_{SS} + 0.001 \mu I)^{-1} G_{S:},

and the kernel becomes B times itself along its input axis: one matrix of channels for all places of
a convolution's window. Nothing else changes, neither offsets nor statistics of norms, and no layer
corrects what the layers before it have left. That is what `ifjax.compress` adds: weights of every
place of the window, in turn, on what the small network computes. Channels are chosen as there, by
backward elimination, on the sums of G over the kernels that read a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ifjax
from ifjax.activations.layer_names import layer_names
from ifjax.jaxprs.evaluate import Seen, evaluate
from ifjax.jaxprs.program import flatten
from ifjax.reconstruction.choice import backward_elimination
from ifjax.tree import leaves_by_path, with_leaves

SHRINKAGE = 0.001


def channel_grams(apply_fn: Any, params: Any, batches: Sequence[Any]) -> dict[str, np.ndarray]:
    """By path of every kernel, the Gram matrix of the channels that it reads, ``[n, n]``."""
    leaves, tree = jax.tree.flatten(params)
    call = lambda *given: apply_fn(tree.unflatten(given[:-1]), given[-1])  # noqa: E731
    program = flatten(jax.make_jaxpr(call)(*leaves, batches[0]), [False] * len(leaves) + [True])
    names = layer_names(program, list(leaves_by_path(params)))

    @jax.jit
    def measured(leaves: Any, images: Any) -> dict[str, Any]:
        found = {}

        def observe(seen: Seen) -> None:
            if (name := names.get(seen.step.outputs[0])) is not None:
                read = jnp.asarray(seen.operands[0])  # channels last
                read = read.reshape(-1, read.shape[-1])
                found[name] = jnp.matmul(read.T, read, precision="highest")

        evaluate(program, dict(zip(program.inputs, (*leaves, images), strict=True)), observe)
        return found

    parts = [measured(leaves, x) for x in batches]
    return jax.tree.map(lambda *x: sum(np.asarray(part, np.float64) for part in x), *parts)


def compensated(params: Any, spec: ifjax.FusionSpec, grams: dict[str, np.ndarray]) -> Any:
    """The small parameters."""
    leaves = {name: np.asarray(x) for name, x in leaves_by_path(params).items()}
    mixed, kept = dict(leaves), {}
    for group in (g for g in spec.groups if g.kept != g.size):
        read = {m.path: m.axis for m in group.members if m.role == "consumer"}
        flat = [np.moveaxis(leaves[p], a, 0).reshape(group.size, -1) for p, a in read.items()]
        gram, every = sum(grams[p] for p in read), np.concatenate(flat, 1)
        units = np.arange(group.size)[None]
        [index] = backward_elimination(gram[None], every[None], units, 1, group.kept)
        kept[group.name] = index
        for path, axis in read.items():
            own = grams[path][np.ix_(index, index)]
            ridge = SHRINKAGE * np.trace(own) / len(index) * np.eye(len(index))
            made = np.linalg.solve(own + ridge, grams[path][index])
            kernel = np.moveaxis(mixed[path].copy(), axis, -1)  # a view: what is written stays
            kernel[..., index] = kernel @ made.T.astype(kernel.dtype)
            mixed[path] = np.moveaxis(kernel, -1, axis)
    return ifjax.take(with_leaves(params, mixed), spec, kept)
