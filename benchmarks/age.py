"""Which results are older than the code that made them: `python -m benchmarks --stale`."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Age(NamedTuple):
    """How old a result is.

    Attributes:
      result: name of its file.
      commit: it was made from; where the file does not say, or says one that this history does not
        have, that which last changed the file, which is at most as old. None without a history.
      sure: whether the file said it.
      uncommitted: whether the code was changed when it was measured.
      files: that it depends on and that differ today.
      commits: since then that changed one of what it depends on.
      sampled: how rows that were measured again compare, see `benchmarks.sample`; None for none.
      since: files it depends on that differ from the code of that sample.
    """

    result: str
    commit: str | None
    sure: bool
    uncommitted: bool
    files: tuple[str, ...]
    commits: int
    sampled: dict[str, Any] | None = None
    since: tuple[str, ...] = ()

    @property
    def is_old(self) -> bool:
        """Whether code that it depends on differs from that which made it."""
        return bool(self.files) or self.commit is None

    @property
    def is_sampled(self) -> bool:
        """Whether rows of it were measured again on today's code."""
        return self.sampled is not None and not self.since and "uncommitted" not in self.sampled

    def __str__(self) -> str:
        if self.commit is None:
            return f"{self.result}: of unknown age"
        since = f"{self.commit[:8]}{'' if self.sure else ' at the latest'}"
        since += ", from uncommitted code" if self.uncommitted else ""
        if not self.files:
            return f"{self.result}: of {since}, nothing that it depends on differs"
        since += f", {len(self.files)} files differ ({self.commits} commits)"
        return f"{self.result}: of {since}{self._again()}"

    def _again(self) -> str:
        if self.sampled is None:
            return ""
        apart = self.sampled["largest differences"].items()
        most = ", ".join(f"{name} by {value:g}" for name, value in apart if value is not None)
        rows, commit = self.sampled["rows"], self.sampled["commit"]
        text = f"; {rows} rows again at {commit[:8]} differ at most in {most}"
        text += ", from uncommitted code" if "uncommitted" in self.sampled else ""
        return text + (f", {len(self.since)} files differ since" if self.since else "")


def git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, no history, or an error."""
    try:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()
    except (OSError, subprocess.CalledProcessError):
        return None


def age_of(
    file: Path, root: Path = ROOT, samples: Mapping[str, dict[str, Any]] | None = None
) -> Age:
    """The age of one result.

    A result that does not say what it depends on depends on the scripts that its command names, and
    on all of the library.
    """
    found = json.loads(file.read_text())
    commit, sure = found.get("commit"), True
    if commit is None or git(root, "merge-base", "--is-ancestor", commit, "HEAD") is None:
        commit, sure = git(root, "log", "-1", "--format=%H", "--", str(file)) or None, False
    if commit is None:
        return Age(file.stem, None, False, False, (), 0)
    depends = found.get("depends") or [*scripts_of(found), "ifjax"]
    commits = git(root, "rev-list", "--count", f"{commit}..HEAD", "--", *depends) or "0"
    sampled = (samples or {}).get(file.stem)
    since = _differing(root, sampled["commit"], sampled["depends"]) if sampled else ()
    files = _differing(root, commit, depends)
    return Age(file.stem, commit, sure, "uncommitted" in found, files, int(commits), sampled, since)


def _differing(root: Path, commit: str, depends: Sequence[str]) -> tuple[str, ...]:
    """Files of today that differ from those of a commit; one that is not known differs in all."""
    changed = git(root, "diff", "--name-only", commit, "HEAD", "--", *depends)
    if changed is None:
        return tuple(depends)
    return tuple(name for name in changed.splitlines() if name.endswith(".py"))


def scripts_of(result: dict) -> list[str]:
    """The scripts that a result's commands name."""
    return sorted(set(re.findall(r"(?:benchmarks/)?\w+\.py", str(result["command"]))))


def ages(folder: Path = ROOT / "benchmarks/results", root: Path = ROOT) -> list[Age]:
    """The age of every result, those first that differ most from today's code."""
    notes = root / "benchmarks/samples.json"
    samples = json.loads(notes.read_text()) if notes.exists() else {}
    found = [age_of(file, root, samples) for file in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda age: (age.commit is not None, -len(age.files)))
