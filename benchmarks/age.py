"""Which results are older than the code that made them: `python -m benchmarks --stale`."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

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
    """

    result: str
    commit: str | None
    sure: bool
    uncommitted: bool
    files: tuple[str, ...]
    commits: int

    def __str__(self) -> str:
        if self.commit is None:
            return f"{self.result}: of unknown age"
        since = f"{self.commit[:8]}{'' if self.sure else ' at the latest'}"
        since += ", from uncommitted code" if self.uncommitted else ""
        if not self.files:
            return f"{self.result}: of {since}, nothing that it depends on differs"
        return f"{self.result}: of {since}, {len(self.files)} files differ ({self.commits} commits)"


def git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, no history, or an error."""
    try:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()
    except (OSError, subprocess.CalledProcessError):
        return None


def age_of(file: Path, root: Path = ROOT) -> Age:
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
    changed = git(root, "diff", "--name-only", commit, "HEAD", "--", *depends) or ""
    commits = git(root, "rev-list", "--count", f"{commit}..HEAD", "--", *depends) or "0"
    files = tuple(name for name in changed.splitlines() if name.endswith(".py"))
    return Age(file.stem, commit, sure, "uncommitted" in found, files, int(commits))


def scripts_of(result: dict) -> list[str]:
    """The scripts that a result's commands name."""
    return sorted(set(re.findall(r"(?:benchmarks/)?\w+\.py", str(result["command"]))))


def ages(folder: Path = ROOT / "benchmarks/results", root: Path = ROOT) -> list[Age]:
    """The age of every result, those first that differ most from today's code."""
    found = [age_of(file, root) for file in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda age: (age.commit is not None, -len(age.files)))
