"""Where the initial state of an optimizer holds the parameters themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, Var
from jaxtyping import PyTree

from ifjax.jaxprs.compat import AnyJaxpr, Atom, unpack

_COPIES = frozenset(("copy", "convert_element_type", "device_put", "stop_gradient"))
_CALLS = frozenset(("jit", "pjit"))
_WANTS_NUMBERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def shapes_and_copies(
    init: Callable[[PyTree], PyTree], params: PyTree
) -> tuple[PyTree, list[bool]]:
    """The shapes of an initial state, and which of its leaves are leaves of the parameters.

    Read from the equations of ``init``: no array is made. Only where one computes something of a
    parameter's shape from the parameters (``p + 0``, ``0 * p``), or where it wants numbers, is it
    tried on random ones.

    Args:
      init: of an optimizer.
      params: the tree that it is for; only shapes and dtypes are read.

    Returns:
      The state with `jax.ShapeDtypeStruct` for its arrays, and for each of its leaves whether it is
      one of the parameters, up to its dtype.

    Example:
      >>> state, copies = shapes_and_copies(lambda p: (p, 0 * p, jnp.ones(3)), jnp.ones(2))
      >>> state[2].shape, copies
      ((3,), [True, False, False])
    """
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    try:
        state, copies = _traced(init, structs)
    except _WANTS_NUMBERS:
        return _tried(init, params)
    shapes = {x.shape for x in jax.tree.leaves(structs)}
    leaves = jax.tree.leaves(state)
    computed = any(c is None and x.shape in shapes for x, c in zip(leaves, copies, strict=True))
    tried = _tried(init, params)[1] if computed else [False] * len(leaves)
    return state, [t if c is None else c for c, t in zip(copies, tried, strict=True)]


def _traced(init: Callable[[PyTree], PyTree], structs: PyTree) -> tuple[PyTree, list[bool | None]]:
    """The state's shapes; of its leaves as `_copies_of_inputs`, False for what is no array."""
    found: list[tuple[list[PyTree], PyTree]] = []

    def arrays_of(tree: PyTree) -> list[jax.Array]:
        leaves, treedef = jax.tree.flatten(init(tree))
        found.append(([None if _is_array(x) else x for x in leaves], treedef))
        return [x for x in leaves if _is_array(x)]

    jaxpr, shapes = jax.make_jaxpr(arrays_of, return_shape=True)(structs)
    others, treedef = found[-1]
    count = len(jax.tree.leaves(structs))
    arrays = iter(zip(shapes, _copies_of_inputs(jaxpr, [True] * count), strict=True))
    pairs = [next(arrays) if x is None else (x, False) for x in others]
    return jax.tree.unflatten(treedef, [x for x, _ in pairs]), [c for _, c in pairs]


def _is_array(x: object) -> bool:
    return hasattr(x, "dtype")


def _copies_of_inputs(jaxpr: AnyJaxpr, given: list[bool | None]) -> list[bool | None]:
    """Of every output: True for a copy of an input, False for what needs none, None for the rest.

    Args:
      jaxpr: what is read.
      given: the same of its inputs.

    Returns:
      One for each output.
    """
    inner, constants, _ = unpack(jaxpr)
    inputs = [v for v in inner.invars if v not in constants]
    known: dict[Var, bool | None] = dict.fromkeys(constants, False)
    known |= dict(zip(inputs, given, strict=True))

    def of(atom: Atom) -> bool | None:
        return False if isinstance(atom, Literal) else known[atom]

    for equation in inner.eqns:
        came = [of(atom) for atom in equation.invars]
        name = equation.primitive.name
        out: list[bool | None] = [None] * len(equation.outvars)
        if name in _CALLS:
            out = _copies_of_inputs(equation.params["jaxpr"], came)
        elif name in _COPIES:
            out = came
        elif all(x is False for x in came):
            out = [False] * len(equation.outvars)
        known |= dict(zip(equation.outvars, out, strict=True))
    return [of(atom) for atom in inner.outvars]


def _tried(init: Callable[[PyTree], PyTree], params: PyTree) -> tuple[PyTree, list[bool]]:
    """`shapes_and_copies` by random numbers: where these come back there are parameters."""
    rng = np.random.default_rng(0)

    def drawn(x: PyTree) -> PyTree:
        if not _is_inexact(x):
            return x
        return jnp.asarray(rng.standard_normal(x.shape, np.float32)).astype(x.dtype)

    with jax.ensure_compile_time_eval():
        tree = jax.tree.map(drawn, params)
        state = init(tree)
        known = [np.asarray(x) for x in jax.tree.leaves(tree) if _is_inexact(x)]
        leaves = jax.tree.leaves(state)
        copies = [_is_inexact(x) and _is_one_of(np.asarray(x), known) for x in leaves]
    return state, copies


def _is_inexact(x: PyTree) -> bool:
    return _is_array(x) and bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _is_one_of(x: np.ndarray, leaves: Iterable[np.ndarray]) -> bool:
    """Whether an array is one of some, up to the rounding to its dtype."""
    same = (y for y in leaves if y.shape == x.shape)
    return any(np.array_equal(x, np.asarray(y).astype(x.dtype)) for y in same)
