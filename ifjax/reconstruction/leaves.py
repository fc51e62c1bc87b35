"""From what was solved for to the leaves: weights, and the offsets on their paths."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ifjax.activations.moments import NormalForm, kernel, results, weight
from ifjax.graph.facts.sites import Site
from ifjax.graph.facts.views import Path, views_of
from ifjax.parallel.hosts import on_host
from ifjax.reconstruction.along import pull, push, stands_still
from ifjax.reconstruction.walk import Walk

TINY = 1e-6  # of the largest slope: below it an output hardly depends on the weight


@dataclasses.dataclass(frozen=True)
class Offset:
    """A leaf, or several that are joined, added along the path: from each to the unit's end."""

    leaves: tuple[int, ...]
    paths: tuple[Path, ...]


def write_weight(
    walk: Walk,
    site: Site,
    form: NormalForm,
    scale: Float[np.ndarray, "B O"],
    solved: Float[np.ndarray, "B K O"],
) -> None:
    """Puts solved weights into the leaves that the weight is made of.

    Args:
      walk: for the leaves.
      site: whose weight it is.
      form: its normal form.
      scale: what the outputs are multiplied by along the path.
      solved: the weight times the scale.
    """
    w = on_host(walk.parameter(site.weight, dense=False))
    tiny = np.abs(scale) <= TINY * np.abs(scale).max(initial=0)
    old = np.asarray(kernel(form, w), np.float64)
    new = np.where(tiny[:, None], old, solved / np.where(tiny, 1, scale)[:, None])
    change = np.asarray(weight(form, new - old, tuple(w.shape)))
    if site.gains:
        _write_normalised(walk, site, w.astype(np.float64) + change)
        return
    for view in site.views:
        leaf = on_host(walk.leaves[view.leaf])
        shape = leaf.shape
        if stands_still(walk, view.spine):
            walk.write(view.leaf, (leaf + change).astype(leaf.dtype))
            continue
        at = push(walk, np.arange(leaf.size).reshape(shape), view.spine, scaled=False)
        factor = push(walk, np.ones(shape), view.spine)  # zero where other leaves stand
        flat = leaf.astype(np.float64).reshape(-1)
        used = np.abs(factor) > TINY * np.abs(factor).max(initial=0)
        flat[at[used]] += change[used] / factor[used]
        walk.write(view.leaf, flat.reshape(shape).astype(leaf.dtype))


def admits_any(walk: Walk, site: Site) -> bool:
    """Whether the leaves of a site can give any weight, as (v / |v|) g does with v = W, g = |W|.

    Args:
      walk: for the leaves, which stay as they are.
      site: of a weight that is normalised, or of another one, which admits any.

    Returns:
      What trying gives.
    """
    if not site.gains:
        return True
    w = on_host(walk.parameter(site.weight, dense=False))
    before = {n: walk.leaves[n] for n in (*site.leaves, *site.gains)}
    changed = set(walk.changed)
    wanted, rng = w.astype(np.float64), np.random.default_rng(0)
    for axis, size in enumerate(w.shape):  # so that no norm stays what it was
        shape = [size if i == axis else 1 for i in range(w.ndim)]
        wanted *= 2.0 ** rng.integers(-2, 3, size).reshape(shape)
    wanted *= 4 / max(np.abs(wanted).max(initial=0), np.finfo(np.float64).tiny)
    _write_normalised(walk, site, wanted)
    got = on_host(walk.parameter(site.weight, dense=False), np.float64)
    for n, x in before.items():
        walk.write(n, x)
    walk.changed.clear()
    walk.changed.update(changed)
    exact = 8 * float(jnp.finfo(w.dtype).eps)
    return bool((np.abs(got - wanted) <= exact * np.abs(wanted)).all())


