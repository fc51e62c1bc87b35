"""Fixtures of these tests."""

from __future__ import annotations

import jaxtyping
import pytest


@pytest.fixture(scope="module")
def unchecked():
    """Without type checks at run time: wrong arguments reach our own errors, loops run at speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield
