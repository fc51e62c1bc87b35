"""Checks a graph against the function itself: permute every group and compare the output."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ifjax.graph.analysis import mirrored_objects, mirrors
from ifjax.jaxprs.arguments import Arguments, check_order
from ifjax.namespace import AnyArray, Shaped
from ifjax.promotion import with_promotion
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.structure.batch_view import take_batched
from ifjax.structure.structure import KEYS, Group, Structure
from ifjax.tree import leaves_by_path, named_leaves

NOISE = 1e-7  # relative change of the weights that a permutation's effect is judged against
NOISE_FLOAT32 = 1e-6  # the same for a function that does not run in float64


@dataclasses.dataclass(frozen=True)
class Verification:
    """What permuting the groups did to the output.

    Attributes:
      changes: by group, the largest change of the output when all members are permuted alike,
        relative to the change under weight noise of relative size 1e-7 (1e-6 for a function that
        runs in float32 only, as loops do that fix the dtype of what they carry); at most ``limit``
        if the group is right. A right group in float64 stays far below 1.
      unverified: ``group: path[axis]`` of members whose permutation alone does not move the output
        either, so that nothing can be said of them (a key bias under softmax, dead leaves).
      limit: the largest change that passes.
    """

    changes: dict[str, float]
    unverified: tuple[str, ...]
    limit: float

    @property
    def ok(self) -> bool:
        """Whether no permutation changed the output."""
        return all(change <= self.limit for change in self.changes.values())


@with_promotion
def verify(
    structure: Structure,
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    *inputs: PyTree,
    seed: int = 0,
    limit: float = 10.0,
    throw: bool = True,
    **static: object,
) -> Verification:
    """Permutes every group, in float64, on parameters of its own in general position.

    A permutation of a group in all its members must leave the output unchanged; a permutation of
    one member alone must move it, or the member is listed as unverified. The values of ``params``
    are not used: a branch that is initialised with zeros would hide a wrong group.

    Args:
      structure: leaves and groups to check.
      apply_fn: the function that was traced, without dropout.
      params: its parameters, or their structs.
      *inputs: its inputs; structs and arrays that hold one value alone are replaced by normal
        numbers.
      seed: of the parameters, inputs and permutations.
      limit: largest change that passes, as a multiple of the change under weight noise of relative
        size 1e-7 (functions with internal float32 casts are not float64).
      throw: raise where a group is wrong.
      **static: keyword arguments of ``apply_fn``.

    Returns:
      The changes of all groups and the unverified members.

    Raises:
      ValueError: if ``throw`` and a permutation of a group changed the output.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> graph = ifjax.trace(apply, params, jnp.ones((1, 4)))
      >>> graph.verify(apply, params, jnp.ones((1, 4))).ok
      True
    """
    check_order("verify(apply_fn, params, *inputs)", apply_fn, params)
    check_paths(params, structure)
    rng = np.random.default_rng(seed)
    leaves, tree = leaves_by_path(params), jax.tree.structure(params)
    paths, values = [*leaves], general_position(structure, leaves, rng)
    arguments = Arguments.split(inputs)
    arrays = [_as_float64(x, rng) for x in arguments.arrays]

    def function(values: Sequence[AnyArray], arrays: Sequence[AnyArray]) -> PyTree:
        return apply_fn(jax.tree.unflatten(tree, values), *arguments.join(arrays), **static)

    outputs = jax.jit(functools.partial(_numbers, function))
    wide = _runs_in_float64(outputs, values, arrays)
    size = NOISE if wide else NOISE_FLOAT32
    with jax.enable_x64(wide):

        def run(changed: Mapping[str, np.ndarray]) -> np.ndarray:
            now = [changed.get(p, v) for p, v in zip(paths, values, strict=True)]
            given = [changed.get(p, x) for p, x in zip(arguments.paths, arrays, strict=True)]
            return np.concatenate(jax.device_get(outputs(now, given)))

        base = _checked_finite(run({}))
        # updated statistics are among the outputs and move with their group; compare the rest
        fixed = _unmoved(apply_fn, params, arguments, static, structure.carried)

        def change(changed: Mapping[str, np.ndarray]) -> float:
            return _distance(run(changed), base, fixed)

        current = dict(zip(paths, values, strict=True))
        given_arrays = dict(zip(arguments.paths, arrays, strict=True))
        scale = change(_with_noise(current, size, rng))
        changes: dict[str, float] = {}
        unverified: list[str] = []
        for group in structure.groups:
            order = np.stack([_derangement(group.size, rng) for _ in range(math.prod(group.batch))])
            order = order.reshape(*group.batch, group.size)
            for member in group.members:
                axes = structure.leaf[member.path].axes
                alone = _permuted(current[member.path], axes, member.axis, group, order)
                if not change({member.path: alone}) > limit * scale:
                    unverified.append(f"{group.name}: {member.path}[{member.axis}]")
            moved = _moved(structure, group, order, current, given_arrays)
            changes[group.name] = change(moved) / max(scale, 1e-300)
    result = Verification(changes, tuple(unverified), limit)
    if throw and not result.ok:
        raise ValueError(_what_moved(result, size))
    return result


def _numbers(function: Callable[..., PyTree], *args: PyTree) -> list[jax.Array]:
    """What a function returns, as vectors of one dtype; what is no number is left out."""
    found = (jnp.ravel(x) for x in jax.tree.leaves(function(*args)) if _counts(x))
    parts = (
        jnp.concatenate([x.real, x.imag]) if jnp.issubdtype(x.dtype, jnp.complexfloating) else x
        for x in found
    )
    return [x.astype(jnp.result_type(float)) for x in parts]


def _checked_finite(output: np.ndarray) -> np.ndarray:
    if not np.isfinite(output).all():
        raise ValueError(
            "the function is not finite at parameters in general position, so nothing can be "
            "verified; pass inputs inside its domain"
        )
    return output


def _with_noise(
    values: Mapping[str, AnyArray], size: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Floating-point values with relative noise."""
    return {
        p: v * (1 + size * rng.standard_normal(np.shape(v)))
        for p, v in values.items()
        if jnp.issubdtype(v.dtype, jnp.inexact)
    }


