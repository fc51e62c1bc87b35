"""Type checks at run time, of jaxtyping and beartype, at the price of what they check.

jaxtyping binds and checks every call twice, so that the sizes of arrays agree in between. Only
functions whose annotations name sizes need that: of the others beartype alone says the same. Inner
functions that name none are left to the static checker: they are made at every call.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping
import jaxtyping._decorator

_CHECKED: dict[Any, Callable[..., Any]] = {}
_SIZED: dict[types.CodeType, bool] = {}  # inner functions
_jaxtyped = jaxtyping.jaxtyped
_beartype = beartype.beartype(conf=beartype.BeartypeConf(violation_type=TypeError))


def checked(stub: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype.beartype` of what jaxtyping gives it: a signature without a body.

    Once per signature: inner functions are made, and would be wrapped, at every call.
    """
    optional = (len(stub.__defaults__ or ()), *(stub.__kwdefaults__ or ()))
    # Each evaluation of an annotation makes new classes, of the same representation.
    annotations = repr(stub.__annotations__)
    key = (stub.__module__, stub.__qualname__, stub.__code__, optional, annotations)
    if key not in _CHECKED:
        _CHECKED[key] = beartype.beartype(stub)
    return _CHECKED[key]


def install() -> None:
    """Makes jaxtyping's import hook leave to beartype what names no sizes."""
    jaxtyping.jaxtyped = jaxtyping._decorator.jaxtyped = jaxtyped


def jaxtyped(fn: Any = None, *, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped`, for functions of which it checks more than beartype does."""
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if not isinstance(fn, types.FunctionType):
        return _jaxtyped(fn, typechecker=typechecker)
    if not fn.__annotations__:
        return fn
    if "<locals>" in fn.__qualname__:
        if fn.__code__ not in _SIZED:
            _SIZED[fn.__code__] = _is_sized(_hints(fn))
        return _jaxtyped(fn, typechecker=typechecker) if _SIZED[fn.__code__] else fn
    hints = _hints(fn)
    return _jaxtyped(fn, typechecker=typechecker) if _is_sized(hints) else _plain(fn, hints)


def _hints(fn: types.FunctionType) -> dict[str, Any] | None:
    try:
        return typing.get_type_hints(fn, include_extras=True)
    except Exception:  # names that only type checkers see
        return None


def _is_sized(hints: dict[str, Any] | None) -> bool:
    return hints is None or any(map(_names_sizes, hints.values()))


def _names_sizes(hint: Any) -> bool:
    """Whether an annotation holds an array's, or a tree of such."""
    if inspect.isclass(hint) and hint.__module__.startswith("jaxtyping"):
        return hint is not jaxtyping.PyTree
    return any(map(_names_sizes, typing.get_args(hint)))


def _plain(fn: types.FunctionType, hints: dict[str, Any] | None) -> Callable[..., Any]:
    copy = types.FunctionType(
        fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__
    )
    functools.update_wrapper(copy, fn)
    del copy.__wrapped__
    copy.__kwdefaults__, copy.__annotations__ = fn.__kwdefaults__, hints
    check = _beartype(copy)

    @functools.wraps(fn)
    def called(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return (fn if jaxtyping.config.jaxtyping_disable else check)(*args, **kwargs)

    return called
