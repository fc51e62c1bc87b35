"""Progress is for terminals."""

from __future__ import annotations

import sys

import pytest

from ifjax.activations.progress import shown_progress


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_is_written_to(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with shown_progress(3, "make", "steps") as done:
        for _ in range(2):
            done()
    found = capsys.readouterr()
    assert not found.out
    assert ("\rmake: 2/3 steps, 0 s\n" in found.err) == terminal
    assert bool(found.err) == terminal


def test_what_takes_little_is_silent(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with shown_progress(1, "make", "steps", after=60) as done:
        done()
    assert not capsys.readouterr().err
