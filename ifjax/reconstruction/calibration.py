"""Calibration inputs: batches of one shape, some of them held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ifjax.activations.batches import count_examples, read_inputs
from ifjax.jaxprs.arguments import Arguments

HELD = 4  # one batch in so many is held out for choosing shrinkages


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Batches of one shape.

    Attributes:
      batches: inputs of the function.
      held: by batch, whether it is held out for choosing shrinkages.
    """

    batches: tuple[tuple[Any, ...], ...]
    held: tuple[bool, ...]


def calibration(
    batches: Iterable[Any], apply_fn: Callable[..., Any], params: PyTree
) -> Calibration:
    """Reads calibration inputs.

    Fewer than four batches, or batches of several sizes, are cut anew along axis 0, which numbers
    the examples; what does not fill a batch is left out, less than one of it.

    Args:
      batches: in any of the forms of `ifjax.activations.batches`.
      apply_fn: the function that takes them.
      params: its parameters.

    Returns:
      The batches, one in four of them held out.

    Raises:
      ValueError: for no inputs, or so few that none can be held out.
      TypeError: for a batch of another form.
    """
    found = list(read_inputs(batches, apply_fn, params))
    if not found:
        raise ValueError(
            "expected calibration inputs, got no batch (an iterator that was used before?); a few "
            "hundred unlabelled inputs do, and ifjax.synthesize makes some from the statistics of "
            "a network's batch norms"
        )
    forms = {(str(jax.tree.structure(x)), *map(_form, jax.tree.leaves(x))) for x in found}
    if len(forms) > 1 or len(found) < HELD:
        cut = _cut_anew(found)
        _check_examples(apply_fn, params, found[0], cut[0])
        found = cut
    held = [i % HELD == HELD - 1 for i in range(len(found))]
    if not any(held):
        held[-1] = len(held) > 1
    return Calibration(tuple(found), tuple(held))


def _check_examples(
    apply_fn: Callable[..., Any], params: PyTree, whole: tuple[Any, ...], cut: tuple[Any, ...]
) -> None:
    """Refuses inputs whose axis 0 does not number the examples, as far as the outputs tell."""
    sizes, outputs = [], []
    for inputs in (whole, cut):
        arguments = Arguments.split(inputs)
        sizes.append(arguments.arrays[0].shape[0])

        def call(params: Any, arrays: Any, arguments: Arguments = arguments) -> Any:
            return arguments.call(apply_fn, params, arrays, {})

        outputs.append(jax.tree.leaves(jax.eval_shape(call, params, arguments.arrays)))
    for a, b in zip(*outputs, strict=True):
        if a.ndim and a.shape == b.shape and sizes[0] != sizes[1]:
            raise ValueError(
                f"expected the examples on axis 0 of inputs and outputs; with {sizes[1]} instead "
                f"of {sizes[0]} along axis 0 of the inputs an output keeps its shape {a.shape}. "
                f"Give at least {HELD} batches of one shape, which are not cut anew"
            )


def _form(x: Any) -> Any:
    return (tuple(x.shape), str(x.dtype)) if hasattr(x, "shape") else x


def _cut_anew(batches: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The same examples in batches of one size, at least four of them."""
    arguments = [Arguments.split(inputs) for inputs in batches]
    try:
        sizes = [count_examples(a.arrays) for a in arguments]
    except (ValueError, TypeError) as error:
        if len(batches) > 1 and len({str(list(map(_form, a.arrays))) for a in arguments}) == 1:
            return list(batches)
        raise ValueError(
            f"expected at least {HELD} batches of the same shapes, some of which are held out for "
            f"choosing the shrinkage; got {len(batches)}, and they cannot be cut along axis 0: "
            f"{error}"
        ) from error
    total = sum(sizes)
    size = min(max(sizes), total // HELD)
    if not size:
        raise ValueError(
            f"expected at least {HELD} calibration inputs, got {total}; a few hundred keep the "
            "accuracy"
        )
    try:
        columns = [jnp.concatenate(x) for x in zip(*(a.arrays for a in arguments), strict=True)]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"expected batches of inputs that differ in the number of examples alone: {error}"
        ) from error
    return [
        arguments[0].join([x[i * size : (i + 1) * size] for x in columns])
        for i in range(total // size)
    ]
