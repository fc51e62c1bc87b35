"""What an option of a spec may be: a name, a value, a number; and how JSON writes it.

A value of a registered class has a name. A number of numpy or jax is one of Python, which is
hashable and which JSON can write.

An option that nobody gave follows from another one, and gives way to it when that is replaced.
`dataclasses.replace` hands every field of a value to the new one, and so what `Method` filled in as
if it had been given: these are a `DerivedNumber` and a `DerivedName`, equal to the number and the
name that they say they are, with their hash and their JSON; their type alone says where they come
from.
"""

from __future__ import annotations

import dataclasses
import difflib
import numbers
from collections.abc import Iterable, Mapping
from typing import TypeAlias, TypeGuard, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

Option = TypeVar("Option")

# Of Python, numpy or jax.
Number: TypeAlias = int | float | np.generic | np.ndarray | Array


def plain_name(value: object, registry: Mapping[str, type], apart: str = "") -> str | None:
    """The name that says all of a value: that of its class, where its options are the defaults.

    Args:
      value: of a class that may be registered.
      registry: classes by name.
      apart: an option that is said otherwise.

    Example:
      >>> from ifjax.importance import IMPORTANCES, L1, Random
      >>> plain_name(L1(), IMPORTANCES), plain_name(Random(seed=1), IMPORTANCES)
      ('l1', None)
    """
    for name, known in registry.items():
        if type(value) is known and dataclasses.is_dataclass(known):
            options = {f.name: f.default for f in dataclasses.fields(known) if f.name != apart}
            if all(getattr(value, key) == default for key, default in options.items()):
                return name
    return None


def check_hashable(option: str, value: object) -> None:
    """Raises TypeError for a value that a spec, which is hashable, cannot hold."""
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"{option}: expected a hashable value, got {value!r}; make its class a frozen "
            "dataclass whose options are hashable"
        ) from error


def to_json(
    option: str, value: object, registry: Mapping[str, type], where: str
) -> str | dict[str, object]:
    """What JSON can say of a choice: a name, or a name and options.

    Args:
      option: what it is a choice of.
      value: a name or a value.
      registry: classes by name.
      where: the registry is found.

    Raises:
      ValueError: for a value of a class that has no name.

    Example:
      >>> from ifjax.importance import IMPORTANCES, Random
      >>> to_json("importance", Random(seed=1), IMPORTANCES, "ifjax.importance.IMPORTANCES")
      {'name': 'random', 'options': {'seed': 1}}
    """
    if isinstance(value, str):
        return value
    for name, known in registry.items():
        if type(value) is known and dataclasses.is_dataclass(value):
            options = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            for key, v in options.items():
                if not _is_plain(v):
                    raise ValueError(
                        f"{option}: {value!r} cannot be written as JSON; expected its option {key} "
                        "to be a number, a string, a boolean, None, or a tuple of them"
                    )
            return {"name": name, "options": options}
    own = type(value).__name__
    raise ValueError(
        f"{option}: {value!r} cannot be written as JSON, since {own} has no name there; give it "
        f"one, here and wherever the text is read: {where}[{own.lower()!r}] = {own}, a frozen "
        "dataclass"
    )


def from_json(option: str, value: object, registry: Mapping[str, type]) -> object:
    """Inverse of `to_json`.

    Raises:
      ValueError: for a name that is not registered, or what is neither a name nor a value.
    """
    if not isinstance(value, dict):
        return value
    if {*value} != {"name", "options"} or not isinstance(value["options"], dict):
        raise ValueError(
            f"{option}: expected a name, or an object of a name and of options by name; got {value}"
        )
    if value["name"] not in registry:
        raise ValueError(
            f"{option}: no class is registered as {value['name']!r}; known: {', '.join(registry)}"
        )
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in value["options"].items()}
    return registry[value["name"]](**options)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | int | float)


class DerivedNumber(float):
    """A number that follows from another option.

    >>> DerivedNumber(0.01) == 0.01, DerivedNumber(0.01)
    (True, 0.01)
    """

    __slots__ = ()


class DerivedName(str):
    """A name that follows from another option.

    >>> DerivedName("kmeans") == "kmeans", DerivedName("kmeans")
    (True, 'kmeans')
    """

    __slots__ = ()


def given(option: Option) -> Option | None:
    """An option that was given; None for one that follows from another.

    >>> given(0.01), given(DerivedNumber(0.01))
    (0.01, None)
    """
    return None if isinstance(option, DerivedNumber | DerivedName) else option


def plain_number(value: object) -> object:
    """A number of numpy or jax as one of Python: the shortest one that it is the rounding of.

    Everything else, also a tracer, is itself.

    >>> plain_number(np.float32(0.1)), plain_number(np.int64(3)), plain_number("a")
    (0.1, 3, 'a')
    """
    if isinstance(value, Tracer) or getattr(value, "shape", None) != ():
        return value
    number = np.asarray(value)[()]
    return float(str(number)) if jnp.issubdtype(number.dtype, jnp.floating) else number.item()


def is_real(value: object) -> TypeGuard[float]:
    """Whether a value is a real number of Python; True and False are none.

    >>> is_real(2), is_real(True), is_real("2"), is_real(None)
    (True, False, False, False)
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def nearest_first(name: object, known: Iterable[str]) -> list[str]:
    """All known names, those that are much like a given one first.

    Args:
      name: what was given.
      known: the names that there are.

    Returns:
      Every one of them, in the order given but for those that are much like the name.

    Example:
      >>> nearest_first("soler", ["epsilon", "merge", "solver"])
      ['solver', 'epsilon', 'merge']
    """
    names = list(known)
    given = name.lower() if isinstance(name, str) else ""
    close = difflib.get_close_matches(given, names, len(names) or 1)
    return [*close, *(x for x in names if x not in close)]
