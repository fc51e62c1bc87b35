"""Every result is registered, quoted, of known age and made by a command that is there."""

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as evidence
from benchmarks import age, result_page
from benchmarks import sample as sampling
from benchmarks.registry import FOLDER, HELPERS, STUDIES, Study
from tests.benchmark_module import loaded
from tests.test_pages import PAGES, ROOT

RESULTS = sorted((FOLDER / "results").glob("*.json"))


def test_every_script_is_registered_and_every_study_has_its_script_and_page():
    scripts = {file.stem for file in FOLDER.glob("*.py")} - HELPERS
    own = {name for name, study in STUDIES.items() if study.script is None}
    assert scripts == own, "benchmarks/registry.py lists every script that answers a question"
    for study in STUDIES.values():
        assert Path(study.command([])[0]).is_file(), study
        assert (ROOT / study.page).is_file(), study


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_every_result_is_registered_and_names_a_command_that_is_there(file):
    assert sum(file.stem in study.files for study in STUDIES.values()) == 1
    scripts = age.scripts_of(json.loads(file.read_text()))
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_every_result_has_its_page(file):
    page = result_page.page(file.stem, json.loads(file.read_text()))
    assert file.with_suffix(".md").read_text() == page, "python -m benchmarks --tables"


def test_a_page_has_all_columns_and_no_cell_that_breaks_its_table():
    rows = [{"n": 1, "of": {"a|b": 0.5}}, {"n": 2.5, "each": [1, 2.25]}]
    found = result_page.page("x", {"command": ["python a.py", "python b.py"], "rows": rows})
    assert found.splitlines()[2:5] == ["`python a.py`", "", "`python b.py`"]
    assert "| n | of | each |" in found
    assert "| 1 | a\\|b: 0.5 |  |" in found
    assert "| 2.50 |  | 1; 2.25 |" in found
    assert doctest.testmod(result_page).failed == 0


def test_the_page_of_the_evidence_has_the_questions_and_results_of_today():
    page = (ROOT / "docs/results/evidence.md").read_text()
    assert evidence.table() in page, "python -m benchmarks --table"


def test_commands_by_name_that_pages_quote_are_registered():
    for page in PAGES:
        for name in re.findall(r"python -m benchmarks (\w+)", page.read_text()):
            assert name in STUDIES, (page, name)


def test_every_result_has_a_commit():
    if age.git(ROOT, "rev-parse", "HEAD") is None:
        pytest.skip("needs the history of the repository")
    unknown = [found.result for found in age.ages() if found.commit is None]
    assert not unknown, "results that were neither committed nor written by benchmarks/record.py"


