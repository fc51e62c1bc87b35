"""How many neurons of which group, for a budget of FLOPs or weights: `allocate`."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ifjax.activations.statistics import Stats
from ifjax.allocation.account import account_of
from ifjax.allocation.curve import Curve
from ifjax.allocation.divergence import Divergence, divergence_of
from ifjax.allocation.effects import measure
from ifjax.allocation.spread import least, spread
from ifjax.allocation.ties import Bound, Tie, ties_of
from ifjax.graph.graph import DependencyGraph
from ifjax.graph.resized import resized
from ifjax.jaxprs.arguments import Arguments, check_order
from ifjax.promotion import with_promotion
from ifjax.reconstruction.calibration import calibration
from ifjax.reconstruction.compress import direction_of, kept_by_importance, reconstructs
from ifjax.reconstruction.start import start
from ifjax.reconstruction.unroll import unrolled
from ifjax.spec.options import is_real, plain_number
from ifjax.spec.spec import FusionSpec
from ifjax.spec.widths import Selector, Uniform
from ifjax.structure.leaves import checked_leaves
from ifjax.structure.structure import keeping


@with_promotion
def allocate(
    apply_fn: Callable[..., Any],
    params: PyTree,
    graph: DependencyGraph,
    batches: Iterable[Any],
    budget: float,
    of: str = "flops",
    *,
    divergence: Divergence = "kl",
    include: Selector = None,
    exclude: Selector = None,
    protect: str | Sequence[str] = (),
    uniform: Uniform = False,
    floor: Bound = 0.1,
    cap: Bound = 1.0,
    round_to: int = 1,
    levels: int = 8,
    stats: Stats | None = None,
    **method: Any,
) -> FusionSpec:
    r"""Spreads a budget over the groups, more to those whose cutting moves the outputs less.

    Every group alone is cut to a few widths on unlabelled inputs, with what reads it solved for as
    `ifjax.compress` does, and the rest of the network as it is. This gives the effect
    :math:`D_g(m)` on the outputs of keeping m of its neurons. Then

    .. math::
        \min_m \sum_g D_g(m_g) \quad \text{with} \quad
        F(m) \le (1 - \text{budget}) \, F(n), \quad \text{floor}_g \le m_g \le \text{cap}_g,

    with F the network's FLOPs or weights at these widths, which are no sum over groups.

    It takes about half a forward pass, and the solves of one group, for each group and level; three
    quarters of the inputs are solved on, the outputs are compared on the others.

    Args:
      apply_fn: the *eval-mode* function ``apply_fn(params, *inputs)`` that was traced.
      params: its full parameters.
      graph: of the function.
      batches: unlabelled inputs, as `ifjax.compress` takes them.
      budget: the fraction that is removed, in [0, 1): of the whole network's FLOPs or weights, or
        of the neurons of the groups that may be cut.
      of: what it is a fraction of: ``"flops"``, ``"weights"`` or ``"neurons"``.
      divergence: how far outputs have moved: ``"kl"`` from the dense network's, where they are
        logits along the last axis; ``"squared"`` relative to the spread of the dense ones, where
        they are not; or a function of the dense and the small network's outputs.
      include: globs or a predicate: only these groups are cut, see `ifjax.DependencyGraph.spec`.
      exclude: globs or a predicate: these groups are not cut.
      protect: globs on leaf paths: groups that these leaves hold are not cut.
      uniform: globs on group names: what one of them matches is cut in one ratio, so that groups of
        one size get one width; True for all groups whose names differ in numbers alone.
      floor: the fewest neurons that stay: an integer, or a float for a fraction of the group; for
        every group, or by glob, of which the first that matches counts.
      cap: the most neurons that stay, likewise; below 1.0 the group is cut in any case.
      round_to: kept neurons of a cut group are multiples of it.
      levels: at how many widths a group is measured; between them the effect is interpolated.
      stats: for importances that need them.
      **method: fields of `ifjax.Method`. Neurons are chosen by what can be reconstructed unless
        ``importance`` says otherwise; they are not merged here, as `ifjax.compress` may do then.

    Returns:
      The spec, for `ifjax.compress`: what it removes is the budget, to within a neuron.

    Raises:
      ValueError: for a budget that is no such fraction, or that floors and selection do not allow;
        for bounds that exclude each other; a pattern that matches nothing; outputs that are no
        logits; and as `ifjax.compress` for its inputs.

    References:
      Frantar & Alistarh, `SPDY <https://arxiv.org/abs/2201.13096>`_, ICML 2022, and Kurtic et al.,
      `ZipLM <https://arxiv.org/abs/2302.04089>`_, NeurIPS 2023, spread budgets by layer errors;
      here the effect on the output is what counts.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> x = jax.random.normal(jax.random.key(0), (64, 4))
      >>> twice = lambda w: jnp.concatenate([w, w], -1)  # every neuron of b has a duplicate
      >>> normal = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
      >>> params = {"a": normal(1, 4, 8), "b": twice(normal(2, 8, 4)), "c": normal(3, 8, 5)}
      >>> apply = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
      >>> graph = ifjax.trace(apply, params, x)
      >>> allocate(apply, params, graph, [x], 0.38, of="weights").structure.widths
      {'b': 4}
    """
    check_order("allocate(apply_fn, params, graph, batches, budget)", apply_fn, params)
    share = _checked_share(budget)
    with warnings.catch_warnings():  # of numbers that stay: said once, of what is cut in the end
        warnings.simplefilter("ignore")
        spec = graph.spec(keep=1, include=include, exclude=exclude, protect=protect, **method)
    may = [g for g in graph.groups if g.name in spec.structure.widths]
    ties = ties_of(may, uniform, floor, cap, round_to)
    account = account_of(graph.structure, of, [g.name for g in may])
    whole = account.total({})
    most = int((1 - share) * whole + 1e-6)
    if (fewest := least(ties, account)) > most:
        raise ValueError(
            f"budget {share:.1%} of the {of}: at most {1 - fewest / whole:.1%} can be removed, "
            "with every group that may be cut at its floor; ask for less, lower floor, or widen "
            "include, exclude or protect"
        )
    curves = _curves(apply_fn, params, spec, ties, batches, levels, divergence, stats)
    rungs = spread(ties, curves, account, most)
    kept = {n: m for t, rung in zip(ties, rungs, strict=True) for n, m in t.widths(rung).items()}
    return graph.spec(keep=kept, **method)


def _checked_share(budget: Any) -> float:
    share = plain_number(budget)
    if not is_real(share) or not 0 <= share < 1:
        raise ValueError(f"budget: expected the fraction to remove, in [0, 1); got {budget!r}")
    return float(share)


def _curves(
    apply_fn: Callable[..., Any],
    params: PyTree,
    spec: FusionSpec,
    ties: Sequence[Tie],
    batches: Iterable[Any],
    levels: int,
    divergence: Divergence,
    stats: Stats | None,
) -> dict[str, Curve]:
    """The effect of every tie."""
    compare = divergence_of(divergence)
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
        raise ValueError(f"levels: expected a positive number of widths; got {levels!r}")
    checked_leaves(params, spec.structure)
    data = calibration(batches, apply_fn, params)
    if not any(data.held):
        raise ValueError("expected at least two batches: on one of them outputs are compared")
    flat = unrolled(apply_fn, params, spec.structure, data.batches[0], {})
    arguments = Arguments.split(data.batches[0])
    walked = resized(flat.apply_fn, flat.structure, flat.params, arguments, {})
    arrays = [Arguments.split(inputs).arrays for inputs in data.batches]
    walk = start(walked, jax.tree.leaves(flat.params), arrays)

    def given(tie: Tie, rung: int, blind: Sequence[str]) -> Mapping[str, np.ndarray]:
        wanted = {g.name for g in tie.groups}
        if reconstructs(spec):
            wanted &= flat.originals([flat.structure.group[name] for name in blind])
        if not wanted:
            return {}
        widths = tie.widths(rung)
        structure = keeping(spec.structure, widths)
        alone = dataclasses.replace(spec, structure=structure)
        wanted &= structure.widths.keys()
        return flat.taken(kept_by_importance(params, alone, wanted, None, stats))

    return measure(walk, ties, flat.copies, data.held, levels, compare, given, direction_of(spec))
