"""Values that stand for a choice of a method, and the names and JSON that stand for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


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
