"""Names that a user may have meant, the likeliest first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
