"""Square matrices that lie spread over a mesh: where they lie, and what solves with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy import linalg
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from ifjax.namespace import AnyArray
from ifjax.parallel.hosts import put
from ifjax.tree import is_concrete

TIMES = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
PANEL = 256  # columns that are swept at once


def mesh_of(*arrays: object) -> Mesh | None:
    """The mesh of several devices on which one of the arrays lies; None for others, and in jit."""
    for x in arrays:
        if not isinstance(x, (jax.Array, jax.ShapeDtypeStruct)) or not is_concrete(x):
            continue
        place = getattr(x, "sharding", None)
        mesh = place.mesh if isinstance(place, NamedSharding) else None
        if isinstance(mesh, Mesh) and mesh.size > 1 and {*mesh.axis_types} == {AxisType.Auto}:
            return mesh
    return None


def spread(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Where matrices ``[..., rows, columns]`` lie: over all axes of the mesh that divide them.

    The axes go to the rows and the columns by turns, from the last one on.

    >>> devices = jax.devices()[:1]
    >>> mesh = jax.make_mesh((1, 1), ("data", "model"), devices=devices)
    >>> spread(mesh, (1, 8, 6)).shard_shape((1, 8, 6))
    (1, 8, 6)
    """
    return NamedSharding(mesh, P(*[None] * (len(shape) - 2), *_axes(mesh, shape)))


def _axes(mesh: Mesh, shape: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The mesh axes over which rows are split, and those over which columns are."""
    names: list[tuple[str, ...]] = [(), ()]
    left = list(shape[-2:])
    for name in reversed(mesh.axis_names):
        sides = sorted((0, 1), key=lambda side: (len(names[side]), side))
        side = next((i for i in sides if left[i] % mesh.shape[name] == 0), None)
        if side is not None:
            names[side] = (name, *names[side])
            left[side] //= mesh.shape[name]
    return names[0], names[1]


def placed(x: AnyArray, mesh: Mesh | None) -> Array:
    """Matrices where `spread` says; without a mesh where they are, or on the default device."""
    if mesh is None:
        return jnp.asarray(x)
    if isinstance(x, jax.Array) and not is_concrete(x):
        return lax.with_sharding_constraint(x, spread(mesh, x.shape))
    return put(x, spread(mesh, x.shape))


def solver(
    matrices: Float[Array, "B n n"], mesh: Mesh | None
) -> Callable[[Float[Array, "B n o"]], Float[Array, "B n o"]]:
    """What multiplies by the inverses of positive definite matrices.

    On a mesh by `inverse`, for what is factored lies whole on every device there.

    Args:
      matrices: the matrices, in jit.
      mesh: over which they are spread, or None.

    Returns:
      A function of the right sides; what it gives is not finite where a matrix is not positive
      definite.

    Example:
      >>> solver(jnp.diag(jnp.array([1.0, 4.0]))[None], None)(jnp.ones((1, 2, 1)))[0, :, 0].tolist()
      [1.0, 0.25]
    """
    if mesh is None:
        factors = jax.vmap(lambda x: linalg.cho_factor(x)[0])(matrices)
        one = jax.vmap(lambda factor, right: linalg.cho_solve((factor, False), right))
        return lambda right: one(factors, right)
    found = inverse(matrices, mesh)
    return lambda right: placed(TIMES("bkl,blo->bko", found, right), mesh)


def inverse(matrices: Float[Array, "B n n"], mesh: Mesh | None) -> Float[Array, "B n n"]:
    r"""The inverses of positive definite matrices, spread as these are.

    They are swept, a panel k of columns after the other: with :math:`P = A_{kk}^{-1}`

    .. math::
        A_{ij} \leftarrow A_{ij} - A_{ik} P A_{kj}, \quad A_{ik} \leftarrow A_{ik} P, \quad
        A_{kk} \leftarrow -P,

    which makes :math:`-A^{-1}` of A. Beside its part of A a device holds a panel.

    Args:
      matrices: the matrices, in jit.
      mesh: over which they are spread; None to solve for the inverses on one device.

    Returns:
      The inverses; not finite where a matrix is not positive definite.

    References:
      Goodnight, `A tutorial on the SWEEP operator <https://doi.org/10.2307/2683825>`_, 1979.

    Example:
      >>> inverse(jnp.array([[[1.0, 0.0], [0.0, 4.0]]]), None)[0].tolist()
      [[1.0, 0.0], [0.0, 0.25]]
    """
    if mesh is None:
        identity = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)
        return jax.vmap(lambda x: linalg.cho_solve(linalg.cho_factor(x), identity))(matrices)
    spec = spread(mesh, matrices.shape).spec
    rows, columns = _axes(mesh, matrices.shape)
    local = functools.partial(_swept, n=matrices.shape[-1], rows=rows, columns=columns)
    run = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return -run(placed(matrices, mesh))


def _swept(
    part: Float[Array, "B r c"], n: int, rows: tuple[str, ...], columns: tuple[str, ...]
) -> Float[Array, "B r c"]:
    """A device's part of the matrices, all panels swept."""
    width = min(PANEL, n)
    identity = jnp.eye(width, dtype=part.dtype)
    own_rows = _first(rows, part.shape[1]) + jnp.arange(part.shape[1])
    own_columns = _first(columns, part.shape[2]) + jnp.arange(part.shape[2])

    def step(k: Array, part: Array) -> Array:
        at = k * width + jnp.arange(width)
        left = _taken(part, at - own_columns[0], columns)
        panel = lax.all_gather(left, rows, axis=1, tiled=True) if rows else left
        inside = at < n  # the last panel may be narrower
        block = jnp.where(inside[:, None] & inside, panel[:, at.clip(0, n - 1)], identity)
        inner = inverse(block, None)
        top = TIMES("bkl,bcl->bkc", inner, panel[:, own_columns])
        part = part - TIMES("brk,bkc->brc", left, top)
        left = TIMES("brk,bkl->brl", left, inner)
        r, c = own_rows - k * width, own_columns - k * width
        is_r, is_c = ((r >= 0) & (r < width))[:, None], (c >= 0) & (c < width)
        r, c = r.clip(0, width - 1), c.clip(0, width - 1)
        part = jnp.where(is_r, top[:, r], jnp.where(is_c, left[:, :, c], part))
        return jnp.where(is_r & is_c, -inner[:, r[:, None], c], part)

    return lax.fori_loop(0, -(-n // width), step, part)


def _first(names: tuple[str, ...], size: int) -> Array | int:
    """The number of the first row or column of a device."""
    return lax.axis_index(names) * size if names else 0


def _taken(part: Array, at: Array, names: tuple[str, ...]) -> Array:
    """Columns of matrices whose columns are split over devices; zero those that are on none."""
    size = part.shape[2]
    found = jnp.where((at >= 0) & (at < size), part[:, :, at.clip(0, size - 1)], 0)
    return lax.psum(found, names) if names else found
