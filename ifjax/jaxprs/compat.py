"""What differs between jax versions in the structure of jaxprs, in one place.

In jax 0.12 ``ClosedJaxpr`` is merged into ``Jaxpr``; 0.10 keeps the two apart. The rest of the
package sees an (open jaxpr, constant variables, constants) triple and binds equations through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.core import AbstractValue
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, gensym
from jax.typing import ArrayLike

AnyJaxpr = Jaxpr | ClosedJaxpr
Atom = Var | Literal
Values = Sequence[ArrayLike]  # arrays, traced or not


def unpack(jaxpr: AnyJaxpr) -> tuple[Jaxpr, list[Var], list[ArrayLike]]:
    """The open jaxpr, its constant variables and their values; an open jaxpr has no constants."""
    consts: list[ArrayLike] = list(getattr(jaxpr, "consts", ()))
    inner: Any = getattr(jaxpr, "jaxpr", jaxpr)
    constvars = list(inner.constvars)
    if consts and not constvars:
        constvars = list(inner.all_invars[: len(consts)])
    return inner, constvars, consts


def with_inner(jaxpr: AnyJaxpr, inner: Jaxpr) -> AnyJaxpr:
    """The jaxpr with other equations: ``inner`` replaces the first of what `unpack` returns."""
    is_open = getattr(jaxpr, "jaxpr", jaxpr) is jaxpr
    return inner if is_open else jaxpr.replace(jaxpr=inner)


def new_variable(aval: AbstractValue) -> Var:
    """A variable that no jaxpr has yet."""
    return gensym()(aval)


def bind(equation: JaxprEqn, values: Values, **changed: object) -> list[jax.Array]:
    """Evaluates one equation on ``values``, with some of its parameters changed."""
    params = equation.primitive.get_bind_params({**equation.params, **changed})
    info = equation.source_info
    stack = source_info_util.current_name_stack() + info.name_stack
    with (
        source_info_util.user_context(info.traceback, name_stack=stack),
        equation.ctx.manager,
    ):
        out = equation.primitive.bind(*values, **params)
    return list(out) if equation.primitive.multiple_results else [out]


def shape_of(atom: Atom) -> tuple[int, ...]:
    """The shape of a variable or literal; of what is no array, none."""
    return tuple(getattr(atom.aval, "shape", ()))


def dtype_of(atom: Atom) -> Any:
    """The dtype of a variable or literal; of what is no array, None."""
    return getattr(atom.aval, "dtype", None)


def struct_of(atom: Atom) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a variable or literal."""
    return jax.ShapeDtypeStruct(shape_of(atom), dtype_of(atom))


def source_line(equation: JaxprEqn) -> str:
    """Where in the user's code the equation comes from, as ``file:line (function)``."""
    return source_info_util.summarize(equation.source_info)


def scan_counts(equation: JaxprEqn) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many are carried."""
    p = equation.params
    if "num_consts" in p:
        return p["num_consts"], p["num_carry"]
    constants, carries, _ = p["ft_in"].unpack()
    return len(constants), len(carries)


def jvp_jaxpr(
    equation: JaxprEqn, zeros: Sequence[bool]
) -> tuple[Jaxpr, list[ArrayLike], list[bool]]:
    """The derivative rule of a ``custom_jvp_call``: jaxpr, its constants, which tangents are zero.

    The jaxpr takes the primal inputs without constants, then the tangents that ``zeros`` does not
    mark as symbolically zero.
    """
    jaxpr, consts, out_zeros = equation.params["jvp_jaxpr_fun"].call_wrapped(*zeros)
    return jaxpr, list(consts), list(out_zeros)
