"""Fixtures of these tests."""

from __future__ import annotations

import jaxtyping
import pytest


@pytest.fixture
def unchecked(monkeypatch):
    """Let wrong arguments reach our own errors, where types are checked at run time too."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
