"""Running statistics of batch norms, set to those of the network as it is.

Weights that were averaged, merged or cut leave means and variances behind that are those of other
weights, and an average of neurons varies less than each of them did.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ifjax.activations.layer_inputs import CALLS
from ifjax.graph.analysis import Analysis, analyse
from ifjax.graph.facts.norms import Norm, find_norms
from ifjax.jaxprs import compat
from ifjax.jaxprs.arguments import Arguments, is_array
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.walk import Axes, Frame
from ifjax.tree import check_finite, leaves_by_path, promoted, with_leaves


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
      batches: tuples of inputs; a few hundred examples do, in batches as large as in training.

    Returns:
      The parameters with other statistics; their dtypes stay.

    Raises:
      ValueError: where there is no batch norm with running statistics or no batch; for norms inside
        of loops, or several that share their statistics; or if a statistic is not finite.
      TypeError: for a batch that is no tuple of arrays.

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
    batches = checked_batches(batches)
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


def checked_batches(batches: Any) -> list[tuple[Any, ...]]:
    """The batches, each a tuple of arrays (and of values that are static)."""
    found = list(batches)
    for batch in found:
        arrays = is_array(batch) or not isinstance(batch, tuple | list)
        if arrays or not any(map(is_array, jax.tree.leaves(batch))):
            raise TypeError(
                "expected every batch to be a tuple of what the function takes after its "
                f"parameters, (images,) for a classifier, got {type(batch).__name__}"
            )
    if not found:
        raise ValueError("expected at least one batch of inputs, got none")
    return [tuple(batch) for batch in found]


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


@dataclasses.dataclass
class _Program:
    """The equations of a function with those of its calls among them, on numbered values."""

    steps: list[tuple[Any, list[Any], list[int]]] = dataclasses.field(default_factory=list)
    number: dict[tuple[int, Any], Any] = dataclasses.field(default_factory=dict)
    constants: dict[int, Any] = dataclasses.field(default_factory=dict)
    count: int = 0

    def fresh(self) -> int:
        """The number of another value."""
        self.count += 1
        return self.count - 1

    def add(self, frame: Frame, operands: Sequence[Any]) -> list[Any]:
        """Adds the equations of a jaxpr; an operand is a number or a literal."""
        inner, constvars, _ = compat.unpack(frame.jaxpr)
        known: dict[Any, Any] = dict(zip(inner.invars, operands, strict=True))
        for var, value in zip(constvars, frame.constants, strict=True):
            known[var] = self.fresh()
            self.constants[known[var]] = value

        def read(atom: Any) -> Any:
            return atom if isinstance(atom, compat.Literal) else known[atom]

        for i, equation in enumerate(inner.eqns):
            ins, note = [read(v) for v in equation.invars], frame.notes.get(i)
            if equation.primitive.name in CALLS and isinstance(note, Frame):
                outs = self.add(note, ins)
            else:
                outs = [self.fresh() for _ in equation.outvars]
                self.steps.append((equation, ins, outs))
            known.update(zip(equation.outvars, outs, strict=True))
        self.number.update({(id(frame), var): n for var, n in known.items()})
        return [read(v) for v in inner.outvars]


def _evaluated(
    analysis: Analysis, norms: Sequence[Norm], arguments: Sequence[Any], paths: list[str]
) -> dict[tuple[str, str], Sample]:
    """Evaluates a function; means and variances are what they should be once that is known.

    Equations that read one before wait for it, such as a slope that is computed from parameters
    alone before anything is normalised.
    """
    program = _Program()
    operands = [program.fresh() for _ in arguments]
    program.add(analysis.frame, operands)
    statistics = {n for norm in norms for n in (norm.mean, norm.variance)}
    values = {i: x for i, x in enumerate(arguments) if i not in statistics} | program.constants
    reading = {}
    for norm in norms:
        frame, variable = norm.reads  # type: ignore[misc]
        reading.setdefault(program.number[id(frame), variable], []).append(norm)
    found: dict[tuple[str, str], Sample] = {}

    def read(operand: Any) -> Any:
        return operand.val if isinstance(operand, compat.Literal) else values[operand]

    def observe(number: int) -> None:
        for norm in reading.get(number, ()):
            sample = _sample(values[number], norm, analysis)
            if norm.bias is not None:
                sample = sample._replace(mean=sample.mean + values[norm.bias])
            found[paths[norm.mean], paths[norm.variance]] = sample
            for leaf, x in ((norm.mean, sample.mean), (norm.variance, sample.variance)):
                values[leaf] = x.astype(arguments[leaf].dtype)

    for number in [*values]:
        observe(number)
    waiting = program.steps
    while waiting:
        later = []
        for equation, ins, outs in waiting:
            if all(isinstance(x, compat.Literal) or x in values for x in ins):
                results = compat.bind(equation, [read(x) for x in ins])
                values.update(zip(outs, results, strict=True))
                for number in outs:
                    observe(number)
            else:
                later.append((equation, ins, outs))
        if len(later) == len(waiting):
            raise ValueError(
                f"{paths[norms[0].mean]}: what the norms read depends on their own statistics"
            )
        waiting = later
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
