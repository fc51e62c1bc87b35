"""beartype, once per signature: inner functions are made, and would be wrapped, at every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import beartype

_CHECKED: dict[Any, Callable[..., Any]] = {}


def checked(stub: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype.beartype` of what jaxtyping gives it: a signature without a body."""
    optional = (len(stub.__defaults__ or ()), *(stub.__kwdefaults__ or ()))
    # Each evaluation of an annotation makes new classes, of the same representation.
    annotations = repr(stub.__annotations__)
    key = (stub.__module__, stub.__qualname__, stub.__code__, optional, annotations)
    if key not in _CHECKED:
        _CHECKED[key] = beartype.beartype(stub)
    return _CHECKED[key]