def _write_normalised(walk: Walk, site: Site, wanted: Float[np.ndarray, "*shape"]) -> None:
    """Gives a leaf the weight itself, and the leaf behind its norm what is missing then."""
    [view] = site.views
    assert view.gain is not None
    number, path = view.gain
    leaf = on_host(walk.leaves[view.leaf])
    at = push(walk, np.arange(leaf.size).reshape(leaf.shape), view.spine, scaled=False)
    flat = leaf.astype(np.float64).reshape(-1)
    flat[at] = wanted
    walk.write(view.leaf, jnp.asarray(flat.reshape(leaf.shape), leaf.dtype))
    gain = on_host(walk.leaves[number])
    index = push(walk, np.arange(gain.size).reshape(gain.shape), path, scaled=False).reshape(-1)
    got = on_host(walk.parameter(site.weight, dense=False), np.float64)
    products, squares = (
        np.bincount(index, (got * x).reshape(-1), gain.size) for x in (wanted, got)
    )
    ratio = np.where(squares > 0, products / np.where(squares > 0, squares, 1), 1)
    new = gain.astype(np.float64).reshape(-1) * ratio
    walk.write(number, jnp.asarray(new.reshape(gain.shape), gain.dtype))


def find_offset(
    walk: Walk, site: Site, form: NormalForm, uses: int, of_norms: bool = False
) -> Offset | None:
    """The last leaf that is added on the path with a value per output: a bias or norm's offset.

    It is read as often as the weights are, and nowhere else. Or else the running mean of a norm,
    which is subtracted there.
    """
    norms = {m.path for g in walk.resized.structure.groups for m in g.members if m.role == "mean"}
    norms |= {n.mean for n in walk.resized.structure.norms}
    paths = dict(zip(walk.leaves, (x.path for x in walk.resized.structure.leaves), strict=True))

    def is_free(n: int) -> bool:
        if n in walk.fixed or (paths[n] in norms) != of_norms:
            return False
        floating = jnp.issubdtype(walk.leaves[n].dtype, jnp.floating)
        return floating and len(walk.sites.reads[n]) == uses

    for i in reversed(range(len(site.path))):
        place, k = site.path[i]
        step = walk.program.steps[place]
        if step.equation.primitive.name not in ("add", "add_any", "sub") or step.data[1 - k]:
            continue
        number = step.inputs[1 - k]
        found = views_of(walk.program, number, spread=True)
        if isinstance(found, str) or not all(is_free(view.leaf) for view in found):
            continue
        rest = ((place, 1 - k), *site.path[i + 1 :])
        ways = tuple((*view.spine, *rest) for view in found)
        offset = Offset(tuple(view.leaf for view in found), ways)
        if _carries_shifts(walk, site, form, offset):
            return offset
    return None


def _carries_shifts(walk: Walk, site: Site, form: NormalForm, offset: Offset) -> bool:
    """Whether leaves can shift every output of a site on its own, the same at all positions."""
    at, slope = _entries(walk, site, form, offset)
    outputs = at.shape[0] * at.shape[2]
    return bool(
        (at == at[:, :1]).all()
        and len(np.unique(at[:, 0])) == outputs
        and np.ptp(slope, axis=1).max(initial=0) <= 1e-5 * np.abs(slope).max(initial=0)
    )


def _entries(
    walk: Walk, site: Site, form: NormalForm, offset: Offset
) -> tuple[Int[np.ndarray, "B N O"], Float[np.ndarray, "B N O"]]:
    """Which entry of the leaves, one after the other, shifts each result, and by how much."""
    at, slope, before = -1, 0.0, 0
    for leaf, path in zip(offset.leaves, offset.paths, strict=True):
        shape = walk.leaves[leaf].shape
        index = np.arange(1, 1 + math.prod(shape)).reshape(shape) + before
        at = at + push(walk, index, path, scaled=False)  # zero where other leaves stand
        slope = slope + push(walk, np.ones(shape), path)
        before += math.prod(shape)
    return tuple(results(form, pull(walk, x, site.path)) for x in (at, slope))  # type: ignore


def write_offset(
    walk: Walk, site: Site, form: NormalForm, offset: Offset, shifts: Float[np.ndarray, "B O"]
) -> None:
    """Adds what shifts the outputs to the leaves."""
    at, slope = _entries(walk, site, form, offset)
    at, slope = at[:, 0], slope.mean(1)
    used = np.abs(slope) > TINY * np.abs(slope).max(initial=0)
    leaves = [on_host(walk.leaves[n]) for n in offset.leaves]
    flat = np.concatenate([x.astype(np.float64).reshape(-1) for x in leaves])
    flat[at[used]] += shifts[used] / slope[used]
    parts = np.split(flat, np.cumsum([x.size for x in leaves])[:-1])
    for n, old, new in zip(offset.leaves, leaves, parts, strict=True):
        walk.write(n, jnp.asarray(new.reshape(old.shape), old.dtype))
