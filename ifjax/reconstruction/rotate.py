"""The channels of a residual stream rotated to their principal axes: `rotate`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from ifjax.graph.graph import DependencyGraph
from ifjax.graph.resized import Resized, resized
from ifjax.jaxprs import compat
from ifjax.jaxprs.arguments import Arguments, check_order
from ifjax.jaxprs.axis_nodes import Free
from ifjax.parallel.hosts import agreed, on_host
from ifjax.parallel.sharding import laid_like
from ifjax.promotion import with_promotion
from ifjax.reconstruction.calibration import calibration
from ifjax.reconstruction.equivariance import find_bearings, line_of
from ifjax.reconstruction.events import Event, merge
from ifjax.reconstruction.reading import grams_of, readings
from ifjax.reconstruction.scales import fold_scales
from ifjax.reconstruction.start import start
from ifjax.reconstruction.subspace import least_read
from ifjax.reconstruction.taps import Tap, taps_of
from ifjax.reconstruction.unroll import Unrolled, unrolled
from ifjax.reconstruction.walk import Walk
from ifjax.spec.spec import FusionSpec
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.structure.leaves import checked_leaves
from ifjax.structure.names import known_group
from ifjax.structure.structure import Group, keeping

AGREEMENT, MOST = 30.0, 0.1  # times the root of the rounding unit, and at most: what may differ
# Where a share s of what a norm sums is lost, its root is about s / 2 smaller. The square of that,
# if only at some positions, is up to a quarter of the mean share.
OF_NORMS = 0.25


_ADVICE = "give that use a leaf of its own, or trace and rotate the function without it"


class Rotated(NamedTuple):
    """Parameters of the same function, in which the channels of a group are principal axes.

    Attributes:
      params: the parameters.
      rotation: what a row of channels was multiplied by, orthogonal.
      energy: mean square of every channel in what its consumers read, descending; with ``kept=``
        descending among these, and among the others, which may be larger.

    Example:
      >>> rotated = Rotated({"w": np.eye(2)}, np.eye(2), np.array([3.0, 1.0]))
      >>> float(rotated.energy[0] / rotated.energy.sum())  # what the first channel has of all
      0.75
    """

    params: PyTree
    rotation: Float[np.ndarray, "n n"]
    energy: Float[np.ndarray, " n"]


@with_promotion
def rotate(
    apply_fn: Callable[..., Any],
    params: PyTree,
    graph: DependencyGraph | FusionSpec,
    group: str,
    batches: Iterable[Any],
    *,
    kept: int | None = None,
    **static: Any,
) -> Rotated:
    r"""Rotates the channels of a residual stream to their principal axes; the function stays.

    All that a residual stream goes through, adds, RMS norms, contractions with weights, is the same
    in any orthogonal basis Q: weights that produce the channels become W Q, those that consume them
    Q' W. Taken are the eigenvectors of

    .. math::
        \frac{1}{S} \sum_s \frac{1}{N_s} X_s' X_s = Q \operatorname{diag}(e) Q',

    with :math:`X_s`, ``[N_s, n]``, what the consumers at the s-th of S places read, behind their
    norm, and e descending: the first channels carry most, and cutting the group then cuts minor
    axes where it would have cut single channels. With ``scores={group: energy}`` `ifjax.compress`
    and `ifjax.fuse_params` keep the first ones; without, ``compress`` chooses among them.

    Where it is known how many are to be kept, the first ones span a subspace from which the
    consumers' results can be made well, errors relative to what they give: minor axes that are read
    with large weights are in it, major ones that hardly are not. Consumers whose results do not
    come back to the channels, as those of a head, count as much as all others. What norms divide by
    counts too: a large axis that nobody reads may be all that makes it large. It is found by
    descent from principal axes, in a time that goes with places, n^2 and the number of channels
    that go. Among the kept channels, and among the others, axes are principal. ``energy`` does not
    say then which to keep: ``scores={group: range(n, 0, -1)}`` keeps the first ones.

    A scale of a norm along the channels is folded into the weights that read them beforehand, of
    every layer of a scan its own, and gets what makes it one: ones, or zeros where the function
    adds one to it. A tied embedding has no weight of its own that could take the scale before the
    head: untie it (`ifjax.models.untie_decoder`), for the weights of one head more.

    Args:
      apply_fn: the *eval-mode* function ``apply_fn(params, *inputs)`` that was traced.
      params: its full parameters. Those of numpy stay on the host, and come back as such.
      graph: of it, or a spec, whose widths do not matter.
      group: name of the group.
      batches: unlabelled inputs, as for `ifjax.compress`.
      kept: how many channels are to be kept afterwards, if that is known. It takes about five
        matrices [n, n] in double precision on the host for every place where they are read.
      **static: keyword arguments of ``apply_fn``, not traced.

    Returns:
      Parameters, of the same shapes and dtypes, the rotation, and the energy of every axis.

    Raises:
      ValueError: where something is done to the channels that depends on their basis, with the
        line of the function: an activation function, a layer norm (which takes their mean away), a
        scale that cannot be folded; for an unknown group, one that has copies (experts, heads) or
        that inputs hold; for a number of channels to keep that is not between none and all; for
        inputs as `ifjax.compress`; and where what the rotated function computes on the first batch,
        its outputs or what reads the channels, differs from what the function did: where a folded
        scale, or a weight that took one, is used for something else.
      TypeError: for batches of another form, or anything but a graph or spec.

    References:
      Ashkboos et al., `SliceGPT: Compress large language models by deleting rows and columns
      <https://arxiv.org/abs/2401.15024>`_, ICLR 2024, which has one rotation per layer, at the
      price of two further matrices in each.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> def apply(p, x):
      ...     y = x @ p["embed"]
      ...     y = y / jnp.sqrt(jnp.mean(y**2, -1, keepdims=True)) * p["scale"]
      ...     return jax.nn.relu(y @ p["up"]) @ p["down"]
      >>> keys = jax.random.split(jax.random.key(0), 4)
      >>> shapes = {"embed": (4, 6), "up": (6, 8), "down": (8, 3)}
      >>> params = {k: jax.random.normal(keys[i], s) for i, (k, s) in enumerate(shapes.items())}
      >>> params["scale"], x = jnp.arange(1.0, 7), jax.random.normal(keys[3], (64, 4))
      >>> graph = ifjax.trace(apply, params, x)
      >>> rotated, rotation, energy = rotate(apply, params, graph, "embed", [x])
      >>> bool(jnp.allclose(apply(rotated, x), apply(params, x), rtol=1e-3, atol=1e-3))
      True
      >>> rotated["scale"].tolist(), int((energy > 1e-5).sum())  # the inputs span four axes
      ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 4)
    """
    check_order("rotate(apply_fn, params, graph, group, batches)", apply_fn, params)
    if not isinstance(graph, DependencyGraph | FusionSpec):
        raise TypeError(
            f"expected a graph, as ifjax.trace gives it, or a spec, got {type(graph).__name__}"
        )
    structure = keeping(graph.structure, {})
    checked_leaves(params, structure)
    found = known_group(structure, group)
    _check_group(found, structure.state)
    if kept is not None and not (hasattr(kept, "__index__") and 0 < kept < found.size):
        raise ValueError(
            f"{group}: expected kept from 1 to {found.size - 1}, got {kept}; a number of channels"
        )
    data = calibration(batches, apply_fn, params)
    flat = unrolled(apply_fn, params, structure, data.batches[0], static)
    arguments = Arguments.split(data.batches[0], static)
    walked = resized(flat.apply_fn, flat.structure, flat.params, arguments, static)
    _check_free(walked, found)
    arrays = [Arguments.split(inputs, static).arrays for inputs in data.batches]
    leaves = jax.tree.leaves(flat.params)
    folded = start(walked, leaves, arrays[:1])
    fold_scales(folded, found, find_bearings(folded, found.name)[1])
    walk = start(walked, [*folded.leaves.values()], arrays)
    rotation, energy = agreed(_axes(walk, found, kept), walk.mesh)
    rotated = _rotated(walk, found, rotation)
    _check_same(start(walked, leaves, arrays[:1]), found, rotated, rotation)
    return Rotated(_stacked(flat, params, rotated), rotation, energy)


def _check_group(group: Group, state: Sequence[Any]) -> None:
    """Refuses groups that there are several of, and those that come in from outside."""
    if group.batch:
        raise ValueError(
            f"{group.name}: expected a group of one copy, such as a residual stream; each of "
            f"{' x '.join(map(str, group.batch))} copies would need a rotation of its own"
        )
    held = [s.path for s in state if any(group.name in ex.atoms(e) for e in s.axes)]
    if held:
        raise ValueError(
            f"{group.name}: {', '.join(held)} holds its channels, which a rotation of the "
            "parameters does not reach; trace the function without this state"
        )


def _check_free(walked: Resized, group: Group) -> None:
    """Refuses groups that the function, for these inputs, splits or ties to others."""
    store, node = walked.analysis.store, walked.atoms[group.name]
    others = [n for n, other in walked.atoms.items() if store.find(other) == store.find(node)]
    if not isinstance(store.form(node), Free) or len(others) > 1:
        reasons = "; ".join(store.reasons(node)) or f"couples {', '.join(others)}"
        raise ValueError(
            f"{group.name}: for the inputs of these batches the function pins, splits or couples "
            f"its channels ({reasons}); trace it for such inputs"
        )


def _axes(walk: Walk, group: Group, kept: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The rotation, and the energy of every axis."""
    n = group.size
    if kept is None:
        count, gram = 0, np.zeros((n, n))
        for _, part in grams_of(walk, group):
            count, gram = count + 1, gram + part
        gram, spaces = gram / count, [np.eye(n)]
    else:
        found = readings(walk, group)
        energy = OF_NORMS * found.shares if group.name in walk.normed else None
        reads = found.reads * found.shares[:, None, None]
        gone = least_read(found.grams, reads, n - kept, energy)
        basis, _ = np.linalg.qr(gone, mode="complete")
        gram, spaces = found.grams.mean(0), [basis[:, n - kept :], basis[:, : n - kept]]
    parts = [np.linalg.eigh(space.T @ gram @ space) for space in spaces]
    axes = [space @ vectors[:, ::-1] for space, (_, vectors) in zip(spaces, parts, strict=True)]
    axes = np.concatenate(axes, 1)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0)
    energy = np.concatenate([values[::-1] for values, _ in parts])
    return np.ascontiguousarray(axes * np.sign(largest)), np.maximum(energy, 0)


