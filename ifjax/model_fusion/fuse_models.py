"""Several networks of one architecture as one: aligned to the first by optimal transport, averaged.

Networks that were trained apart hold alike neurons in different places, so that their plain average
is noise. Every group of neurons of network k is transported to that of the first one, from the
input to the output; then like is averaged with like.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ifjax.activations.batch_statistics import reset_where_any
from ifjax.activations.batches import read_inputs
from ifjax.fusion import batch_norm
from ifjax.fusion.execution.merging import fold
from ifjax.fusion.execution.place import in_numpy, is_held, placed, to_host
from ifjax.graph.shrink import shrink
from ifjax.graph.trace import DependencyGraph
from ifjax.model_fusion.alignment import Network, alignment_order
from ifjax.model_fusion.inputs import (
    Maps,
    check_converged,
    check_maps,
    check_options,
    checked_method,
)
from ifjax.model_fusion.matching import activation_costs, align
from ifjax.namespace import AnyArray, Arrays, jitted, namespace
from ifjax.promotion import with_promotion
from ifjax.spec.spec import FusionSpec
from ifjax.structure.leaves import checked_leaves
from ifjax.structure.structure import Structure, at_widths
from ifjax.transport.costs import Order
from ifjax.transport.solvers import Solver
from ifjax.transport.transport import Transport
from ifjax.tree import is_concrete, promoted


@with_promotion
def fuse_models(
    models: Sequence[PyTree],
    graph: DependencyGraph,
    *,
    weights: Sequence[float | int | Array] | Array | None = None,
    maps: Sequence[Maps] | None = None,
    specs: Sequence[FusionSpec | None] | None = None,
    apply_fn: Callable[..., PyTree] | None = None,
    batches: Iterable[PyTree] | None = None,
    **alignment: Any,
) -> PyTree:
    r"""One network from several of one architecture, at the size of the first one.

    All are aligned to the first, see `align_models`, and averaged: with the plan T of a group, of
    row sums r and column sums c, its neurons in network k become :math:`P_k = diag(c)^{-1} T^T`
    times them, its consumers :math:`M_k = (diag(r)^{-1} T)^T` times them, and

    .. math:: w = \sum_k \lambda_k A_k w_k, \quad A_1 = 1, \quad \sum_k \lambda_k = 1.

    Networks that differ by a permutation of neurons that are all distinct give the first one back.

    Batch norms that can be folded into their kernels are averaged folded, so that a kernel's scale,
    which its norm takes away again, does not weigh. An average of neurons that do not agree varies
    less than each of them (Jordan et al.); with the cosine of the kernels as correlation that is
    made good in the variance: channels keep the mean of their standard deviations. Other running
    statistics are averaged. All this is approximate; with ``apply_fn`` and ``batches`` all running
    statistics are set to those of the fused network, as `reset_statistics` does.

    Args:
      models: the parameter trees, at least one; leaves that are not floating point, and dtypes, are
        those of the first.
      graph: of the full network, from `ifjax.trace`.
      weights: one number per network, not negative, divided by their sum; None for equal ones.
      maps: what `align_models` returned for these networks, instead of aligning them here.
      specs: for networks that were cut: the spec of each, None for one that is whole. The result
        has the widths of the first; its function is ``ifjax.shrink(apply_fn, specs[0])``.
      apply_fn: the full network's eval-mode function.
      batches: tuples of inputs.
      **alignment: options of `align_models`.

    Returns:
      The fused parameters.

    Raises:
      ValueError: for no networks, one that is not of the graph or not finite, weights that are
        negative or all zero, maps or specs of another network; or as `align_models`.
      TypeError: for a single tree in the place of several, or for no graph.
      RuntimeError: if a Sinkhorn solver did not converge (outside of jit).

    References:
      Singh and Jaggi, `Model Fusion via Optimal Transport <https://arxiv.org/abs/1910.05653>`_,
      NeurIPS 2020; Theus et al., `Towards Meta-Pruning via Optimal Transport
      <https://arxiv.org/abs/2402.07839>`_, ICLR 2024, section 4; Jordan et al., `REPAIR
      <https://arxiv.org/abs/2211.08403>`_, ICLR 2023.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> one = {"w1": jnp.array([[1.0, 2.0], [0.0, 3.0]]), "w2": jnp.array([[5.0], [7.0]])}
      >>> graph = ifjax.trace(apply, one, jnp.ones((1, 2)))
      >>> two = ifjax.take(one, graph, {"w1": [1, 0]})
      >>> ifjax.fuse_models([one, two], graph)["w2"].tolist()
      [[5.0], [7.0]]
    """
    if maps is not None and alignment:
        raise ValueError(f"maps are given, so that {', '.join(alignment)} would not be used")
    structures, leaves = _checked_models(models, graph, specs)
    shares = _checked_weights(weights, len(models))
    data = _checked_data(apply_fn, batches, models[0], specs)
    if maps is None:
        if alignment.get("on") == "activations":
            alignment |= data
        maps = align_models(models, graph, specs=specs, **alignment)
    check_maps(maps, structures)
    with _in_one_place(leaves, list(maps), shares) as given:
        fused = placed(models[0], _averaged(given[0], structures, *given[1:]))
    if not data:
        return fused
    function = _function(data["apply_fn"], None if specs is None else specs[0])
    return reset_where_any(function, fused, data["batches"])


@with_promotion
def align_models(
    models: Sequence[PyTree],
    graph: DependencyGraph,
    *,
    specs: Sequence[FusionSpec | None] | None = None,
    on: str = "weights",
    apply_fn: Callable[..., PyTree] | None = None,
    batches: Iterable[PyTree] | None = None,
    solver: str | Solver = "exact",
    epsilon: float | int | None = None,
    cost_p: Order = 2.0,
    sweeps: int = 1,
) -> tuple[dict[str, Transport], ...]:
    """Transports the neurons of every network after the first to those of the first one.

    Groups are walked from the input to the output. Neuron i of network k is described by what it
    has in producers, consumers, biases and offsets whose other axes are pinned or were aligned
    before, batch norms folded in; the cost is the p-norm of its difference to neuron j of the first
    network. Once all groups are aligned all of them count: ``sweeps`` more rounds start from there,
    until nothing changes.

    Neurons that number others (attention heads, experts) are compared by the sets of what is in
    them, and every one is given one partner: its inside is aligned after it, so that an average
    would be noise.

    Args:
      models: the parameter trees.
      graph: of the full network.
      specs: of networks that were cut, see `fuse_models`.
      on: ``"weights"``, or ``"activations"`` for a cost of one minus the correlation of two
        neurons' activations over ``batches``, as they enter the next kernels. Heads, what is inside
        of them, and what only loops read are compared on weights all the same.
      apply_fn: the full network's eval-mode function, for activations.
      batches: tuples of inputs, a few hundred examples together, for activations.
      solver: ``"exact"``, ``"sinkhorn"``, ``"sinkhorn_kernel"``, ``"auto"`` or a value, see
        `ifjax.Method`; both sides have uniform mass.
      epsilon: of Sinkhorn, relative to the mean cost, 0.01 by default.
      cost_p: order of the norm, at least 1, or ``"cosine"``.
      sweeps: further rounds on all kernels.

    Returns:
      For every network after the first, the `Transport` of every group, ``map`` of shape
      ``[*batch, n, m]``, n its own neurons, m those of the first network; heads and experts, as far
      as they batch it, in the order of the first network.

    Raises:
      ValueError: for networks that are not of the graph, unknown options, or activations without
        function and inputs.
      ImportError: for ``solver="exact"`` without POT, where neither width divides the other.
      RuntimeError: if a Sinkhorn solver did not converge (outside of jit).

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> one = {"w1": jnp.array([[1.0, 2.0], [0.0, 3.0]]), "w2": jnp.array([[5.0], [7.0]])}
      >>> graph = ifjax.trace(apply, one, jnp.ones((1, 2)))
      >>> two = ifjax.take(one, graph, {"w1": [1, 0]})
      >>> (maps,) = align_models([one, two], graph)
      >>> maps["w1"].targets.tolist()
      [1, 0]
    """
    structures, leaves = _checked_models(models, graph, specs)
    check_options(on, sweeps)
    method = checked_method(solver, epsilon, cost_p)
    data = _checked_data(apply_fn, batches, models[0], specs)
    if bool(data) != (on == "activations"):
        raise ValueError(
            f"on='activations' goes with apply_fn and batches; got on={on!r} "
            f"{'with' if data else 'without'} them"
        )
    function = functools.cache(lambda spec: _function(data["apply_fn"], spec))
    costs: list[dict[str, Array]] = [{} for _ in models]
    for k in range(1, len(models)) if data else ():
        ours, theirs = (
            (function(None if specs is None else specs[i]), models[i], structures[i])
            for i in (k, 0)
        )
        costs[k] = activation_costs(ours, theirs, data["batches"])
    with _in_one_place(leaves, costs) as (leaves, costs):
        target, *sources = (
            Network(structure, fold(_promoted(x), structure.norms), like=structures[0])
            for x, structure in zip(leaves, structures, strict=True)
        )
        result = tuple(
            align(source, target, c, solver=method.solver_value, cost_p=cost_p, sweeps=sweeps)
            for source, c in zip(sources, costs[1:], strict=True)
        )
    for k, found in enumerate(result, 1):
        check_converged(found, k, method)
    return jax.device_put(result) if is_held(result) else result


@contextlib.contextmanager
def _in_one_place(*trees: PyTree) -> Iterator[tuple[PyTree, ...]]:
    """The arrays in numpy where this process holds all of them, else all of jax."""
    if not is_held(trees):
        yield jax.tree.map(jnp.asarray, trees)
        return
    with in_numpy():
        yield to_host(trees)


def _averaged(
    leaves: Sequence[Arrays],
    structures: Sequence[Structure],
    maps: Sequence[Maps],
    shares: AnyArray,
) -> dict[str, AnyArray]:
    """The leaves of all networks in the coordinates of the first, averaged, in its dtypes."""
    norms = structures[0].norms
    aligned: list[dict[str, AnyArray]] = []
    for x, structure, found in zip(leaves, structures, [{}, *maps], strict=True):
        x = _promoted(x)
        folded = fold(x, norms)
        for norm in norms:
            scale, variance = x[norm.scale], x[norm.variance]
            size = batch_norm.slope(folded[norm.kernel], scale, variance, norm.axis, norm.eps)
            # Scale and variance are found anew, from the averages of these two.
            folded |= {norm.scale: abs(scale), norm.variance: size}
        plans = {name: t.map for name, t in found.items()}
        network = Network(structure, folded, plans, structures[0])
        aligned.append({path: network.mapped(path)[0] for path in x})
    result = _mean(aligned, shares)
    for norm in norms:
        kernels = [x[norm.kernel] for x in aligned]
        spreads = [x[norm.scale] for x in aligned]
        first, variance = leaves[0][norm.scale], result[norm.variance]
        sign = namespace(first).where(first < 0, -1, 1).astype(variance.dtype)
        dtype = jax.dtypes.canonicalize_dtype(leaves[0][norm.variance].dtype)
        rows = _spread(kernels, spreads, shares, norm.axis)
        kept = result[norm.scale]
        result.update(batch_norm.unfold(result, norm, rows, variance * sign, dtype))
        result[norm.scale] = _restored(result[norm.scale], kept, rows, norm.axis)
    return {
        path: x.astype(jax.dtypes.canonicalize_dtype(leaves[0][path].dtype))
        for path, x in result.items()
    }


def _promoted(leaves: Arrays) -> dict[str, AnyArray]:
    """The real and complex leaves, at least float32."""
    floating = {p: x for p, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    return {path: promoted(x) for path, x in floating.items()}


@jitted()
def _mean(trees: list[dict[str, AnyArray]], shares: AnyArray) -> dict[str, AnyArray]:
    def mean(*xs: AnyArray) -> AnyArray:
        return functools.reduce(
            operator.add, (x * s.astype(x.dtype) for x, s in zip(xs, shares, strict=True))
        )

    return jax.tree.map(mean, *trees)


@jitted("axis")
def _spread(
    kernels: list[AnyArray], spreads: list[AnyArray], shares: AnyArray, axis: int
) -> AnyArray:
    """An average of kernels whose rows are as long as the norms' outputs spread.

    The length of its rows is what the average spreads where the cosine of two kernels is the
    correlation of their outputs.
    """
    rows = [batch_norm.spread(k, g, axis) for k, g in zip(kernels, spreads, strict=True)]
    return _mean([{"rows": x} for x in rows], shares)["rows"]


@jitted("axis")
def _restored(scale: AnyArray, spread: AnyArray, rows: AnyArray, axis: int) -> AnyArray:
    """The scale with which a channel of the given rows spreads as it should."""
    xp, length = namespace(rows), batch_norm.row_norms(rows, axis)
    return xp.where(length > 0, scale * spread / xp.where(length > 0, length, 1), scale)


def _checked_models(
    models: Sequence[PyTree],
    graph: DependencyGraph,
    specs: Sequence[FusionSpec | None] | None,
) -> tuple[list[Structure], list[dict[str, AnyArray]]]:
    """Every network's structure at its widths, groups in the order of alignment; its leaves."""
    if not isinstance(graph, DependencyGraph):
        raise TypeError(f"expected a graph, as ifjax.trace gives it, got {type(graph).__name__}")
    if not isinstance(models, Sequence):
        raise TypeError(
            f"expected a sequence of parameter trees, got {type(models).__name__}; networks that "
            "are stacked are [jax.tree.map(lambda x: x[i], stacked) for i in range(k)]"
        )
    if not models:
        raise ValueError("expected at least one network, got none")
    specs = [None] * len(models) if specs is None else list(specs)
    if len(specs) != len(models):
        raise ValueError(
            f"expected a spec or None for each of {len(models)} networks, got {len(specs)}"
        )
    whole = dataclasses.replace(graph.structure, groups=tuple(alignment_order(graph.structure)))
    structures, leaves = [], []
    for k, (params, spec) in enumerate(zip(models, specs, strict=True)):
        if spec is not None and not isinstance(spec, FusionSpec):
            raise TypeError(f"specs[{k}]: expected a FusionSpec, got {type(spec).__name__}")
        if spec is not None and spec.structure.leaves != graph.structure.leaves:
            raise ValueError(f"specs[{k}]: made from another graph than the one given")
        structure = whole if spec is None else at_widths(whole, spec.structure.widths)
        try:
            found = checked_leaves(params, structure)
        except ValueError as error:
            raise ValueError(f"models[{k}]: {error}") from error
        structures.append(structure)
        leaves.append(found)
    return structures, leaves


