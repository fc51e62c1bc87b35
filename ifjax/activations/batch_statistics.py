"""Running statistics of batch norms, set to those of the network as it is.

Weights that were averaged, merged or cut leave means and variances behind that are those of other
weights, and an average of neurons varies less than each of them did.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import jax
from jaxtyping import Array, PyTree

from ifjax.activations.batches import read_inputs
from ifjax.activations.norm_inputs import NormInputs, Sample, find_norm_inputs
from ifjax.jaxprs.arguments import Arguments, check_order
from ifjax.jaxprs.compiling import jitted_with_options
from ifjax.jaxprs.evaluate import Seen, evaluate
from ifjax.namespace import AnyArray
from ifjax.promotion import with_promotion
from ifjax.tree import check_finite, leaves_by_path, with_leaves

Key = TypeVar("Key", bound=Hashable)
Samples = dict[tuple[str, str], Sample]  # by the paths of mean and variance


@with_promotion
def reset_statistics(
    apply_fn: Callable[..., PyTree], params: PyTree, batches: Iterable[PyTree]
) -> PyTree:
    r"""Sets the mean and variance of every batch norm to those of what it normalises.

    One pass over the batches. Within a batch every norm uses the statistics of this batch, as in
    train mode; over the batches they are pooled, with :math:`n_b` values of mean :math:`\mu_b` and
    variance :math:`v_b` in batch b:

    .. math::
        \mu = \frac{1}{n} \sum_b n_b \mu_b, \quad
        v = \frac{1}{n} \sum_b n_b (v_b + (\mu_b - \mu)^2).

    With all inputs in one batch, eval mode with the result equals train mode on this batch. The
    norms are found in the jaxpr by their algebra, whatever framework wrote them.

    Eval mode becomes another function, for scales and offsets stay: what averaged or merged weights
    need. What `ifjax.compress` returns does not need it and can lose by it: there the statistics
    are measured in eval mode already, and every scale and offset is refitted to them, so that eval
    mode stays what was solved for and train mode begins with the same loss.

    Args:
      apply_fn: the *eval-mode* function ``apply_fn(params, *inputs)``; of a network that was cut,
        what `ifjax.shrink` returns.
      params: its parameters, running statistics included.
      batches: tuples of inputs, or another form of `ifjax.activations.batches`; a few hundred
        examples do, in batches as large as in training.

    Returns:
      The parameters with other statistics; their dtypes stay.

    Raises:
      ValueError: where there is no batch norm with running statistics or no batch; for norms inside
        of loops, or several that share their statistics; or if a statistic is not finite.
      TypeError: for a batch of another form.

    References:
      Jordan et al., `REPAIR: REnormalizing Permuted Activations for Interpolation Repair
      <https://arxiv.org/abs/2211.08403>`_, ICLR 2023, section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"mean": jnp.zeros(1), "variance": jnp.ones(1)}
      >>> apply = lambda p, x: (x - p["mean"]) / jnp.sqrt(p["variance"] + 1e-5)
      >>> params = reset_statistics(apply, params, [(jnp.array([[1.0], [3.0]]),)])
      >>> params["mean"].tolist(), params["variance"].tolist()
      ([2.0], [1.0])
    """
    check_order("reset_statistics(apply_fn, params, batches)", apply_fn, params)
    batches = list(read_inputs(batches, apply_fn, params))
    if not batches:
        raise ValueError("expected at least one batch of inputs, got none")
    found = reset_where_any(apply_fn, params, batches)
    if found is params:
        raise ValueError(
            "expected a function with batch norms whose running statistics are among its "
            "parameters, found none; pass the eval-mode function"
        )
    return found


def reset_where_any(
    apply_fn: Callable[..., PyTree], params: PyTree, batches: Sequence[tuple[PyTree, ...]]
) -> PyTree:
    """`reset_statistics`; the parameters themselves where there is no batch norm."""

    @jitted_with_options
    def measure(params: PyTree, inputs: PyTree) -> Samples:
        return _measured(apply_fn, params, inputs)

    pooled = None
    for inputs in batches:
        found = measure(params, inputs)
        pooled = found if pooled is None else pool_samples(pooled, found)
    if not pooled:
        return params
    leaves = leaves_by_path(params)
    for (mean, variance), sample in pooled.items():
        leaves[mean] = sample.mean.astype(leaves[mean].dtype)
        leaves[variance] = sample.variance.astype(leaves[variance].dtype)
    check_finite({path: leaves[path] for pair in pooled for path in pair})
    return with_leaves(params, leaves)


@jax.jit
def pool_samples(a: dict[Key, Sample], b: dict[Key, Sample]) -> dict[Key, Sample]:
    """Of all values of two samples (Chan et al., 1983)."""

    def pool(x: Sample, y: Sample) -> Sample:
        share = y.count / (x.count + y.count)
        apart = y.mean - x.mean
        variance = (1 - share) * x.variance + share * y.variance
        variance += share * (1 - share) * apart**2
        return Sample(x.count + y.count, x.mean + share * apart, variance)

    return {key: pool(sample, b[key]) for key, sample in a.items()}


def _measured(apply_fn: Callable[..., PyTree], params: PyTree, inputs: Sequence[PyTree]) -> Samples:
    """What every batch norm normalises, by the paths of its mean and variance."""
    arguments = Arguments.split(inputs)
    found = find_norm_inputs(apply_fn, params, arguments)
    if not found.norms:
        return {}
    return _evaluated(found, [*jax.tree.leaves(params), *arguments.arrays])


def _evaluated(found: NormInputs, arguments: Sequence[AnyArray]) -> Samples:
    """Evaluates a function; means and variances are what they should be once that is known.

    Equations that read one before wait for it, such as a slope that is computed from parameters
    alone before anything is normalised.
    """
    program, paths = found.program, found.paths
    measured: Samples = {}

    def measure(values: Mapping[int, AnyArray]) -> dict[int, Array]:
        """The statistics of those of the values that norms read, by leaf."""
        given = {}
        for norm, sample in found.samples(values, arguments):
            measured[paths[norm.mean], paths[norm.variance]] = sample
            for leaf, x in ((norm.mean, sample.mean), (norm.variance, sample.variance)):
                given[program.inputs[leaf]] = x.astype(arguments[leaf].dtype)
        return given

    def observe(seen: Seen) -> dict[int, Array]:
        return measure(dict(zip(seen.step.outputs, seen.results, strict=True)))

    statistics = {n for norm in found.norms for n in (norm.mean, norm.variance)}
    inputs = enumerate(zip(program.inputs, arguments, strict=True))
    known = program.constants | {n: x for i, (n, x) in inputs if i not in statistics}
    evaluate(program, known | measure(known), observe, keep=())
    for norm in found.norms:
        if (paths[norm.mean], paths[norm.variance]) not in measured:
            raise ValueError(
                f"{paths[norm.mean]}: what the norm reads depends on its own statistics"
            )
    return measured
