"""Options that nobody gave: they follow from another one, and give way to it when it is replaced.

`dataclasses.replace` hands every field of a value to the new one, and so what `Method` filled in as
if it had been given. These are the number and the name that they say they are, equal to them, with
their hash and their JSON; their type alone says where they come from.
"""

from __future__ import annotations

from typing import TypeVar

Option = TypeVar("Option")


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
