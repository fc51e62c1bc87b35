"""Fixtures of these tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is saved, in their order; nothing is rendered."""
    from matplotlib.figure import Figure

    saved = []

    def savefig(figure, file, **_):
        saved.append(figure)
        file.write_bytes(b"")

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved
