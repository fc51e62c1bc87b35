"""Running statistics of batch norms, set to those of the network as it is.

Weights that were averaged, merged or cut leave means and variances behind that are those of other
weights, and an average of neurons varies less than each of them did.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ifjax.activations.batches import read_inputs
from ifjax.graph.analysis import Analysis, analyse
from ifjax.graph.facts.norms import Norm, find_norms
from ifjax.jaxprs.arguments import Arguments
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.evaluate import Seen, evaluate
from ifjax.jaxprs.program import flatten
from ifjax.jaxprs.walk import Axes
from ifjax.promotion import with_promotion
from ifjax.tree import check_finite, leaves_by_path, promoted, with_leaves


@with_promotion
def reset_statistics(
    apply_fn: Callable[..., Any], params: PyTree, batches: Iterable[Any]
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
    apply_fn: Callable[..., Any], params: PyTree, batches: Sequence[tuple[Any, ...]]
) -> PyTree:
    """`reset_statistics`; the parameters themselves where there is no batch norm."""

    @jax.jit
    def measure(params: Any, inputs: Any) -> dict[tuple[str, str], Sample]:
        return _measured(apply_fn, params, inputs)

    pooled = None
    for inputs in batches:
        found = measure(params, inputs)
        pooled = found if pooled is None else _pooled(pooled, found)
    if not pooled:
        return params
    leaves = leaves_by_path(params)
    for (mean, variance), sample in pooled.items():
        leaves[mean] = sample.mean.astype(leaves[mean].dtype)
        leaves[variance] = sample.variance.astype(leaves[variance].dtype)
    check_finite({path: leaves[path] for pair in pooled for path in pair})
    return with_leaves(params, leaves)


class Sample(NamedTuple):
    """How many values there are per channel, their mean and their variance."""

    count: Array
    mean: Array
    variance: Array


@jax.jit
def _pooled(a: dict[Any, Sample], b: dict[Any, Sample]) -> dict[Any, Sample]:
    """Of all values of two samples (Chan et al., 1983)."""

    def pool(x: Sample, y: Sample) -> Sample:
        share = y.count / (x.count + y.count)
        apart = y.mean - x.mean
        variance = (1 - share) * x.variance + share * y.variance
        variance += share * (1 - share) * apart**2
        return Sample(x.count + y.count, x.mean + share * apart, variance)

    return {key: pool(sample, b[key]) for key, sample in a.items()}


def _measured(
    apply_fn: Callable[..., Any], params: PyTree, inputs: Sequence[Any]
) -> dict[tuple[str, str], Sample]:
    """What every batch norm normalises, by the paths of its mean and variance."""
    arguments = Arguments.split(inputs)

    def fresh(store: AxisStore, path: str, x: Any) -> Axes:
        del path
        return tuple(store.fresh(n) for n in x.shape)

    analysis = analyse(apply_fn, params, arguments, {}, fresh)
    paths = [*leaves_by_path(params)]
    norms = _checked_norms(analysis, paths)
    if not norms:
        return {}
    leaves = [*jax.tree.leaves(params), *arguments.arrays]
    return _evaluated(analysis, norms, leaves, paths)


def _checked_norms(analysis: Analysis, paths: list[str]) -> list[Norm]:
    """The norms, where each has statistics of its own and reads what is computed once."""
    given = analysis.frame, analysis.store, analysis.leaves, analysis.inputs
    norms = find_norms(*given, inside_loops=False)
    means = [norm.mean for norm in norms]
    for norm in find_norms(*given):
        if norm.mean not in means:
            raise ValueError(
                f"{paths[norm.mean]}: the norm is inside of a loop or branch, where what it reads "
                "cannot be seen; expected layers that are called one by one"
            )
    for mean in means:
        if means.count(mean) > 1:
            raise ValueError(f"{paths[mean]}: expected one norm to use it, got {means.count(mean)}")
    return norms


def _evaluated(
    analysis: Analysis, norms: Sequence[Norm], arguments: Sequence[Any], paths: list[str]
) -> dict[tuple[str, str], Sample]:
    """Evaluates a function; means and variances are what they should be once that is known.

    Equations that read one before wait for it, such as a slope that is computed from parameters
    alone before anything is normalised.
    """
    program = flatten(analysis.frame, [i >= len(paths) for i in range(len(arguments))])
    reading: dict[int, list[Norm]] = defaultdict(list)
    for norm in norms:
        frame, variable = norm.reads  # type: ignore[misc]
        number = program.numbers.get((id(frame), variable))
        if number is None:
            raise ValueError(
                f"{paths[norm.mean]}: the norm is inside of jax.shard_map, where what it reads is "
                "seen in parts alone; expected the function that is mapped over devices"
            )
        reading[number].append(norm)
    found: dict[tuple[str, str], Sample] = {}

    def measure(values: Mapping[int, Any]) -> dict[int, Array]:
        """The statistics of those of the values that norms read, by leaf."""
        given = {}
        for number in values.keys() & reading.keys():
            for norm in reading[number]:
                sample = _sample(values[number], norm, analysis)
                if norm.bias is not None:
                    sample = sample._replace(mean=sample.mean + arguments[norm.bias])
                found[paths[norm.mean], paths[norm.variance]] = sample
                for leaf, x in ((norm.mean, sample.mean), (norm.variance, sample.variance)):
                    given[program.inputs[leaf]] = x.astype(arguments[leaf].dtype)
        return given

    def observe(seen: Seen) -> dict[int, Array]:
        return measure(dict(zip(seen.step.outputs, seen.results, strict=True)))

    statistics = {n for norm in norms for n in (norm.mean, norm.variance)}
    inputs = enumerate(zip(program.inputs, arguments, strict=True))
    known = program.constants | {n: x for i, (n, x) in inputs if i not in statistics}
    evaluate(program, known | measure(known), observe, keep=())
    for norm in norms:
        if (paths[norm.mean], paths[norm.variance]) not in found:
            raise ValueError(
                f"{paths[norm.mean]}: what the norm reads depends on its own statistics"
            )
    return found


def _sample(x: Array, norm: Norm, analysis: Analysis) -> Sample:
    """Mean and variance of a value, arranged like the norm's mean."""
    frame, variable = norm.reads  # type: ignore[misc]
    find = analysis.store.find
    axes = [find(a) for a in frame.axes[variable]]
    leaf = analysis.leaves[norm.mean]
    shape = [analysis.store.size(a) for a in leaf]
    kept = [axes.index(find(a)) for a, n in zip(leaf, shape, strict=True) if n > 1]
    x = jnp.moveaxis(promoted(x), kept, range(len(kept)))
    rest = tuple(range(len(kept), x.ndim))
    mean, variance = jnp.mean(x, rest), jnp.var(x, rest)
    count = jnp.asarray(x.size / max(mean.size, 1), x.dtype)
    return Sample(count, mean.reshape(shape), variance.reshape(shape))
