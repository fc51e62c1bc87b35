"""Checks of the records that the pictures are drawn from."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def check_records(records: Sequence[Mapping[str, Any]], fields: Mapping[str, type]) -> None:
    """Raise for records that lack a field, or hold another kind of value there.

    Args:
        records: what is to be drawn.
        fields: the fields of every record; ``float`` stands for a finite number.

    Raises:
        ValueError: naming the record, the field, what was expected and what came.

    Example:
        >>> check_records([{"layer": "a", "divergence": 0.1}], {"layer": str, "divergence": float})
    """
    if not records:
        raise ValueError("expected at least one record, got none")
    for number, record in enumerate(records):
        for field, kind in fields.items():
            value = record.get(field)
            number_is_good = (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and math.isfinite(value)
            )
            if not (number_is_good if kind is float else isinstance(value, kind)):
                wanted = "a finite number" if kind is float else f"a {kind.__name__}"
                raise ValueError(
                    f"expected {wanted} as {field!r} of record {number}, got {value!r}; "
                    f"a record has {', '.join(fields)}"
                )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Leave out the keys that all paths begin and end with; at least one is left of each.

    A name that is alone stays whole.

    Args:
        names: paths, keys joined by slashes.

    Returns:
        The short form of every name.

    Example:
        >>> list(short_names(["params/a/conv/kernel", "params/b/conv/kernel"]).values())
        ['a', 'b']
    """
    paths = [name.split("/") for name in dict.fromkeys(names)]
    shortest = min(map(len, paths)) if len(paths) > 1 else 0
    first = 0
    while first < shortest - 1 and len({path[first] for path in paths}) == 1:
        first += 1
    last = 0
    while last < shortest - first - 1 and len({path[-1 - last] for path in paths}) == 1:
        last += 1
    return {"/".join(path): "/".join(path[first : len(path) - last]) for path in paths}
