"""What counts as the same run."""

import dataclasses
import json
import typing
from pathlib import Path

import pytest

from ifjax.experiment.config import Config, settings

EMPTY = {
    "train_images": 7,
    "clip_norm": 1.0,
    "milestones": (1,),
    "exclude": ("x",),
    "sparsities": (0.25,),
    "coordinator": "here:1",
    "processes": 2,
    "process": 0,
    "local_devices": (0,),
}
FREE = {
    "compile_cache",
    *("out", "overwrite", "resume", "progress", "data_dir", "log_every", "checkpoint_every"),
    *("coordinator", "processes", "process", "local_devices", "lost_after"),
}


def another(field: str) -> object:
    """A value of the right type that is not the default one."""
    value = getattr(Config(), field)
    if field in EMPTY:
        return EMPTY[field]
    if isinstance(value, str):
        hint = typing.get_type_hints(Config)[field]
        return next(word for word in typing.get_args(hint) if word != value)
    if isinstance(value, tuple):
        return value + value
    if isinstance(value, bool):
        return not value
    return Path("elsewhere") if value is None else value + 1


def test_settings_survive_json() -> None:
    """The ones read from a file are compared with the ones given."""
    config = Config(checkpoint=Path("a/dense"), sparsities=(0.5,), milestones=(3,))
    found = settings(config)
    assert json.loads(json.dumps(found)) == found
    assert found["checkpoint"] == str(Path("a/dense").absolute())


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Config)])
def test_only_what_changes_no_result_is_left_out(field: str) -> None:
    changed = dataclasses.replace(Config(), **{field: another(field)})
    same = settings(changed) == settings(Config())
    assert same == (field in FREE)


def test_the_defaults_name_their_folder() -> None:
    assert Config(data="cifar10", model="vgg11").folder == Path("runs/cifar10-vgg11")
    assert Config(mode="paf").folder == Path("runs/digits-resnet8-paf")
    assert Config(out=Path("a")).folder == Path("a")
    assert (Config().cuts, Config(mode="fap").cuts) == ((0.3, 0.5, 0.7), (0.5,))
