"""What the user can put right."""

import contextlib

import pytest

from ifjax.experiment.errors import UserError, user_error


@pytest.mark.parametrize("error", [ValueError, TypeError, ImportError, OSError])
def test_what_a_library_says_is_put_to_an_option(error: type[Exception]) -> None:
    with pytest.raises(UserError, match="--lr: too much"), user_error("--lr"):
        raise error("too much")


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(KeyError), user_error("--lr"):
        raise KeyError("a defect")
    with contextlib.nullcontext(), user_error("--lr"):
        pass
