"""The command line of the main job: its help, its options and what must be there for them."""

import dataclasses
import itertools
import os
import re
import shlex
import subprocess
import sys
import typing
from pathlib import Path

import jax
import numpy as np
import pytest

from ifjax import data, importance, models
from ifjax.experiment.config import Importance
from ifjax.experiment.options import parse
from tests.main_job import SCRIPT, train

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("arguments", ["--data mnist", "--model vgg", "--epochs many", "--unknown"])
def test_words_the_command_line_does_not_know_end_with_2(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train.cli(arguments.split())
    assert stop.value.code == 2
    assert arguments.split()[0] in capsys.readouterr().err


def shown_help(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        train.cli(["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_explains_every_option_in_its_section(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown_help(capsys)
    places = {
        "network": ("model", "width", "checkpoint"),
        "data": ("data", "data-dir", "augment"),
        "training": ("epochs", "learning-rate, --lr", "fine-tune-epochs"),
        "what is cut": ("sparsities", "target", "include", "per-group"),
        "how": ("methods", "importances, --importance", "solver", "merge", "rounds"),
        "split data": ("mode", "folds", "split", "fuse-on", "whole"),
        "several hosts": ("coordinator", "processes", "lost-after"),
        "running": ("out", "resume", "seed", "progress", "compile-cache"),
    }
    titles = [line.rstrip(":") for line in text.splitlines() if re.match(r"[a-z ]+:$", line)]
    titles = titles[titles.index("network") :]
    assert titles == [*places, "help"]
    for title, options in places.items():
        section = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        for option in options:
            assert f"\n  --{option}" in f"\n{section}"
    for field in dataclasses.fields(train.Config):
        assert len(re.findall(rf"^  --{field.name.replace('_', '-')}\b", text, re.M)) >= 1


@pytest.mark.parametrize("columns", [62, 80, 250])
def test_no_line_of_the_help_is_broken(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line ends where the first word of the next one finds no room."""
    monkeypatch.setenv("COLUMNS", str(columns))
    width = min(columns - 2, 100)
    lines = shown_help(capsys).split("\nnetwork:\n")[1].splitlines()
    assert max(map(len, lines)) <= width
    pairs = [
        (line, after)
        for line, after in itertools.pairwise(lines)
        if after.startswith(" " * 26) and line[24:26] == "  "
    ]
    assert len(pairs) > 40
    for line, after in pairs:
        words = after.split()
        word = " ".join(words[:2]) if words[0] == "(default:" else words[0]
        assert len(f"{line} {word}") > width


def test_values_of_the_help_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown_help(capsys)
    for name in models.NAMES:
        assert re.search(rf"\b{name}\b", text)
    for clumsy in ("None", "DATA_DIR", "{'", "typing", "Path", "INT", "FLOAT"):
        assert not re.search(rf"(?<![\w$/]){re.escape(clumsy)}(?!\w)", text), clumsy
    assert "--data-dir DIR" in text
    assert "--coordinator HOST:PORT" in text


def test_the_commands_of_the_help_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    """And so are calls that were written for earlier versions."""
    text = shown_help(capsys).replace("\\\n", "")
    commands = re.findall(r"^    python train.py(.*)$", text, re.M)
    assert len(commands) == 4
    found = [parse(train.Config, "train.py", shlex.split(command)) for command in commands]
    assert found[1].include == ("params/layer*conv1*",)
    assert found[2].sparsities == (0.25, 0.5, 0.75)
    old = "--data_dir a --lr 0.5 --fine-tune-lr=0.1 --importance l1 --clip-norm None --no-whole"
    assert parse(train.Config, "train.py", old.split()) == train.Config(
        data_dir=Path("a"),
        learning_rate=0.5,
        fine_tune_learning_rate=0.1,
        importances=("l1",),
        whole=False,
    )


def test_help_says_where_compiled_programs_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown_help(capsys).split())
    for words in ("--no-compile-cache", "$JAX_COMPILATION_CACHE_DIR", "~/.cache/ifjax/programs"):
        assert words in text


CACHE = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")


@pytest.mark.parametrize(
    ("options", "variables", "place"),
    [
        ([], {}, "xdg/ifjax/programs"),
        ([], {"JAX_COMPILATION_CACHE_DIR": "{tmp}/chosen"}, "chosen"),
        (["--no-compile-cache"], {"JAX_COMPILATION_CACHE_DIR": "{tmp}/chosen"}, None),
    ],
)
@pytest.mark.slow
def test_compiled_programs_are_kept_where_they_should_be(
    options: list[str], variables: dict[str, str], place: str | None, tmp_path: Path
) -> None:
    """And a log is written to only at the ends of what takes long."""
    arguments = "--model mlp --epochs 1 --methods prune --sparsities 0.5 --fine-tune-epochs 0"
    unset = {name: x for name, x in os.environ.items() if not name.startswith(CACHE)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments.split(), "--out", str(tmp_path / "o"), *options],
        capture_output=True,
        text=True,
        env=unset
        | {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
        | {name: value.format(tmp=tmp_path) for name, value in variables.items()},
    )
    assert done.returncode == 0, done.stderr
    files = set(tmp_path.rglob("*-cache"))
    assert {file.parent for file in files} == ({tmp_path / place} if place else set())
    assert len(files) > 5 or place is None
    (line,) = done.stderr.splitlines()
    assert line.startswith("train: 22/22 steps in ")


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [("matplotlib", [], "ifjax[train]"), ("ot", ["--solver", "exact"], "ifjax[exact]")],
)
def test_a_missing_extra_is_told_before_training(
    package: str,
    arguments: list[str],
    extra: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert train.cli([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert f"pip install '{extra}'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_safetensors_must_name_their_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safetensors_numpy = pytest.importorskip(
        "safetensors.numpy", reason="needs safetensors: pip install 'ifjax[train]'"
    )
    from ifjax import interop, models

    model = models.CifarResNet(models.ResNetWidths.standard(8, width=2))
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    file = tmp_path / "resnet8.safetensors"
    safetensors_numpy.save_file(interop.cifar_resnet_to_torch(variables), file)
    assert train.cli(["--model", "resnet20", "--checkpoint", str(file)]) == 2
    assert "holds a resnet8 with shortcuts A" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:-10])
    assert train.cli(["--model", "resnet20", "--checkpoint", str(file)]) == 2
    assert "--checkpoint: expected a complete safetensors file" in capsys.readouterr().err


def test_every_network_of_the_command_line_exists() -> None:
    hints = typing.get_type_hints(train.Config)
    assert set(typing.get_args(hints["model"])) == set(models.NAMES)
    assert set(typing.get_args(hints["data"])) == set(data.DATASETS)
    assert {*typing.get_args(Importance)} == {*importance.names()} - {"reconstruction"}
