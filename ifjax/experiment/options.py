"""A frozen dataclass as a command line: an option per field, in sections, one per base class."""

import argparse
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

T = TypeVar("T")
Options = TypeVar("Options")

WIDEST = 100
"""Columns of the help, on a terminal that has so many."""

_SPACE = "\N{NO-BREAK SPACE}"  # lines are not broken there


def option(default: T, text: str, metavar: str | None = None, short: str | None = None) -> T:
    """A field of a dataclass of options.

    Args:
        default: its value where the command line does not name it.
        text: what it is, for the help.
        metavar: stands for the value there; by default the values that it may have.
        short: another name of the option.

    Returns:
        What ``dataclasses.field`` returns, under the type of the default.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Training:
        ...     rate: float = option(0.1, "Peak learning rate.", "RATE", "--lr")
        >>> Training().rate
        0.1
    """
    metadata = {"text": text, "metavar": metavar, "short": short}
    return dataclasses.field(default=default, metadata=metadata)  # type: ignore[return-value]


def parse(options: type[Options], program: str, arguments: Sequence[str]) -> Options:
    """Reads a command line; one that is wrong, or asks for help, ends the process.

    Args:
        options: a dataclass whose fields are all made by :func:`option`, and inherited: each base
            class is a section of the help, under the first line of its docstring. The docstring
            of the class itself stands above them, its indented lines as they are. A field may be
            a bool, int, float, str, Path or Literal, a tuple of any number of these, or None.
        program: the name of the program.
        arguments: what follows it.

    Returns:
        The options.

    Raises:
        SystemExit: with code 2 after a message, or 0 after the help.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Training:
        ...     '''Training.'''
        ...     rate: float = option(0.1, "Peak learning rate.", "RATE", "--lr")
        ...     augment: bool = option(True, "Mirror images.")
        >>> @dataclasses.dataclass(frozen=True)
        ... class All(Training):
        ...     '''Trains.'''
        >>> parse(All, "train.py", ["--lr", "0.5", "--no-augment"])
        All(rate=0.5, augment=False)
    """
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} [OPTION ...]",
        description=inspect.cleandoc(options.__doc__ or ""),
        formatter_class=_Help,
        allow_abbrev=False,
        add_help=False,
    )
    hints = typing.get_type_hints(options)
    for section in options.__bases__:
        title = (section.__doc__ or "").partition("\n")[0].rstrip(".")
        group = parser.add_argument_group(title[:1].lower() + title[1:])
        for field in dataclasses.fields(section):  # type: ignore[arg-type]
            _add(group, field, _kind(hints[field.name]))
    parser.add_argument_group("help").add_argument(
        "-h", "--help", action="help", help="Show this, and exit."
    )
    found = vars(parser.parse_args([_hyphened(word) for word in arguments]))
    return options(**{name: _value(given) for name, given in found.items()})


class _Kind(NamedTuple):
    """What a field may hold: values of a type, whether several, whether None."""

    element: Any
    several: bool
    optional: bool


def _kind(hint: Any) -> _Kind:
    optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
    if optional:
        (hint,) = (one for one in typing.get_args(hint) if one is not type(None))
    several = typing.get_origin(hint) is tuple
    return _Kind(typing.get_args(hint)[0] if several else hint, several, optional)


def _add(group: Any, field: dataclasses.Field[Any], kind: _Kind) -> None:
    """Adds an option; the default is the dataclass' to give."""
    flag, meta = "--" + field.name.replace("_", "-"), field.metadata
    settings: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    shown = _shown(field.default, flag)
    settings["help"] = f"{meta['text']}{shown}".replace("%", "%%")
    if kind.element is bool:
        settings["action"] = argparse.BooleanOptionalAction
    else:
        settings["metavar"], settings["type"] = meta["metavar"], _reader(kind)
        if kind.several:
            settings["nargs"] = "*"
        if typing.get_origin(kind.element) is Literal:
            settings["choices"] = typing.get_args(kind.element)
    group.add_argument(flag, *filter(None, [meta["short"]]), **settings)


def _shown(default: Any, flag: str) -> str:
    """The default; nothing where the text has to say it."""
    if default is None or default == ():
        return ""
    if isinstance(default, bool):
        default = flag if default else flag.replace("--", "--no-")
    elif isinstance(default, tuple):
        default = " ".join(map(str, default))
    return f" (default:{_SPACE}{default})"


def _reader(kind: _Kind) -> Callable[[str], Any]:
    """What makes a value of a word."""
    element = str if typing.get_origin(kind.element) is Literal else kind.element
    assert element in (int, float, str, Path), f"no option can hold {element}"

    def read(word: str) -> Any:
        return None if kind.optional and word == "None" else element(word)

    read.__name__ = element.__name__.lower()  # argparse says: invalid int value
    return read


def _value(given: Any) -> Any:
    if isinstance(given, list):
        return None if given == [None] else tuple(given)
    return given


def _hyphened(word: str) -> str:
    """``--batch_size`` is ``--batch-size``."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


class _Help(argparse.HelpFormatter):
    """Lines that are full, none broken at a hyphen; indented lines of the description stay."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)
        self._width = min(self._width, WIDEST)

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines = textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)
        return [line.replace(_SPACE, " ") for line in lines]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = (
            part if part.startswith(" ") else "\n".join(self._split_lines(part, width))
            for part in text.split("\n\n")
        )
        return "\n\n".join(paragraphs)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return ", ".join(action.option_strings)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"