def _moved(
    structure: Structure,
    group: Group,
    order: np.ndarray,
    leaves: Mapping[str, AnyArray],
    inputs: Mapping[str, AnyArray],
) -> dict[str, np.ndarray]:
    """Leaves and state with a group permuted wherever they hold it."""
    moved: dict[str, np.ndarray] = {}
    for member in group.members:
        x = moved.get(member.path, leaves[member.path])
        axes = structure.leaf[member.path].axes
        moved[member.path] = _permuted(x, axes, member.axis, group, order)
    for state in structure.state:
        for axis, e in enumerate(state.axes):
            if group.name in {*ex.atoms(e)}:
                x = moved.get(state.path, inputs[state.path])
                moved[state.path] = _permuted(x, state.axes, axis, group, order)
    return moved


def _what_moved(result: Verification, size: float) -> str:
    wrong = {name: c for name, c in result.changes.items() if not c <= result.limit}
    worst = max(wrong, key=lambda name: wrong[name])
    return (
        f"permuting the neurons of {len(wrong)} of {len(result.changes)} groups changes the "
        f"output, so the graph is not of this function: worst {worst}, by {wrong[worst]:.3g} times "
        f"the effect of relative weight noise of {size:g} (at most {result.limit:g} expected)"
    )


def _runs_in_float64(function: Callable[..., PyTree], *args: PyTree) -> bool:
    """A loop that fixes the dtype of what it carries does not."""
    try:
        with jax.enable_x64(True):
            jax.eval_shape(function, *args)
    except TypeError:
        return False
    return True


def check_paths(params: PyTree, structure: Structure) -> None:
    """Raises ValueError where the leaves are not those of the structure."""
    found = {path: tuple(x.shape) for path, x in named_leaves(params)}
    for path in {**structure.leaf, **found}:
        want = structure.leaf[path].shape if path in structure.leaf else None
        if found.get(path) != want:
            raise ValueError(
                f"{path}: expected shape {want or 'no such leaf'}, got "
                f"{found.get(path, 'no leaf')}; pass parameters of the function that was traced"
            )


