"""Statistics of a network on data, which some importances need, streamed over batches.

Everything is a sum over examples: statistics of several batches add up, and `jax.lax.psum` adds
them over devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ifjax import importance
from ifjax.activations.batches import count_examples, each_batch, inputs_of, pair_of, read_inputs
from ifjax.activations.layer_inputs import Reading, layer_inputs, vary, varying
from ifjax.activations.masks import mask_derivatives, masking
from ifjax.graph.trace import DependencyGraph
from ifjax.importance import GroupMetric, statistic_of
from ifjax.importance.independence import independence
from ifjax.jaxprs.arguments import Arguments, check_order
from ifjax.jaxprs.compiling import jitted_with_options
from ifjax.namespace import AnyArray, as_reals
from ifjax.promotion import with_promotion
from ifjax.spec.spec import FusionSpec
from ifjax.structure.leaves import checked_leaves
from ifjax.structure.structure import Group
from ifjax.tree import leaves_by_path, with_leaves

# Axes of neurons in what a group has of a statistic: one number each, or a Gram matrix.
RANKS = {"fisher": (1,), "chip": (1, 2)}
_OF_A_LOSS = ("gradients", "fisher")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["gradients", "fisher", "chip", "count"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Stats:
    """Sums over examples, for the importances that need more than weights; a pytree.

    ``ifjax.Stats(gradients=grads)`` hands in gradients of one's own, for ``importance="taylor"``.
    Statistics of other batches are added with ``+``, those of other devices with `jax.lax.psum`.

    Attributes:
      gradients: of the loss with respect to the parameters, a tree like them; leaves that are in
        no group may be missing or None.
      fisher: by group, squared derivatives of every example's loss with respect to a mask on the
        neurons, ``[n]``.
      chip: by group, channel independence of every example's feature maps, ``[n]``; or, where every
        neuron has one value per example, the Gram matrix of these values over the examples,
        ``[n, n]``.
      count: number of examples; ``gradients / count`` is the gradient of their mean loss.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(4), "w2": jnp.ones((4, 2))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
      >>> grads = {"w1": jnp.diag(jnp.array([1.0, 4.0, 2.0, 3.0])), "w2": jnp.zeros((4, 2))}
      >>> spec = graph.spec(0.5, importance="taylor", solver="nearest")
      >>> maps = ifjax.transport_maps(params, spec, stats=Stats(gradients=grads))
      >>> maps["w1"].targets.tolist()
      [1, 3]
    """

    gradients: PyTree = None
    fisher: PyTree = None
    chip: PyTree = None
    count: PyTree = 1.0

    def __add__(self, other: object) -> Stats:
        """The statistics of both."""
        if not isinstance(other, Stats):
            return NotImplemented
        if jax.tree.structure(self) != jax.tree.structure(other):
            kinds = importance.STATISTICS
            mine, theirs = ([k for k in kinds if getattr(s, k) is not None] for s in (self, other))
            raise ValueError(
                "only statistics of the same kinds, groups and parameters can be added; got "
                f"{', '.join(mine) or 'none'} and {', '.join(theirs) or 'none'}"
            )
        return jax.tree.map(jnp.add, self, other)


@with_promotion
def collect_stats(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    graph: DependencyGraph | FusionSpec,
    batches: Iterable[PyTree],
    *,
    loss_fn: Callable[[PyTree, PyTree], Array] | None = None,
    metrics: Sequence[str | GroupMetric] | None = None,
    chunk: int | None = None,
) -> Stats:
    r"""Statistics of a network over batches of data, in constant memory.

    With L_b the loss of example b of N and m a mask, one where nothing is masked, on what the
    consumers of a group read:

    * ``"taylor"`` needs the gradient of the mean loss; the score of neuron i is
      :math:`|\sum_j w_{ij} \, \partial L / \partial w_{ij}|` in every kernel: to first order, what
      the loss changes by when these weights are set to zero (Molchanov et al.).
    * ``"fisher"``: :math:`\frac{1}{N} \sum_b (\partial L_b / \partial m_i)^2`, one mask for all
      consumers of the group (Liu et al., whose factor 1/2 and division by the memory that a channel
      takes are left out). Where none consumes it (queries and keys, which meet in a product), the
      mask is on all that produces it, biases included: on both factors, so that all neurons of the
      group count four times.
    * ``"chip"``: :math:`\frac{1}{N} \sum_b \|A_b\|_* - \|A_b \text{ without row } i\|_*`, with A_b
      the ``[n, positions]`` matrix of the feature maps that enter the group's consumers, side by
      side where these read several (Sui et al.). Where a neuron has one value per example (dense
      layers), a matrix of one example says nothing of independence, and the examples take the place
      of the positions: A is ``[n, N]`` over all the data, its nuclear norm divided by N. Entries of
      a group with batch axes (the dimensions of every head) share their scores: A holds the maps of
      all of them side by side.

    The statistics are those of the given parameters: in ``order="sequential"`` they still are where
    earlier groups have been fused before a group's turn.

    One program is compiled per shape of a batch; batches that are sharded over a mesh stay so. For
    `jax.pmap` and `jax.shard_map` see `batch_stats`.

    Args:
      apply_fn: any function ``apply_fn(params, *inputs)``; options that are no arrays are bound
        with `functools.partial`. For fisher and chip it is evaluated on one example at a time (axis
        0 of every input, kept with length one), so that it should be the eval-mode function.
      params: the full parameters.
      graph: for a spec, statistics of the groups that it cuts; for a graph, of all its neurons.
      batches: yields tuples of inputs; with ``loss_fn`` pairs ``(inputs, targets)`` of such a tuple
        and what the loss needs besides, with the examples on axis 0 of every array; or another form
        of `ifjax.activations.batches`.
      loss_fn: ``loss_fn(outputs, targets)`` is the scalar mean loss; for taylor and fisher.
      metrics: which of ``"taylor"``, ``"fisher"``, ``"chip"``, or metrics as values, to collect
        for; None for that of the spec.
      chunk: how many examples fisher and chip go through at a time; None for the whole batch. They
        hold the activations, and fisher the consumers' gradients, of so many examples. A function
        that `jax.vmap` does not admit (with `jax.lax.ragged_dot` in it) goes through one by one.

    Returns:
      The sums over all examples.

    Raises:
      ValueError: for no batches, no or unknown metrics, no loss where one is needed, arrays that
        differ in their number of examples, or a group whose consumers cannot be seen.
      TypeError: for a batch of another form.

    References:
      Molchanov et al., `Importance Estimation for Neural Network Pruning
      <https://arxiv.org/abs/1906.10771>`_, CVPR 2019; Liu et al., `Group Fisher Pruning for
      Practical Network Compression <https://arxiv.org/abs/2108.00708>`_, ICML 2021; Sui et al.,
      `CHIP: CHannel Independence-based Pruning for Compact Neural Networks
      <https://arxiv.org/abs/2110.13981>`_, NeurIPS 2021.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(4, 8), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> spec = ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5, importance="fisher")
      >>> batches = [((jnp.ones((3, 4)),), jnp.zeros((3, 2)))] * 2
      >>> loss = lambda y, t: jnp.mean((y - t) ** 2)
      >>> stats = ifjax.collect_stats(apply, params, spec, batches, loss_fn=loss)
      >>> stats.fisher["w1"].shape, int(stats.count)
      ((8,), 6)
    """
    check_order("collect_stats(apply_fn, params, graph, batches)", apply_fn, params)
    _checked_metrics(metrics, graph, loss_fn)
    checked_leaves(params, graph.structure)

    @jitted_with_options
    def step(params: PyTree, batch: PyTree) -> Stats:
        return batch_stats(
            apply_fn, params, graph, batch, loss_fn=loss_fn, metrics=metrics, chunk=chunk
        )

    total = None
    for batch in each_batch(batches) if loss_fn else read_inputs(batches, apply_fn, params):
        _read(batch, apply_fn, params, loss_fn)
        found = step(params, batch)
        total = found if total is None else _added(total, found)
    if total is None:
        raise ValueError("collect_stats needs at least one batch, got none")
    return total


@with_promotion
def batch_stats(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    graph: DependencyGraph | FusionSpec,
    batch: PyTree,
    *,
    loss_fn: Callable[[PyTree, PyTree], Array] | None = None,
    metrics: Sequence[str | GroupMetric] | None = None,
    chunk: int | None = None,
) -> Stats:
    """The statistics of one batch: `collect_stats` as a pure function.

    Inside `jax.pmap` or `jax.shard_map` it is the statistics of the device's own examples; the sum
    over all devices is ``jax.lax.psum(batch_stats(...), axis_name)``.

    Args:
      apply_fn: as for `collect_stats`, like all arguments but ``batch``.
      params: the full parameters.
      graph: a spec or a graph.
      batch: a tuple of inputs, or with ``loss_fn`` a pair of it and the targets.
      loss_fn: the scalar mean loss of outputs and targets.
      metrics: which metrics to collect for.
      chunk: how many examples at a time.

    Returns:
      The sums over the batch.

    Raises:
      ValueError, TypeError: as `collect_stats`.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(4, 8), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: (x @ p["w1"]) @ p["w2"]
      >>> graph = ifjax.trace(apply, params, jnp.ones((1, 4)))
      >>> batch_stats(apply, params, graph, (jnp.ones((3, 4)),), metrics=["chip"]).chip["w1"].shape
      (8, 8)
    """
    chosen = _checked_metrics(metrics, graph, loss_fn)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, or None for the whole batch; got {chunk!r}")
    inputs, targets, count = _read(batch, apply_fn, params, loss_fn)
    leaves = checked_leaves(params, graph.structure)
    mesh_axes = varying(batch)
    params = jax.tree.map(lambda x: vary(x, mesh_axes), params)
    groups = _groups(graph)

    def loss(params: PyTree, inputs: PyTree, targets: PyTree) -> Array:
        value = loss_fn(apply_fn(params, *inputs), targets)  # type: ignore[misc]
        if jnp.shape(value) != ():
            raise ValueError(f"loss_fn must return a scalar, got shape {jnp.shape(value)}")
        return value

    each = functools.partial(_over_examples, inputs, targets, chunk)
    gradients = fisher = chip = None
    if "gradients" in chosen:
        given = leaves_by_path(params)
        moving = {p: x for p, x in given.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
        found = jax.grad(
            lambda moving: loss(with_leaves(params, leaves | moving), inputs, targets)
        )(moving)
        sums = {p: count * x.astype(_wide(x)) for p, x in found.items()}
        gradients = with_leaves(params, dict.fromkeys(leaves) | sums)
    if "fisher" in chosen:
        paths = {m.path for g in groups for m in masking(g)}
        own = leaves_by_path(params)
        read = {p: own[p] for p in paths if jnp.issubdtype(own[p].dtype, jnp.inexact)}
        derivatives = mask_derivatives(own, graph.structure, groups)

        def sensitivity(inputs: PyTree, targets: PyTree) -> dict[str, Array]:
            found = jax.grad(
                lambda read: loss(with_leaves(params, leaves | read), inputs, targets)
            )(read)
            return jax.tree.map(jnp.square, derivatives(found))

        fisher = jax.tree.map(lambda x: x.sum(0), each(sensitivity))
    if "chip" in chosen:

        def independent(inputs: PyTree, targets: PyTree) -> dict[str, Array]:
            del targets
            seen = layer_inputs(apply_fn, params, graph.structure, *inputs)
            return {g.name: _independence(g.name, seen) for g in groups}

        chip = _independences(groups, each(independent))
    return Stats(gradients, fisher, chip, jnp.asarray(count, jnp.float32))


def _over_examples(
    inputs: PyTree,
    targets: PyTree,
    chunk: int | None,
    function: Callable[[PyTree, PyTree], dict[str, Array]],
) -> dict[str, Array]:
    """A function of one example, as a batch of one, of all of them: the results stacked."""
    arguments = Arguments.split((inputs, targets))

    def one(arrays: Sequence[Array]) -> dict[str, Array]:
        return function(*arguments.join([x[None] for x in arrays]))

    try:
        if chunk is None:
            return jax.vmap(one)(arguments.arrays)
        return jax.lax.map(one, arguments.arrays, batch_size=chunk)
    except NotImplementedError:  # jax maps not every primitive: not `jax.lax.ragged_dot`
        return jax.lax.map(one, arguments.arrays)


def _independences(groups: Sequence[Group], found: dict[str, Array]) -> dict[str, Array]:
    """Sums over the examples: of scores, or Gram matrices of single values."""
    chip = {}
    for group in groups:
        x = found[group.name]
        x = x.sum(0) if x.ndim == 2 else jnp.einsum("bnk,bmk->nm", x, x)
        # what its consumers read is one matrix for all entries of a batch
        chip[group.name] = jnp.broadcast_to(x, (*group.batch, *x.shape))
    return chip


def _independence(name: str, seen: Sequence[Reading]) -> Array:
    """Scores ``[n]`` of one example; or ``[n, k]``, the neurons' single values."""
    found, done = [], set()
    for reading in seen:
        at = (id(reading.value), reading.axis)
        if name in reading.groups and at not in done:
            done.add(at)
            found += reading.rows(name)
    if not found:
        raise ValueError(
            f"group {name}: importance 'chip' needs the activations that enter its consumers, and "
            "none of them is a contraction with a weight outside of a loop; choose another "
            "importance, exclude the group, or pass scores"
        )
    reals = [as_reals(x.astype(_wide(x))).reshape(len(x), -1) for x in found]
    maps = jnp.concatenate(reals, axis=1)
    return maps if all(x.shape[1] == 1 for x in found) else independence(maps)


