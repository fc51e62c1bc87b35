"""Calls: jaxprs inside equations, walked with the axes of their operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from ifjax.jaxprs import compat
from ifjax.jaxprs.compat import Atom, Values
from ifjax.jaxprs.rules.rule import Derive, Resize, Rule
from ifjax.jaxprs.traits import TRAITS
from ifjax.jaxprs.walk import Axes, Context
from ifjax.namespace import Shaped

Run = Callable[..., Values]


def _rule(param: str, wrap: Callable[[JaxprEqn, Run], Run] | None = None) -> Rule:
    """A rule that walks into ``params[param]``; ``wrap`` re-applies a transformation around it."""

    def flow(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
        frame, outputs = context.call(equation.params[param], operands)
        context.note = frame
        return outputs

    def rebuild(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
        def run(*args: ArrayLike) -> Values:
            return resize.call(resize.note, args)

        return wrap(equation, run)(*values) if wrap else run(*values)

    return Rule(flow, rebuild)


def _checkpoint(equation: JaxprEqn, run: Run) -> Run:
    params = equation.params
    return jax.checkpoint(run, policy=params["policy"], prevent_cse=params["prevent_cse"])


def _is_inexact(atom: Atom) -> bool:
    return bool(jnp.issubdtype(compat.dtype_of(atom), jnp.inexact))


def _custom_jvp(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Keeps the custom derivative: its jaxpr is evaluated at the small widths as well."""
    count = equation.params["num_consts"]

    @jax.custom_jvp
    def run(*args: ArrayLike) -> Values:
        return resize.call(resize.note, args)

    @run.defjvp
    def run_jvp(primals: Values, tangents: Values) -> tuple[Values, Values]:
        zeros = [not _is_inexact(v) for v in equation.invars[count:]]
        jaxpr, consts, out_zeros = compat.jvp_jaxpr(equation, zeros)
        moving = [i for i, zero in enumerate(zeros) if not zero]
        args = [*primals[count:], *(tangents[count:][i] for i in moving)]
        axes = list(resize.inputs[count:])
        axes += [axes[i] for i in moving]
        results = [*resize.outputs]
        results += [a for a, zero in zip(resize.outputs, out_zeros, strict=True) if not zero]
        flat, _, _ = resize.derive(jaxpr, consts, axes, results, args)
        outs, rest = flat[: len(out_zeros)], iter(flat[len(out_zeros) :])
        pairs = zip(outs, out_zeros, strict=True)
        return outs, [jnp.zeros_like(out) if zero else next(rest) for out, zero in pairs]

    return run(*values)


