"""When a folder is continued, when it is replaced, and when neither."""

import json
from pathlib import Path

import pytest

from ifjax.experiment.journal import Journal, find_run

SETTINGS = {"seed": 0, "sparsities": [0.3, 0.5]}


def find(folder: Path, settings: dict = SETTINGS, **options: bool) -> dict | None:
    return find_run(folder, settings, **{"overwrite": False, "resume": True} | options)


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    with Journal(tmp_path / "run", SETTINGS, None) as journal:
        journal.checkpoints("dense").mkdir(parents=True)
        journal.checkpoints("fuse").mkdir(parents=True)
        journal.add("dense", {"accuracy": 0.5})
    return tmp_path / "run"


def test_an_unfinished_run_of_the_same_settings_goes_on(unfinished: Path) -> None:
    stages = find(unfinished)
    assert stages == {"dense": {"accuracy": 0.5}}
    with Journal(unfinished, SETTINGS, stages) as journal:
        assert not journal.checkpoints("dense").exists(), "of no use once the stage is finished"
        assert journal.checkpoints("fuse").exists()
        journal.add("fuse", [1, 2])
    assert find(unfinished) == {"dense": {"accuracy": 0.5}, "fuse": [1, 2]}


def test_a_run_that_finished_no_stage_goes_on_too(tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS, None) as journal:
        journal.checkpoints("dense").mkdir(parents=True)
    stages = find(tmp_path)
    assert stages == {}
    with Journal(tmp_path, SETTINGS, stages) as journal:
        assert journal.checkpoints("dense").exists()


def test_other_settings_are_named(unfinished: Path) -> None:
    other = {"seed": 1, "sparsities": [0.3], "new": "x"}
    with pytest.raises(ValueError, match="unfinished run of other settings") as error:
        find(unfinished, other)
    for part in ("--new is None there, x here", "--seed is 0 there, 1 here"):
        assert part in str(error.value)
    assert "--sparsities is 0.3 0.5 there, 0.3 here" in str(error.value)


def test_overwrite_replaces_a_run_of_other_settings_entirely(unfinished: Path) -> None:
    (unfinished / "results.json").write_text("{}")
    (unfinished / "notes.txt").write_text("the user's own")
    other = SETTINGS | {"seed": 1}
    stages = find(unfinished, other, overwrite=True)
    assert stages is None
    with Journal(unfinished, other, stages) as journal:
        assert journal.stages == {}
        assert not journal.checkpoints("fuse").exists()
    assert sorted(path.name for path in unfinished.iterdir()) == ["notes.txt", "run.json"]
    assert find(unfinished, other) == {}


def test_overwrite_alone_does_not_throw_away_a_run_that_can_go_on(unfinished: Path) -> None:
    assert find(unfinished, overwrite=True) == {"dense": {"accuracy": 0.5}}
    assert find(unfinished, overwrite=True, resume=False) is None
    with pytest.raises(ValueError, match="not empty; pass --overwrite"):
        find(unfinished, resume=False)


def test_a_finished_run_is_not_touched(unfinished: Path) -> None:
    with Journal(unfinished, SETTINGS, find(unfinished)) as journal:
        journal.finish()
        assert not journal.checkpoints("fuse").exists()
    with pytest.raises(ValueError, match=r"not empty; .*finished run of the same settings"):
        find(unfinished)
    with pytest.raises(ValueError, match=r"not empty; .*finished run of other settings"):
        find(unfinished, SETTINGS | {"seed": 1})
    assert find(unfinished, overwrite=True) is None


@pytest.mark.parametrize("content", ["", "[1]", '{"finished": false}', "{"])
def test_a_foreign_or_damaged_journal_is_not_a_run(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match="not empty; pass --overwrite"):
        find(tmp_path)


def test_looking_writes_nothing(unfinished: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    find(unfinished)
    find(unfinished, SETTINGS | {"seed": 1}, overwrite=True)
    assert find(tmp_path / "none") is None
    assert sorted(tmp_path.rglob("*")) == before


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        Journal(tmp_path, SETTINGS, None),
        pytest.raises(BlockingIOError, match="another process is working in"),
    ):
        Journal(tmp_path, SETTINGS, None)
    with Journal(tmp_path, SETTINGS, None):
        pass


def test_the_journal_is_replaced_as_a_whole(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(unfinished, SETTINGS, find(unfinished)) as journal:
        with pytest.raises(ValueError, match="Out of range float"):
            journal.add("bad", float("nan"))
        assert json.loads((unfinished / "run.json").read_text())["stages"].keys() == {"dense"}


def test_a_finished_run_says_that_it_is_finished(tmp_path):
    with Journal(tmp_path, {"seed": 0}, None) as journal:
        journal.finish()
    for seed, what in ((0, "the same"), (1, "other")):
        with pytest.raises(ValueError, match=rf"not empty; .*a finished run of {what} settings"):
            find_run(tmp_path, {"seed": seed}, overwrite=False, resume=True)
