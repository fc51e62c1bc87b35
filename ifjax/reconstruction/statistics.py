"""Running statistics of norms that are those of the small network, which stays as it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ifjax.activations.batch_statistics import pool_samples
from ifjax.activations.norm_inputs import NormInputs, Sample, find_norm_inputs
from ifjax.graph.facts.norms import Norm
from ifjax.jaxprs.arguments import Arguments
from ifjax.jaxprs.compiling import jitted_with_options
from ifjax.jaxprs.evaluate import evaluate
from ifjax.tree import leaves_by_path, with_leaves


def refit_statistics(
    apply_fn: Callable[..., Any], params: PyTree, batches: Sequence[tuple[Any, ...]]
) -> PyTree:
    r"""Running statistics of what norms read in eval mode, the function unchanged.

    Other than by `ifjax.reset_statistics`, every norm's scale and offset change with its
    statistics, so that it stays the function it was: with
    :math:`a = \text{scale} / \sqrt{v + \epsilon}`

    .. math::
        \text{scale}' = a \sqrt{v' + \epsilon}, \quad
        \text{offset}' = \text{offset} + (\mu' - \mu) a.

    Training then goes on from the function as it is: where all inputs are one batch, train mode
    gives on it what eval mode does.

    Args:
      apply_fn: the eval-mode function.
      params: its parameters.
      batches: inputs.

    Returns:
      The parameters; those of norms that lack a scale or offset of their own, or that stand in
      loops, as they were.

    Example:
      >>> params = {k: jnp.full(1, v) for k, v in dict(m=0.0, v=1.0, s=2.0, o=1.0).items()}
      >>> apply = lambda p, x: (x - p["m"]) / jnp.sqrt(p["v"] + 1e-5) * p["s"] + p["o"]
      >>> x = jnp.array([[1.0], [3.0]])
      >>> new = refit_statistics(apply, params, [(x,)])
      >>> new["m"].tolist(), bool(jnp.allclose(apply(new, x), apply(params, x)))
      ([2.0], True)
    """
    arguments = Arguments.split(batches[0])
    try:
        found = find_norm_inputs(apply_fn, params, arguments, shared=True)
    except ValueError:  # of a norm inside of a loop: it stays as it is
        return params
    norms = _own(found, [x.shape for x in jax.tree.leaves(params)])
    if not norms:
        return params

    @jitted_with_options
    def measure(leaves: Sequence[Any], arrays: Sequence[Any]) -> dict[str, Sample]:
        program = found.program
        values = dict(zip(program.inputs, [*leaves, *arrays], strict=True))
        seen = evaluate(program, values, keep=tuple(found.readers))
        samples = found.samples(seen, leaves)
        return {found.paths[norm.mean]: sample for norm, sample in samples if norm in norms}

    leaves = jax.tree.leaves(params)
    samples = [measure(leaves, Arguments.split(inputs).arrays) for inputs in batches]
    pooled = functools.reduce(pool_samples, samples)
    by_path = leaves_by_path(params)
    for norm in norms:
        mean, variance, scale, offset = (found.paths[n] for n in _leaves(norm))
        sample = pooled[mean]
        old = {path: by_path[path] for path in (mean, variance, scale, offset)}
        same = {path: x.reshape(sample.mean.shape) for path, x in old.items()}
        slope = same[scale] / jnp.sqrt(same[variance] + norm.eps)
        new = {
            offset: same[offset] + (sample.mean - same[mean]) * slope,
            scale: slope * jnp.sqrt(sample.variance + norm.eps),
            mean: sample.mean,
            variance: sample.variance,
        }
        by_path |= {p: x.reshape(old[p].shape).astype(old[p].dtype) for p, x in new.items()}
    return with_leaves(params, by_path)


def _own(found: NormInputs, shapes: Sequence[tuple[int, ...]]) -> list[Norm]:
    """The norms with four leaves of their own, which hold the same channels."""
    program = found.program
    return [
        norm
        for norm in found.norms
        if norm.scale is not None
        and norm.offset is not None
        and all(program.uses[program.inputs[n]] == 1 for n in _leaves(norm))
        and len({tuple(k for k in shapes[n] if k > 1) for n in _leaves(norm)}) == 1
    ]


def _leaves(norm: Norm) -> list[int]:
    every = (norm.mean, norm.variance, norm.scale, norm.offset)
    return [n for n in every if n is not None]