@pytest.fixture
def repository(tmp_path):
    """A repository with a script, a library, and what commits the rest."""
    options = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]

    def commit(**files: str) -> str:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path = path.with_suffix(".json" if "result" in name else ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        git = ["git", "-C", str(tmp_path), *options]
        subprocess.run([*git, "add", "."], check=True, capture_output=True)
        subprocess.run([*git, "commit", "-m", "-"], check=True, capture_output=True)
        found = age.git(tmp_path, "rev-parse", "HEAD")
        assert found is not None
        return found

    try:
        subprocess.run(["git", "init", str(tmp_path)], check=True, capture_output=True)
    except OSError:
        pytest.skip("needs git")
    return tmp_path, commit


def test_a_result_is_as_old_as_what_it_depends_on(repository):
    root, commit = repository
    first = commit(benchmarks__a="1", ifjax__used="1", ifjax__other="1")
    known = {"command": "python benchmarks/a.py", "commit": first}
    depends = {"depends": ["benchmarks/a.py", "ifjax/used.py"]}
    commit(
        ifjax__other="2", result__all=json.dumps(known), result__some=json.dumps(known | depends)
    )
    some, whole = (age.age_of(root / f"result/{name}.json", root) for name in ("some", "all"))
    assert (some.commit, some.sure, some.files, some.commits) == (first, True, (), 0)
    assert (whole.files, whole.commits) == (("ifjax/other.py",), 1)
    assert "nothing that it depends on differs" in str(some)
    assert "1 files differ (1 commits)" in str(whole)
    commit(ifjax__used="2", benchmarks__a="2")
    assert age.age_of(root / "result/some.json", root).files == tuple(depends["depends"])
    # As it was before: whatever came between, nothing differs.
    commit(ifjax__used="1", benchmarks__a="1")
    assert age.age_of(root / "result/some.json", root).files == ()
    assert [found.result for found in age.ages(root / "result", root)] == ["all", "some"]


def test_a_result_that_names_no_commit_of_this_history_is_at_most_as_old_as_its_file(repository):
    root, commit = repository
    lost = {"command": "python benchmarks/a.py", "commit": "0" * 40}
    added = commit(benchmarks__a="1", ifjax__x="1", result__lost=json.dumps(lost))
    commit(ifjax__x="2")
    found = age.age_of(root / "result/lost.json", root)
    assert (found.commit, found.sure, found.files) == (added, False, ("ifjax/x.py",))
    (root / "result/new.json").write_text(json.dumps(lost))
    found = age.age_of(root / "result/new.json", root)
    assert found.commit is None
    assert str(found) == "new: of unknown age"


def test_a_sample_says_how_far_rows_are_off_until_the_code_changes(repository):
    root, commit = repository
    first = commit(benchmarks__a="1", ifjax__x="1")
    rows = [{"n": 1, "seeds": [90.0, 80.0], "s": 3}, {"n": 2, "seeds": [70.0, 60.0], "s": 4}]
    kept = {"command": "python benchmarks/a.py", "rows": rows}
    second = commit(ifjax__y="1", result__a=json.dumps(kept))
    third = commit(ifjax__x="2")
    again = {"command": "python benchmarks/a.py --few", "commit": third, "depends": ["ifjax"]}
    again["rows"] = [{"n": 2, "seeds": [70.5], "s": 9}]
    (root / "again").write_text(json.dumps(again))
    notes = root / "benchmarks/samples.json"
    sample = sampling.Sample("--few", ["n"], ["seeds", "gone"])
    sampling.noted(root / "result/a.json", root / "again", sample, notes)
    assert json.loads(notes.read_text()) == {
        "a": {
            **{"arguments": "--few", "commit": third, "depends": ["ifjax"]},
            **{"rows": 1, "largest differences": {"seeds": 0.5, "gone": None}},
        }
    }
    assert json.loads((root / "result/a.json").read_text()) == kept
    commit(benchmarks__b="1")  # with the note
    [found] = age.ages(root / "result", root)
    assert (found.commit, found.sure, found.files) == (second, False, ("ifjax/x.py",))
    assert found.is_old
    assert found.is_sampled
    assert str(found).endswith(f"; 1 rows again at {third[:8]} differ at most in seeds by 0.5")
    commit(ifjax__x="3")
    [found] = age.ages(root / "result", root)
    assert not found.is_sampled
    assert str(found).endswith(", 1 files differ since")
    every = json.loads(notes.read_text())
    lost = {"a": every["a"] | {"commit": "0" * 40, "uncommitted": ["ifjax/x.py"]}}
    found = age.age_of(root / "result/a.json", root, lost)
    assert not found.is_sampled
    assert ", from uncommitted code" in str(found)
    assert first != second


@pytest.mark.parametrize(
    ("new", "problem"),
    [([], "got none"), ([{"n": 3, "x": 1.0}], r"got \{'n': 3\}")],
)
def test_rows_that_cannot_be_compared_are_no_sample(new, problem):
    with pytest.raises(ValueError, match=problem):
        sampling.differences([{"n": 1, "x": 1.0}], new, sampling.Sample("", ["n"], ["x"]))


@pytest.mark.parametrize("x", [None, float("nan")])
def test_what_is_no_number_is_infinitely_far_from_one(x):
    sample = sampling.Sample("", ["n"], ["x"])
    rows = [{"n": 1, "x": 1.0}, {"n": 2, "x": x}]
    assert sampling.differences(rows, [{"n": 1, "x": x}], sample) == {"x": float("inf")}
    assert sampling.differences(rows, [{"n": 2, "x": x}], sample) == {"x": None}


def test_samples_tell_rows_apart_by_columns_that_results_have():
    for study in STUDIES.values():
        if study.sample is None:
            continue
        rows = json.loads((FOLDER / f"results/{study.files[0]}.json").read_text())["rows"]
        keys = [tuple(row.get(name) for name in study.sample.by) for row in rows]
        assert len(set(map(str, keys))) == len(keys), study.name
        for name in (*study.sample.by, *study.sample.same):
            assert any(name in row for row in rows), (study.name, name)


def test_what_is_written_says_where_it_comes_from(tmp_path, monkeypatch):
    record = loaded("record")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/x/benchmarks/cost.py", "--repeats", "1"])
    new = {"n": 1}
    record.write("a", [new])
    written = record.read("a")
    assert written["command"] == "python benchmarks/cost.py --repeats 1"
    assert written["commit"] == age.git(ROOT, "rev-parse", "HEAD")
    assert "ifjax/graph" in written["depends"]
    # With a row of an earlier result it is as old as that.
    (tmp_path / "a.json").write_text(json.dumps(written | {"commit": "old"}))
    rows = record.with_earlier("a", [{"n": 2}], ["n"])
    assert rows == [new, {"n": 2}]
    monkeypatch.setattr(sys, "argv", ["/x/benchmarks/cost.py", "--networks", "a b"])
    record.write("a", rows)
    second = "python benchmarks/cost.py --networks 'a b'"
    for _ in range(2):  # however often it is written
        record.write("a", rows)
    mixed = record.read("a")
    assert mixed["commit"] == "old"
    assert mixed["command"] == [written["command"], second]
    monkeypatch.setattr(sys, "argv", ["/x/benchmarks/cost.py"])
    record.write("a", mixed["rows"])
    third = "python benchmarks/cost.py"
    assert record.read("a")["command"] == [written["command"], second, third]
    record.write("a", [{"n": 1}, {"n": 2}])
    assert record.read("a")["commit"] == written["commit"]
    assert record.read("a")["command"] == third


def test_what_a_result_depends_on_are_scripts_and_packages():
    record, script = loaded("record"), sys.modules["benchmarks.registry"]
    library = [sys.modules["ifjax"], sys.modules["ifjax.graph.trace"]]
    found = record.depends([*library, sys.modules["json"], record, script])
    assert found == ["benchmarks/registry.py", "ifjax/__init__.py", "ifjax/graph"]
    # What imports nothing of the library leaves the work to processes of their own.
    assert record.depends([record, script]) == ["benchmarks/registry.py", "ifjax"]


def test_one_study_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capfd):
    (tmp_path / "benchmarks").mkdir()
    text = "import os, sys; print(os.environ['IFJAX_RESULTS'], *sys.argv[1:])\n"
    for name, more in {"good": "", "bad": "sys.exit(3)\n", "left": ""}.items():
        (tmp_path / f"benchmarks/{name}.py").write_text(text + more)
    monkeypatch.setattr("benchmarks.registry.FOLDER", tmp_path / "benchmarks")
    monkeypatch.setattr(evidence, "QUICK", tmp_path / "quick")
    studies = [
        Study("bad", "?", "p"),
        Study("left", "?", "p", needs=("no-such-distribution",)),
        Study("good", "?", "p", "--cache '{results}/a b'"),
    ]
    monkeypatch.setattr(evidence, "STUDIES", {study.name: study for study in studies})
    assert evidence.main(["--quick"]) == 1
    out = capfd.readouterr().out
    assert f"{tmp_path}/quick/good --cache {tmp_path}/quick/good/a b\n" in out
    ended = json.loads((tmp_path / "quick/summary.json").read_text())
    assert ended["bad"].startswith("failed with status 3")
    assert ended["left"] == "left out: needs no-such-distribution"
    assert ended["good"].startswith("ok")
    monkeypatch.setenv("IFJAX_RESULTS", "kept")
    assert evidence.main(["good", "--more"]) == 0
    assert capfd.readouterr().out == "kept --more\n"
    with pytest.raises(SystemExit, match="no benchmark is called 'none'"):
        evidence.main(["none"])