def general_position(
    structure: Structure, leaves: dict[str, Shaped], rng: np.random.Generator
) -> list[Shaped]:
    """Random float64 values for all leaves: kernels normal by fan-in, variances positive.

    Args:
      structure: gives the roles.
      leaves: arrays or structs by path; what is not floating point keeps its value.
      rng: where the values come from.

    Returns:
      Values in the order of ``leaves``.
    """
    roles = {m.path: m.role for g in structure.groups for m in g.members}
    roles |= {n.variance: "variance" for n in structure.norms}
    values: list[AnyArray] = []
    for path, x in leaves.items():
        shape = tuple(x.shape)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            values.append(_zeros(x) if isinstance(x, jax.ShapeDtypeStruct) else x)
            continue
        normal = rng.standard_normal(shape)
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            normal = normal + 1j * rng.standard_normal(shape)
            values.append(normal / math.sqrt(max(1, math.prod(shape) // max(shape, default=1))))
            continue
        role = roles.get(path)
        if role == "variance":
            values.append(0.5 + np.abs(normal))
        elif role == "multiplicative":
            values.append(1 + 0.3 * normal)
        elif len(shape) < 2:
            # a vector outside any group may be a variance of a pinned axis: keep it positive
            values.append(0.3 * normal if role in ("additive", "mean") else 0.5 + np.abs(normal))
        else:
            values.append(normal / math.sqrt(max(1, math.prod(shape) // max(shape))))
    return values


def _as_float64(x: Shaped, rng: np.random.Generator) -> AnyArray:
    """An input in float64; structs, and arrays of one value (dummies), become normal numbers."""
    abstract = isinstance(x, jax.ShapeDtypeStruct)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return _zeros(x) if abstract else x
    if abstract or np.ptp(np.asarray(x, np.float64)) == 0:
        return rng.standard_normal(x.shape)
    return np.asarray(x, np.float64)


def _zeros(x: jax.ShapeDtypeStruct) -> AnyArray:
    """Zeros, or random keys, of an abstract array that is not floating point."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0, impl=KEYS[str(x.dtype)[4:-1]]), x.shape)
    return np.zeros(x.shape, x.dtype)


def _counts(x: Shaped) -> bool:
    return jnp.issubdtype(x.dtype, jnp.number) or jnp.issubdtype(x.dtype, jnp.bool_)


def _unmoved(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    arguments: Arguments,
    static: Mapping[str, object],
    carried: Sequence[str],
) -> np.ndarray:
    """Which entries of the flattened output do not mirror a leaf, and are no state."""
    out = jax.eval_shape(
        lambda p, *a: apply_fn(p, *arguments.join(a), **static), params, *arguments.arrays
    )
    tied = mirrored_objects(out, params) | mirrors(out, named_leaves(params))
    parts = [
        np.full(math.prod(x.shape), i not in tied and f"outputs/{path}" not in carried)
        for i, (path, x) in enumerate(named_leaves(out))
        if _counts(x)
    ]
    return np.concatenate(parts)


def _distance(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Largest absolute difference; NaN counts as infinite."""
    difference = np.abs(a[where] - b[where])
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))


def _derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    """A permutation that moves every element."""
    shuffled = rng.permutation(n)
    order = np.empty(n, int)
    order[shuffled] = np.roll(shuffled, 1)
    return order


def _permuted(
    x: AnyArray, axes: tuple[ex.Expression, ...], axis: int, group: Group, order: np.ndarray
) -> np.ndarray:
    """A leaf with one axis permuted, by an order of its own for every entry of the batch."""
    if group.batch:
        return np.asarray(take_batched(jnp.asarray(x), axes, group, order, {}, axis))
    index = axis_arrays.indices(axes[axis], {group.name: order})
    return np.take(np.asarray(x), np.asarray(index), axis)