def _checked_weights(weights: Sequence[float | int | Array] | Array | None, count: int) -> AnyArray:
    """Shares of sum one."""
    if weights is None:
        return np.full((count,), 1 / count)
    if is_concrete(*(weights if isinstance(weights, Sequence) else [weights])):
        found = np.asarray(weights, np.float64)
        if found.shape != (count,):
            raise ValueError(f"expected {count} weights, one per network, got shape {found.shape}")
        if not (np.isfinite(found) & (found >= 0)).all() or found.sum() == 0:
            raise ValueError(
                "expected weights that are finite, not negative and not all zero, got "
                f"{found.tolist()}"
            )
        return found / found.sum()
    weights = jnp.asarray(weights)
    return weights / weights.sum()


def _checked_data(
    apply_fn: Callable[..., PyTree] | None,
    batches: Iterable[PyTree] | None,
    params: PyTree,
    specs: Sequence[FusionSpec | None] | None,
) -> dict[str, PyTree]:
    """Function and batches, or neither."""
    if (apply_fn is None) != (batches is None):
        raise ValueError(
            "expected apply_fn (the eval-mode function that was traced) and batches (tuples of "
            f"inputs) together, got {'batches' if apply_fn is None else 'apply_fn'} alone"
        )
    if apply_fn is None:
        return {}
    function = _function(apply_fn, None if specs is None else specs[0])
    found = list(read_inputs(batches, function, params))
    if not found:
        raise ValueError("expected at least one batch of inputs, got none")
    return {"apply_fn": apply_fn, "batches": found}


def _function(apply_fn: Callable[..., PyTree], spec: FusionSpec | None) -> Callable[..., PyTree]:
    """The function of one network, at its widths; an object of its own, so that it is hashable."""
    return functools.partial(apply_fn if spec is None else shrink(apply_fn, spec))
