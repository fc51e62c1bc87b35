"""Progress on a terminal, and in a log."""

from __future__ import annotations

import io
import sys

import pytest

from ifjax.data.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_one_line_at_the_end(capsys):
    with progress(300, "train", "steps") as bar:
        for _ in range(300):
            bar.update()
            bar.set_postfix(loss="0.1250")
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == "train: 300/300 steps in 00:00, loss=0.1250\n"


def test_a_terminal_gets_a_bar_that_moves(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(300, "train", "steps") as bar:
        shown = terminal.getvalue()
        assert "0/300" in shown
        bar.update(100)
        bar.refresh()
        assert "100/300" in terminal.getvalue()
    assert terminal.getvalue().count("\r") >= 3


def test_a_loop_that_breaks_off_says_how_far_it_came(capsys):
    def job() -> None:
        with progress(10, "train", "steps", done=2) as bar:
            bar.update(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job()
    assert capsys.readouterr().err == "train: 5/10 steps in 00:00\n"


def test_what_was_done_before_is_not_told_again(capsys):
    with progress(10, "train", "steps", done=10):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_nothing_is_written_where_it_is_not_wanted(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(10, "train", "steps", shown=False) as bar:
        bar.update(10)
    assert stream.getvalue() == ""


def test_missing_tqdm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with (
        pytest.raises(ImportError, match=r"package tqdm .*pip install 'ifjax\[data\]'"),
        progress(10, "train", "steps"),
    ):
        pass