def _rotated(walk: Walk, group: Group, rotation: np.ndarray) -> dict[int, Any]:
    """The leaves, those that hold the channels rotated."""
    bearings, left = find_bearings(walk, group.name)
    assert not left, "scales that were folded"
    found = dict(walk.leaves)
    for n, leaf in zip(walk.leaves, walk.resized.structure.leaves, strict=True):
        if n not in bearings or bearings[n].stays:
            continue
        if not jnp.issubdtype(walk.leaves[n].dtype, jnp.floating):
            raise ValueError(
                f"{leaf.path}: expected real numbers in all leaves that hold the channels of "
                f"{group.name}, got {leaf.dtype}"
            )
        walk.write(n, _times(walk.leaves[n], leaf.axes, group, rotation))
        found[n] = walk.leaves[n]
    return found


def _times(x: Any, axes: Sequence[ex.Expression], group: Group, rotation: np.ndarray) -> Any:
    """An array with its channels rotated: in double precision, or on a mesh where it is."""
    if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
        return merge(x, axes, Event(group, np.arange(group.size), {}, rotation.T))

    def times(x: np.ndarray, axis: int) -> np.ndarray:
        return np.moveaxis(np.tensordot(x, rotation, (axis, 0)), -1, axis)

    found = on_host(x).astype(np.float64)
    for axis, e in enumerate(axes):
        found = axis_arrays.transform(found, axis, e, group.name, times)
    return found.astype(x.dtype)


