"""What the user of ``train.py`` can put right, told by the option that it is about."""

import contextlib
from collections.abc import Iterator

from flax.errors import FlaxError


class UserError(Exception):
    """Something the user can put right; told in one line, before anything is written."""


@contextlib.contextmanager
def user_error(option: str) -> Iterator[None]:
    """Turns what a library says about bad input into a :class:`UserError` about an option.

    Args:
        option: what the message begins with.

    Yields:
        Nothing.

    Raises:
        UserError: in place of ValueError, TypeError, ImportError, OSError and flax's errors.

    Example:
        >>> with contextlib.suppress(UserError), user_error("--lr"):
        ...     raise ValueError("must be positive")
    """
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError, FlaxError) as error:
        raise UserError(f"{option}: {error}") from error
