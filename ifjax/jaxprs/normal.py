"""A function's jaxpr without what says nothing about its result.

Three things stand between what a function computes and what its jaxpr shows:

* equations whose results nothing reads: a mask that was made for its shape alone;
* prints and other callbacks on the side, which look at a value and give nothing back;
* sums over the axis of a `jax.vmap` by its name. They are collectives to jax and sums over an axis
  of the array to us (batch norms of equinox, haiku and flax that take the name of an axis).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import jax
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn
from jax.interpreters import partial_eval

from ifjax.jaxprs import compat
from ifjax.jaxprs.compat import AnyJaxpr
from ifjax.jaxprs.traits import traits_of

REDUCTIONS = {
    "psum": lax.reduce_sum,
    "psum_invariant": lax.reduce_sum,
    "pmax": lax.reduce_max,
    "pmin": lax.reduce_min,
}


def normalised(closed: AnyJaxpr, keep_callbacks: bool = False) -> AnyJaxpr:
    """The same function without dead equations, with sums over named axes as sums.

    Args:
      closed: the jaxpr, with its constants.
      keep_callbacks: leave callbacks in whose results nothing reads.

    Returns:
      A jaxpr of the same inputs, constants and outputs.

    Example:
      >>> import jax.numpy as jnp
      >>> centred = jax.vmap(lambda x: x - jax.lax.pmean(x, "batch"), axis_name="batch")
      >>> found = normalised(jax.make_jaxpr(centred)(jnp.ones((4, 3))))
      >>> [equation.primitive.name for equation in found.eqns]
      ['reduce_sum', 'div', 'broadcast_in_dim', 'sub']
    """
    inner = _rewritten(compat.unpack(closed)[0], keep_callbacks, {})
    used = [True] * len(inner.outvars)
    return compat.with_inner(closed, partial_eval.dce_jaxpr(inner, used, instantiate=True)[0])


def _rewritten(jaxpr: Jaxpr, keep_callbacks: bool, done: dict[int, Jaxpr]) -> Jaxpr:
    """The jaxpr with its equations rewritten, calls included; itself where nothing changes."""
    if id(jaxpr) in done:
        return done[id(jaxpr)]
    read = {id(v) for equation in jaxpr.eqns for v in equation.invars}
    read |= {id(v) for v in jaxpr.outvars}
    equations: list[JaxprEqn] = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "inspect_sharding":  # of arrays that are no longer those
            continue
        if not keep_callbacks and traits_of(equation).kind == "callback":
            if any(id(v) in read for v in equation.outvars):
                equations.append(equation)
            continue
        if equation.primitive.name in REDUCTIONS:
            equations += _reductions(equation)
            continue
        equations.append(_inside(equation, keep_callbacks, done))
    same = len(equations) == len(jaxpr.eqns)
    if not same or not all(map(operator.is_, equations, jaxpr.eqns)):
        effects = set().union(*(equation.effects for equation in equations))
        jaxpr = jaxpr.replace(eqns=equations, effects=effects & {*jaxpr.effects})
    done[id(jaxpr)] = jaxpr
    return jaxpr


def _inside(equation: JaxprEqn, keep_callbacks: bool, done: dict[int, Jaxpr]) -> JaxprEqn:
    """An equation with the jaxprs in its parameters rewritten."""

    def renewed(value: object) -> object:
        if isinstance(value, AnyJaxpr):
            inner = compat.unpack(value)[0]
            new = _rewritten(inner, keep_callbacks, done)
            return value if new is inner else compat.with_inner(value, new)
        if not isinstance(value, tuple | list) or type(value) not in (tuple, list):
            return value
        items = [renewed(v) for v in value]
        return value if all(map(operator.is_, items, value)) else type(value)(items)

    params = {key: renewed(value) for key, value in equation.params.items()}
    if all(map(operator.is_, params.values(), equation.params.values())):
        return equation
    before, after = _effects(equation.params), _effects(params)
    return equation.replace(params=params, effects=equation.effects - (before - after))


def _effects(params: Mapping[str, object]) -> set[object]:
    """The effects of the jaxprs among the parameters of an equation."""
    found = [v for value in params.values() for v in (value if type(value) is tuple else (value,))]
    return set().union(*(compat.unpack(j)[0].effects for j in found if isinstance(j, AnyJaxpr)))


def _reductions(equation: JaxprEqn) -> list[JaxprEqn]:
    """A collective over axes of the array, as reductions over these axes."""
    p = equation.params
    over = tuple(axis for axis in p["axes"] if isinstance(axis, int))
    named = tuple(axis for axis in p["axes"] if not isinstance(axis, int))
    if not over or p.get("axis_index_groups") is not None:
        return [equation]
    function = REDUCTIONS[equation.primitive.name]
    equations = []
    for operand, result in zip(equation.invars, equation.outvars, strict=True):
        struct = compat.struct_of(operand)
        reduce = jax.make_jaxpr(lambda x: function(x, over))(struct).eqns[-1]
        reduced = compat.new_variable(result.aval) if named else result
        equations.append(
            equation.replace(
                primitive=reduce.primitive,
                params=reduce.params,
                invars=[operand],
                outvars=[reduced],
                effects=set(),
            )
        )
        if named:
            params = {**p, "axes": named}
            equations.append(equation.replace(params=params, invars=[reduced], outvars=[result]))
    return equations
