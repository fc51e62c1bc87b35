"""Command lines, by a dataclass with a field of every kind."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from ifjax.experiment.options import option, parse


@dataclasses.dataclass(frozen=True)
class Training:
    """How it is trained."""

    rate: float = option(0.1, "Peak of the learning rate.", "RATE", "--lr")
    epoch_count: int = option(3, "Passes.", "N")
    clip: float | None = option(None, "Longest gradient.", "NORM")
    milestones: tuple[int, ...] = option((), "Epochs.", "EPOCH")
    augment: bool = option(True, "Mirror 50 % of the images.")


@dataclasses.dataclass(frozen=True)
class Rest:
    """The rest."""

    out: Path | None = option(None, "Folder.", "DIR")
    kinds: tuple[Literal["a", "b"], ...] = option(("a", "b"), "Kinds.")
    kind: Literal["one", "two-and-more"] = option("one", "One kind of two, or of some-more. " * 3)
    parts: tuple[float, ...] | None = option(None, "Parts.", "PART")


@dataclasses.dataclass(frozen=True)
class All(Training, Rest):
    r"""Does it, in a line that is longer than any terminal will ever have columns to show it in.

    Like this:

        program --lr 0.5 \
          --parts 0.25
    """


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("--rate 0.5", {"rate": 0.5}),
        ("--lr=2", {"rate": 2.0}),
        ("--lr -0.5", {"rate": -0.5}),
        ("--epoch-count 7", {"epoch_count": 7}),
        ("--epoch_count=7", {"epoch_count": 7}),
        ("--epoch-count -7", {"epoch_count": -7}),
        ("--clip 2", {"clip": 2.0}),
        ("--clip None", {"clip": None}),
        ("--milestones 3 5", {"milestones": (3, 5)}),
        ("--milestones", {"milestones": ()}),
        ("--milestones 3 --milestones 4", {"milestones": (4,)}),
        ("--no-augment", {"augment": False}),
        ("--no_augment --augment", {"augment": True}),
        ("--out a_b/c", {"out": Path("a_b/c")}),
        ("--kinds b a", {"kinds": ("b", "a")}),
        ("--kind two-and-more", {"kind": "two-and-more"}),
        ("--parts 0.25 0.5", {"parts": (0.25, 0.5)}),
        ("--parts None", {"parts": None}),
    ],
)
def test_words_become_values(words: str, expected: dict[str, object]) -> None:
    assert parse(All, "program", words.split()) == dataclasses.replace(All(), **expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epoch-count many", "argument --epoch-count: invalid int value: 'many'"),
        ("--lr", "argument --rate/--lr: expected one argument"),
        ("--kind three", "argument --kind: invalid choice: 'three'"),
        ("--kinds a c", "argument --kinds: invalid choice: 'c'"),
        ("--epoch 3", "unrecognized arguments: --epoch 3"),
        ("word", "unrecognized arguments: word"),
    ],
)
def test_what_is_wrong_is_told(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(All, "program", words.split())
    assert stop.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "usage: program [OPTION ...]"
    assert second.startswith(f"program: error: {message}")


def test_the_help_has_a_section_per_base_class(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "62")
    with pytest.raises(SystemExit) as stop:
        parse(All, "program", ["--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == HELP


HELP = """\
usage: program [OPTION ...]

Does it, in a line that is longer than any terminal will
ever have columns to show it in.

Like this:

    program --lr 0.5 \\
      --parts 0.25

how it is trained:
  --rate, --lr RATE       Peak of the learning rate.
                          (default: 0.1)
  --epoch-count N         Passes. (default: 3)
  --clip NORM             Longest gradient.
  --milestones [EPOCH ...]
                          Epochs.
  --augment, --no-augment
                          Mirror 50 % of the images.
                          (default: --augment)

the rest:
  --out DIR               Folder.
  --kinds [{a,b} ...]     Kinds. (default: a b)
  --kind {one,two-and-more}
                          One kind of two, or of some-more.
                          One kind of two, or of some-more.
                          One kind of two, or of some-more.
                          (default: one)
  --parts [PART ...]      Parts.

help:
  -h, --help              Show this, and exit.
"""
