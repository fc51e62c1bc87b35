"""What every layer of a network puts out, and how far that moves when the network is compressed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ifjax.activations.batches import read_inputs
from ifjax.activations.layer_names import layer_names
from ifjax.jaxprs.arguments import Arguments
from ifjax.jaxprs.compiling import jitted_with_options
from ifjax.jaxprs.evaluate import Seen, evaluate
from ifjax.jaxprs.program import flatten
from ifjax.promotion import with_promotion
from ifjax.tree import leaves_by_path


class Divergence(NamedTuple):
    """How a layer's output differs from the dense network's.

    Attributes:
        distance: ``||z - z_dense|| / ||z_dense||``; 0 where both are 0.
        cosine: of the angle between the two, which a common factor does not change; 1 where both
            are 0, and 0 where one is.
    """

    distance: float
    cosine: float


@with_promotion
def layer_outputs(
    apply_fn: Callable[..., PyTree], params: PyTree, *inputs: PyTree
) -> OrderedDict[str, Array]:
    """Evaluates a function and collects what its contractions with weights put out.

    A layer is a matrix product or convolution of something that depends on the inputs with
    something that depends on the parameters alone. Those inside of jitted, rematerialised and
    custom-derivative functions are seen; those inside of loops and branches are not.

    Args:
        apply_fn: any function ``apply_fn(params, *inputs)``.
        params: its parameters.
        *inputs: arrays; Python values that are not arrays are static.

    Returns:
        Outputs by the path of the weight, in the order of the function; where a weight is used
        again, by the path followed by ``#2`` and so on. Pure: may be jitted.

    Example:
        >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
        >>> found = layer_outputs(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((5, 3)))
        >>> {name: array.shape for name, array in found.items()}
        {'a': (5, 4), 'b': (5, 2)}
    """
    arguments = Arguments.split(inputs)

    def function(params: PyTree, *arrays: Array) -> PyTree:
        return apply_fn(params, *arguments.join(arrays))

    leaves = leaves_by_path(params)
    arrays = [*leaves.values(), *arguments.arrays]
    jaxpr = jax.make_jaxpr(function)(params, *arguments.arrays)
    program = flatten(jaxpr, [i >= len(leaves) for i in range(len(arrays))])
    names = layer_names(program, [*leaves])
    outputs: OrderedDict[str, Array] = OrderedDict()

    def observe(seen: Seen) -> None:
        name = names.get(seen.step.outputs[0]) if seen.step.outputs else None
        if name is not None:
            outputs[name] = jnp.asarray(seen.results[0])

    evaluate(program, dict(zip(program.inputs, arrays, strict=True)), observe)
    return outputs


@with_promotion
def output_divergence(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    apply_small: Callable[..., PyTree],
    small: PyTree,
    batches: Iterable[PyTree],
) -> dict[str, Divergence]:
    r"""Measures how far each layer of a compressed network has moved from the dense network's.

    .. math::
        \frac{\lVert z_l - z_l^{dense} \rVert_2}{\lVert z_l^{dense} \rVert_2}
        \quad \text{and} \quad
        \frac{\langle z_l, z_l^{dense} \rangle}
             {\lVert z_l \rVert_2 \lVert z_l^{dense} \rVert_2}

    over all batches, positions and channels of the output z of layer l, each network run on its
    own activations. Layers whose own width was cut are left out: fusion mixes their neurons, so
    that there is nothing to compare one by one; what the cut does shows in the layers that read
    them.

    Args:
        apply_fn: the dense network, ``apply_fn(params, *inputs)``.
        params: its parameters.
        apply_small: the compressed network, as :func:`ifjax.shrink` gives it.
        small: its parameters.
        batches: tuples of inputs, or another form of `ifjax.activations.batches`; batches of one
            shape compile once.

    Returns:
        The divergence of every layer that is as wide in both, in the order of the function.

    Raises:
        ValueError: if there is no batch, or the two have no layer in common.

    Example:
        >>> apply_fn = lambda p, x: x @ p["a"] @ p["b"]
        >>> params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
        >>> small = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 2))}
        >>> found = output_divergence(apply_fn, params, apply_fn, small, [(jnp.ones((5, 3)),)])
        >>> {name: (round(x.distance, 6), round(x.cosine, 6)) for name, x in found.items()}
        {'b': (0.25, 1.0)}
    """

    @jitted_with_options
    def products(
        params: PyTree, small: PyTree, inputs: tuple[PyTree, ...]
    ) -> OrderedDict[str, tuple[Array, ...]]:
        dense = layer_outputs(apply_fn, params, *inputs)
        other = layer_outputs(apply_small, small, *inputs)
        return OrderedDict(
            (name, (_dot(other[name] - z, other[name] - z), _dot(other[name], z),
                    _dot(other[name], other[name]), _dot(z, z)))
            for name, z in dense.items()
            if name in other and other[name].shape == z.shape
        )  # fmt: skip

    sums: dict[str, np.ndarray] = {}
    for inputs in read_inputs(batches, apply_fn, params):
        for name, parts in jax.device_get(products(params, small, inputs)).items():
            sums[name] = sums.get(name, np.zeros(4)) + np.array(parts, np.float64)
    if not sums:
        raise ValueError(
            "expected at least one batch, and a layer that is as wide in both networks; found none"
        )
    return {name: _divergence(*parts) for name, parts in sums.items()}


def _dot(x: Array, y: Array) -> Array:
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.vdot(x.astype(dtype), y.astype(dtype)).real


def _divergence(change: float, inner: float, other: float, dense: float) -> Divergence:
    if dense == 0 or other == 0:
        same = dense == other
        distance = 0.0 if same else 1.0 if dense else float("inf")
        return Divergence(distance, float(same))
    return Divergence(float(np.sqrt(change / dense)), float(inner / np.sqrt(other * dense)))