def _check_same(walk: Walk, group: Group, rotated: Mapping[int, Any], rotation: np.ndarray) -> None:
    """Raises where what reads the channels, or an output, is not what it was before."""
    for n, leaf in rotated.items():
        if leaf is not walk.full[n]:
            walk.write(n, leaf)
    last, done = walk.last_use({}) | dict.fromkeys(walk.program.outputs, math.inf), 0
    for tap in taps_of(walk, [group.name])[group.name]:
        walk.run(range(done, tap.place), {}, last)
        done = tap.place
        dense, small = (_given(walk, tap, is_dense) for is_dense in (True, False))
        [number] = tap.step.outputs
        dense = _times(dense, walk.axes(number), group, rotation)
        if (apart := _apart(dense, small, compat.dtype_of(tap.step.equation.outvars[0]))) is None:
            continue
        raise ValueError(
            f"{group.name}: expected the same numbers with rotated channels, but at "
            f"{line_of(tap.step)} they are apart by {apart}: numbers that are out of range, or "
            f"a scale, or a weight that took one, that is used for something else too; {_ADVICE}"
        )
    walk.run(range(done, len(walk.program.steps)), {}, last)
    for i, n in enumerate(walk.program.outputs):
        dense, small = (walk.value(0, n, is_dense) for is_dense in (True, False))
        if not jnp.issubdtype(dtype := jnp.asarray(dense).dtype, jnp.floating):
            continue
        dense, small = (on_host(x).astype(np.float64) for x in (dense, small))
        if (apart := _apart(dense, small, dtype)) is not None:
            raise ValueError(
                f"{group.name}: expected the same outputs with rotated channels, but output {i} of "
                f"the function is apart by {apart}: it uses the scale of a norm, or a weight that "
                f"took one, for something else too; {_ADVICE}"
            )


def _apart(dense: np.ndarray, small: np.ndarray, dtype: Any) -> str | None:
    """How far values are apart; None where it is rounding."""
    unit, size = float(jnp.finfo(dtype).eps), float(np.linalg.norm(dense))
    apart = float(np.linalg.norm(dense - small))
    if apart <= min(AGREEMENT * math.sqrt(unit), MOST) * max(size, unit):
        return None
    return f"{apart:.3g} of {size:.3g}"


def _given(walk: Walk, tap: Tap, dense: bool) -> Float[np.ndarray, ...]:
    """What a tap gives on the first batch."""
    operands = [walk.value(0, n, dense) for n in tap.step.inputs]
    [found] = compat.bind(tap.step.equation, operands)
    return on_host(found).astype(np.float64)


def _stacked(flat: Unrolled, params: PyTree, leaves: Mapping[int, Any]) -> PyTree:
    """The parameters, where the full ones are."""
    tree = jax.tree.structure(flat.params)
    found = laid_like(flat.stacked(jax.tree.unflatten(tree, list(leaves.values()))), params)
    as_given = lambda x, y: np.asarray(y) if isinstance(x, np.ndarray) else y  # noqa: E731
    return jax.tree.map(as_given, params, found)
