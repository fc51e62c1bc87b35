"""What the batch norms of a function read, and the mean and variance of it.

The norms are found in the jaxpr by their algebra, whatever framework wrote them.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jaxtyping import Array, PyTree

from ifjax.graph.analysis import Analysis, analyse
from ifjax.graph.facts.norms import Norm, find_norms
from ifjax.jaxprs.arguments import Arguments
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.program import Program, flatten
from ifjax.jaxprs.walk import Axes
from ifjax.namespace import AnyArray
from ifjax.tree import leaves_by_path, promoted


class Sample(NamedTuple):
    """How many values there are per channel, their mean and their variance."""

    count: Array
    mean: Array
    variance: Array


@dataclasses.dataclass(frozen=True)
class NormInputs:
    """The batch norms of a function, and which of its values they read.

    Attributes:
      program: the function with its calls taken apart; its inputs are the leaves of the parameters
        and then the arrays among the inputs.
      norms: the batch norms with running statistics, in order of evaluation.
      readers: of a value's number, the norms that read it.
      paths: of the leaves of the parameters.
      analysis: the walked function.
    """

    program: Program
    norms: tuple[Norm, ...]
    readers: Mapping[int, Sequence[Norm]]
    paths: tuple[str, ...]
    analysis: Analysis

    def samples(
        self, values: Mapping[int, AnyArray], leaves: Sequence[AnyArray]
    ) -> Iterator[tuple[Norm, Sample]]:
        """Mean and variance of those of some values that norms read.

        Args:
          values: by number.
          leaves: of the parameters.

        Yields:
          A norm, and what it reads over everything but the channels, arranged like its mean.
        """
        for number in values.keys() & self.readers.keys():
            for norm in self.readers[number]:
                sample = _sample(values[number], norm, self.analysis)
                if norm.bias is not None:
                    bias = leaves[norm.bias]
                    if bias.size == sample.mean.size:
                        bias = bias.reshape(sample.mean.shape)
                    sample = sample._replace(mean=sample.mean + bias)
                yield norm, sample

    def spread(self, norm: Norm, statistic: AnyArray, ndim: int) -> np.ndarray:
        """A leaf of a norm, such as its mean, with the axes of what the norm reads.

        Args:
          norm: one of them.
          statistic: of the shape of its mean.
          ndim: the number of axes of what it reads.

        Returns:
          The statistic in double precision, with axes of size one where it has none.
        """
        _, kept = _channels(norm, self.analysis)
        long = np.squeeze(np.asarray(statistic, np.float64))
        order = [kept.index(a) for a in sorted(kept)]
        return np.expand_dims(long.transpose(order), tuple(a for a in range(ndim) if a not in kept))


def find_norm_inputs(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    arguments: Arguments,
    shared: bool = False,
    derivatives: bool = False,
) -> NormInputs:
    """Traces a function and finds what its batch norms read.

    Args:
      apply_fn: the eval-mode function.
      params: its parameters, running statistics included; structs are enough.
      arguments: its inputs, likewise.
      shared: whether several norms may have their statistics in common.
      derivatives: whether functions with derivatives of their own (`jax.custom_vjp`) stay whole,
        where no norm is inside, so that theirs are taken.

    Returns:
      The norms; none where the function has no batch norm with running statistics.

    Raises:
      ValueError: for norms inside of loops or of `jax.shard_map`, and for shared statistics.

    Example:
      >>> import numpy as np
      >>> from ifjax.jaxprs.arguments import Arguments
      >>> params = {"mean": np.zeros(3), "variance": np.ones(3)}
      >>> apply = lambda p, x: (x - p["mean"]) / jnp.sqrt(p["variance"] + 1e-5)
      >>> found = find_norm_inputs(apply, params, Arguments.split((np.ones((2, 3)),)))
      >>> [found.paths[norm.mean] for norm in found.norms]
      ['mean']
    """

    def fresh(store: AxisStore, path: str, x: jax.ShapeDtypeStruct) -> Axes:
        del path
        return tuple(store.fresh(n) for n in x.shape)

    analysis = analyse(apply_fn, params, arguments, {}, fresh)
    paths = tuple(leaves_by_path(params))
    norms = _checked_norms(analysis, paths, shared)
    data = [False] * len(paths) + [True] * len(arguments.arrays)
    program = flatten(analysis.frame, data)
    reads = [_number_read(program, norm, paths) for norm in norms]
    if derivatives:
        whole = flatten(analysis.frame, data, calls=_is_plain)
        same = {n: whole.numbers[at] for at, n in program.numbers.items() if at in whole.numbers}
        if same.keys() >= {*reads}:
            program, reads = whole, [same[n] for n in reads]
    readers: dict[int, list[Norm]] = defaultdict(list)
    for norm, number in zip(norms, reads, strict=True):
        readers[number].append(norm)
    return NormInputs(program, tuple(norms), readers, paths, analysis)


def _number_read(program: Program, norm: Norm, paths: Sequence[str]) -> int:
    """The number of the value that a norm reads."""
    frame, variable = norm.reads  # type: ignore[misc]
    number = program.numbers.get((id(frame), variable))
    if number is None:
        raise ValueError(
            f"{paths[norm.mean]}: the norm is inside of jax.shard_map, where what it reads is "
            "seen in parts alone; expected the function that is mapped over devices"
        )
    return number


def _is_plain(call: JaxprEqn) -> bool:
    """Whether a call has no derivative of its own."""
    return not call.primitive.name.startswith("custom_")


def _checked_norms(analysis: Analysis, paths: Sequence[str], shared: bool) -> list[Norm]:
    """The norms, where each reads what is computed once."""
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
        if means.count(mean) > 1 and not shared:
            raise ValueError(f"{paths[mean]}: expected one norm to use it, got {means.count(mean)}")
    return norms


def _sample(x: Array, norm: Norm, analysis: Analysis) -> Sample:
    """Mean and variance of a value, arranged like the norm's mean."""
    shape, kept = _channels(norm, analysis)
    x = jnp.moveaxis(promoted(x), kept, range(len(kept)))
    rest = tuple(range(len(kept), x.ndim))
    mean, variance = jnp.mean(x, rest), jnp.var(x, rest)
    count = jnp.asarray(x.size / max(mean.size, 1), x.dtype)
    return Sample(count, mean.reshape(shape), variance.reshape(shape))


def _channels(norm: Norm, analysis: Analysis) -> tuple[list[int], list[int]]:
    """The shape of a norm's mean, and which axes of what it reads are its longer ones."""
    frame, variable = norm.reads  # type: ignore[misc]
    find = analysis.store.find
    axes = [find(a) for a in frame.axes[variable]]
    leaf = analysis.leaves[norm.mean]
    shape = [analysis.store.size(a) for a in leaf]
    return shape, [axes.index(find(a)) for a, n in zip(leaf, shape, strict=True) if n > 1]