def _groups(graph: DependencyGraph | FusionSpec) -> list[Group]:
    """The groups that a spec cuts, or all neurons of a graph."""
    if isinstance(graph, FusionSpec):
        return graph.structure.in_order()
    return [g for g in graph.groups if g.kind != "free"]


def _checked_metrics(
    metrics: Sequence[str | GroupMetric] | None,
    graph: DependencyGraph | FusionSpec,
    loss_fn: object,
) -> tuple[str, ...]:
    """The statistics to collect, for some metrics."""
    if metrics is None:
        metrics = [graph.method.importance] if isinstance(graph, FusionSpec) else []
    needs = {} if isinstance(metrics, str) else {m: statistic_of(m) for m in metrics}
    if not needs or None in needs.values():
        some = filter(statistic_of, importance.IMPORTANCES)
        raise ValueError(
            f"metrics: expected a sequence of some of {', '.join(some)} (the default is the "
            f"importance of the spec), got {metrics!r}; other importances need no statistics"
        )
    needy = [metric for metric, field in needs.items() if field in _OF_A_LOSS]
    if needy and loss_fn is None:
        raise ValueError(
            f"importance {needy[0]!r} needs a loss: pass loss_fn=loss, with loss(outputs, targets) "
            "the scalar mean loss, and batches that yield (inputs, targets)"
        )
    return tuple(filter(None, needs.values()))


def _read(
    batch: PyTree, apply_fn: Callable[..., PyTree], params: PyTree, loss_fn: object
) -> tuple[tuple[PyTree, ...], PyTree, int]:
    """Inputs, targets and number of examples of a batch."""
    if loss_fn is None:
        inputs, targets = inputs_of(batch, apply_fn, params), None
    else:
        inputs, targets = pair_of(batch)
    return inputs, targets, count_examples(inputs, targets)


@jax.jit
def _added(a: Stats, b: Stats) -> Stats:
    return a + b


def _wide(*arrays: AnyArray) -> np.dtype:
    """At least float32."""
    return jnp.result_type(jnp.float32, *arrays)