def _custom_vjp(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Keeps the custom derivative: both its halves are traced at full width and rewritten.

    Differentiation raises where one of them couples or pins what is cut; the function itself does
    not depend on it.
    """
    moving = [i for i, v in enumerate(equation.invars) if _is_inexact(v)]
    varying = [i for i, v in enumerate(equation.outvars) if _is_inexact(v)]

    def forward_half(*args: ArrayLike) -> tuple[Values, PyTree]:
        def primal(*moved: Array) -> tuple[Values, Values]:
            given = dict(enumerate(args)) | dict(zip(moving, moved, strict=True))
            outs = compat.bind(equation, list(given.values()))
            return [outs[i] for i in varying], outs

        _, pullback, outs = jax.vjp(primal, *(args[i] for i in moving), has_aux=True)
        return outs, pullback

    def rewrite(
        function: Callable[..., PyTree], structs: Sequence[Shaped], derive: Derive, *rest: PyTree
    ) -> tuple[PyTree, Values, list[Axes], Derive]:
        try:
            jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*structs)
            return shapes, *derive(jaxpr, (), *rest)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "no gradient at the widths of the spec: the derivative rule of the custom_vjp "
                f"function at {compat.source_line(equation)} cannot be rewritten ({error}); "
                "differentiate the full function, or leave what it holds uncut"
            ) from error

    @jax.custom_vjp
    def run(*args: ArrayLike) -> Values:
        return resize.call(resize.note, args)

    def forward(*args: ArrayLike) -> tuple[Values, PyTree]:
        structs = list(map(compat.struct_of, equation.invars))
        (outs, pullback), flat, axes, derive = rewrite(
            forward_half, structs, resize.derive, resize.inputs, resize.outputs, args
        )
        residuals, tree = jax.tree.flatten(pullback)
        n, k = len(outs), len(residuals)

        def backward_half(*args: ArrayLike) -> Values:
            return jax.tree.unflatten(tree, args[:k])(list(args[k:]))

        def backward(*args: ArrayLike) -> Values:
            structs = [*residuals, *(outs[i] for i in varying)]
            given = [*axes[n:], *(resize.outputs[i] for i in varying)]
            wanted = [resize.inputs[i] for i in moving]
            return rewrite(backward_half, structs, derive, given, wanted, args)[1]

        return flat[:n], jax.tree_util.Partial(backward, *flat[n:])

    def pull(backward: Callable[..., Values], cotangents: Values) -> tuple[ArrayLike | None, ...]:
        found = dict(zip(moving, backward(*(cotangents[i] for i in varying)), strict=True))
        return tuple(found.get(i) for i in range(len(equation.invars)))

    run.defvjp(forward, pull)
    return run(*values)


def shard_map(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """A sharded axis is devices x shard: the devices are pinned, all shards are cut alike."""
    p, store = equation.params, context.store

    def devices(spec: PartitionSpec, axis: int) -> int:
        names = spec[axis] if axis < len(spec) else None
        names = (names,) if isinstance(names, str) else names or ()
        return math.prod(p["mesh"].shape[name] for name in names)

    def split(node: int, count: int) -> int:
        if count == 1:
            return node
        shard = store.fresh(store.size(node) // count)
        context.unify(node, store.product([*context.pinned([count], "split over devices"), shard]))
        return shard

    def joined(node: int, count: int) -> int:
        return store.product([*context.pinned([count], "split over devices"), node])

    inside = [
        tuple(split(a, devices(spec, i)) for i, a in enumerate(axes))
        for axes, spec in zip(operands, p["in_specs"], strict=True)
    ]
    context.note, outputs = context.call(p["jaxpr"], inside)
    return [
        tuple(joined(a, devices(spec, i)) for i, a in enumerate(axes))
        for axes, spec in zip(outputs, p["out_specs"], strict=True)
    ]


def rebuild_shard_map(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Maps the body at the small widths over the same devices."""
    p = equation.params

    def run(*args: ArrayLike) -> Values:
        return resize.call(resize.note, args)

    mapped = jax.shard_map(
        run,
        mesh=p["mesh"],
        in_specs=tuple(p["in_specs"]),
        out_specs=list(p["out_specs"]),
        axis_names=frozenset(p["newly_manual_axes"]),
        check_vma=p["check_vma"],
    )
    return mapped(*values)


def collective(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Entries of equal position on several devices meet: axes pass on."""
    if any(isinstance(name, int) for name in equation.params.get("axes", ())):
        return context.opaque(operands, "over an axis of the array")
    return operands


def callback(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """A print looks at values of any width; what gives something back is not understood."""
    if equation.outvars:
        for axes in operands:
            context.pin(axes, "a callback whose results are used")
    return [
        context.pinned(compat.shape_of(v), "the result of a callback") for v in equation.outvars
    ]


RULES = {
    **{name: _rule(traits.body) for name, traits in TRAITS.items() if traits.kind == "call"},
    **dict.fromkeys(("remat", "remat2", "checkpoint"), _rule("jaxpr", _checkpoint)),
    "custom_jvp_call": Rule(_rule("call_jaxpr").flow, _custom_jvp),
    "custom_vjp_call": Rule(_rule("call_jaxpr").flow, _custom_vjp),
    "shard_map": Rule(shard_map, rebuild_shard_map),
    **{name: Rule(callback) for name, traits in TRAITS.items() if traits.kind == "callback"},
    **{name: Rule(collective) for name, traits in TRAITS.items() if traits.kind == "collective"},
    **dict.fromkeys(("pvary", "pcast"), Rule(collective)),
}
