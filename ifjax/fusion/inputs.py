"""What a user gives besides the parameters, checked; and whether the solvers converged."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ifjax.activations.statistics import RANKS, Stats
from ifjax.namespace import AnyArray, Arrays, fixed, namespace, wide
from ifjax.parallel.hosts import is_apart
from ifjax.spec.method import Method
from ifjax.structure.names import by_group, known_group
from ifjax.structure.structure import BatchNorm, Group, Structure
from ifjax.transport.transport import Transport
from ifjax.tree import is_concrete, leaves_by_path, numbers_of

Scores = Mapping[str, ArrayLike]


def checked_scores(scores: Scores | None, structure: Structure) -> dict[str, AnyArray]:
    """Scores ``[*batch, n]``, finite and at least float32; no gradient flows into them."""
    if not isinstance(scores, Mapping | None):
        raise TypeError(f"expected scores by group name, got {type(scores).__name__}")
    result = {}
    for name, value in by_group(structure, scores or {}).items():
        group = structure.group[name]
        finite = not is_concrete(value) or _is_finite(value)
        value = _array(value)
        if jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise ValueError(f"scores of group {name}: expected real numbers, got {value.dtype}")
        shape = (*group.batch, group.size)
        if value.shape not in (shape, (group.size,)):
            raise ValueError(f"scores of group {name}: expected shape {shape}, got {value.shape}")
        if not finite:
            raise ValueError(f"scores of group {name}: expected finite numbers, got NaN or inf")
        value = value.astype(wide(value))
        result[name] = fixed(namespace(value).broadcast_to(value, shape))
    return result


def checked_init(
    init: Mapping[str, Transport] | None, structure: Structure
) -> dict[str, Transport] | None:
    """Earlier transports by group; those of groups that are not cut are not read."""
    if init is None:
        return None
    if not isinstance(init, Mapping):
        raise TypeError(f"expected init by group name, got {type(init).__name__}")
    found = by_group(structure, init)
    for name, transport in found.items():
        _check_transport(transport, f"init of group {name}")
    return found


def checked_stats(
    stats: Stats | None, structure: Structure, method: Method, scores: Collection[str]
) -> Stats | None:
    """What the method's importance needs of the statistics, for the groups without scores.

    Gradients by path of the kernels, everything at least float32; None where it needs nothing.
    """
    field = method.importance_value.statistic
    groups = [g for g in structure.in_order() if g.name not in scores]
    if field is None or not groups:
        return None
    if not isinstance(stats, Stats | None):
        raise TypeError(
            f"expected stats to be ifjax.Stats, got {type(stats).__name__}; gradients of your own "
            "go in as ifjax.Stats(gradients=grads)"
        )
    found = None if stats is None else getattr(stats, field)
    if stats is None or found is None:
        own = " or stats=ifjax.Stats(gradients=grads)" if field == "gradients" else ""
        loss = "" if field == "chip" else ", loss_fn=loss_fn"
        raise ValueError(
            f"importance {method.importance!r} needs {field} of the network on data, and the "
            f"statistics hold none: pass stats=ifjax.collect_stats(apply_fn, params, spec, "
            f"batches{loss}){own}"
        )
    if is_concrete(stats.count) and not float(stats.count) > 0:
        raise ValueError(f"expected statistics of at least one example, got count {stats.count}")
    wanted: dict[str, tuple[tuple[int, ...], ...]]
    if field == "gradients":
        found = leaves_by_path(found)
        kernels = _kernels_with_gradients(groups, found, structure, method)
        wanted = {path: (structure.leaf[path].shape,) for path in kernels}
        hint = 'a tree like the parameters, for flax.linen {"params": grads}'
    else:
        found = dict(found)
        wanted = {
            g.name: tuple((*g.batch, *(g.size,) * rank) for rank in RANKS[field]) for g in groups
        }
        hint = "statistics collected for this spec"
    result = {}
    for name, shapes in wanted.items():
        got = jnp.shape(found[name]) if name in found else "none"
        if got not in shapes:
            raise ValueError(
                f"{field} of {name}: expected shape {' or '.join(map(str, shapes))}, got {got}; "
                f"stats.{field} must be {hint}"
            )
        if is_concrete(found[name]) and not _is_finite(found[name]):
            raise ValueError(f"{field} of {name}: expected finite numbers, got NaN or inf")
        value = _array(found[name])
        result[name] = fixed(value.astype(wide(value)))
    return Stats(**{field: result}, count=stats.count)


def _is_finite(x: ArrayLike) -> bool:
    """Whether all numbers are; of arrays on devices of several processes these see to it."""
    return bool((jnp if is_apart(x) else np).isfinite(x).all())


def _array(x: ArrayLike) -> AnyArray:
    """An array; of numpy where it can be looked at, and is no array of jax."""
    return x if isinstance(x, jax.Array) else np.asarray(x)


def _kernels_with_gradients(
    groups: Sequence[Group], found: dict[str, AnyArray], structure: Structure, method: Method
) -> list[str]:
    """The kernels of some groups; those without gradients get zeros, where others have some.

    Adapters alone (LoRA) score the neurons that they lead to: a frozen kernel adds nothing.
    """
    paths = [[m.path for m in group.kernels] for group in groups]
    zeros: dict[str, AnyArray] = {}
    for group, kernels in zip(groups, paths, strict=True):
        producers = [m.path for m in group.members if m.role == "producer"]
        first = (producers or kernels)[0] if method.reduction == "first" else None
        lacking = [path for path in kernels if path not in found]
        if lacking and (len(lacking) == len(kernels) or first in lacking):
            why = " (reduction='first' reads this one alone)" if first in lacking else ""
            raise ValueError(
                f"gradients of {first or lacking[0]}: expected shape "
                f"{structure.leaf[first or lacking[0]].shape}, got none{why}; group {group.name} "
                f"needs gradients of at least one of {', '.join(dict.fromkeys(kernels))}: "
                'stats.gradients must be a tree like the parameters, for flax.linen {"params": '
                "grads}, where leaves may be missing"
            )
        zeros |= {path: jnp.zeros(structure.leaf[path].shape) for path in lacking}
    found.update(zeros)
    return list(dict.fromkeys(path for kernels in paths for path in kernels))


def checked_indices(structure: Structure, name: str, given: object) -> AnyArray:
    """Integers in the range of a known group, ``[k]`` or ``[*batch, k]``."""
    group = known_group(structure, name)
    n, batch = group.size, group.batch
    index: AnyArray = np.asarray(given) if is_concrete(given) else given
    shaped = index.ndim == 1 or (index.ndim == 1 + len(batch) and index.shape[:-1] == batch)
    if not shaped or index.size == 0 or not jnp.issubdtype(index.dtype, jnp.integer):
        each = f", or {(*batch, 'k')} of them" if batch else ""
        raise ValueError(
            f"group {name}: expected a vector of at least one integer index{each}, got "
            f"{index.dtype} of shape {index.shape}"
        )
    if is_concrete(index) and not ((index >= 0) & (index < n)).all():
        raise ValueError(f"group {name}: expected indices in [0, {n}), got {index.tolist()}")
    return index


def checked_maps(maps: Mapping[str, Transport], structure: Structure) -> dict[str, Transport]:
    """Transports by group; ValueError unless every group that is cut has a map of its shape."""
    maps = by_group(structure, maps)
    for name, found in maps.items():
        _check_transport(found, f"group {name}")
    for name, kept in structure.widths.items():
        shape = (*structure.group[name].batch, structure.group[name].size, kept)
        if name not in maps or maps[name].map.shape != shape:
            got = maps[name].map.shape if name in maps else "none"
            raise ValueError(f"group {name}: expected a transport map of shape {shape}, got {got}")
    return maps


def _check_transport(found: object, where: str) -> None:
    if not isinstance(found, Transport):
        raise TypeError(
            f"{where}: expected an ifjax.Transport, as ifjax.transport_maps gives it, got "
            f"{type(found).__name__}"
        )


def warn_of_unsettled(leaves: Arrays, norms: Sequence[BatchNorm]) -> None:
    """Warns where running statistics are still those that a network begins with.

    Of every batch norm that is folded: all means zero, and all variances one, or zero. No data has
    been seen in train mode since, or what it left was not kept; the fold then divides by spreads
    that the network has not. Not seen inside of jit.
    """
    vectors = {path: leaves[path] for norm in norms for path in (norm.mean, norm.variance)}
    least, most = numbers_of(vectors, _least), numbers_of(vectors, _most)
    first = [
        norm
        for norm in norms
        if least.get(norm.mean) == most.get(norm.mean) == 0
        and least.get(norm.variance) == most.get(norm.variance)
        and most[norm.variance] in (0, 1)
    ]
    if first:
        warnings.warn(
            f"the running statistics of {len(first)} of {len(norms)} batch norms, first "
            f"{first[0].mean}, are those that a network begins with, means 0 and variances "
            f"{most[first[0].variance]:g}: they have not settled. Train first, or find them by "
            "ifjax.reset_statistics(apply_fn, params, batches)",
            stacklevel=5,
        )


def _least(numpy: ModuleType, x: AnyArray) -> np.generic | AnyArray:
    return numpy.min(x)


def _most(numpy: ModuleType, x: AnyArray) -> np.generic | AnyArray:
    return numpy.max(x)


def check_converged(maps: Mapping[str, Transport], method: Method) -> None:
    """Raises where a solver has not converged, outside of jit."""
    if not all(is_concrete(*found) for found in maps.values()):
        return
    failed = [name for name, found in maps.items() if not np.all(found.converged)]
    if failed:
        found = maps[failed[0]]
        raise RuntimeError(
            f"solver {method.solver!r} did not converge for {len(failed)} of {len(maps)} groups, "
            f"first {failed[0]}: marginal error {float(np.max(found.marginal_error)):.2g} after "
            f"{int(np.max(found.iterations))} iterations at epsilon {method.epsilon}; use a larger "
            "epsilon, or solver='exact'"
        )
