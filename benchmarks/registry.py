"""Every question that a benchmark answers: its script, its quick form, its results, its page."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shlex
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.sample import Sample

FOLDER = Path(__file__).resolve().parent
SAMPLES = FOLDER / "samples.json"
# Beside the scripts: what they share, and what they compare with.
HELPERS = {
    *("__main__", "age", "record", "registry", "result_page", "sample"),
    *("call_parts", "corruptions", "cut_network", "hlo", "least_squares", "profile_fusion"),
    *("torch_architectures", "torch_fusion"),
    *("distilled", "language_baselines", "sampled_text"),  # of language_model
    *("solver_pictures", "solver_variants"),  # of solvers
    "tpu_programs",  # of tpu_sweep
}


@dataclasses.dataclass(frozen=True)
class Study:
    """One question, an entry of ``studies.toml``.

    Attributes:
      name: of its script, or its own where the script is given.
      question: in a sentence.
      page: that quotes the answer, seen from the root of the repository.
      quick: arguments of the quick form; ``{results}`` is the folder of its results.
      full: arguments of the full form where none are given.
      sample: rows that are measured again to see whether the kept ones still hold.
      results: names of its files in ``benchmarks/results``, without the suffix; as the study is
        called if not given, none where it only prints.
      needs: distributions beside ``.[test]``; "shared" are the shared files.
      script: seen from the root of the repository; ``benchmarks/NAME.py`` if not given.
    """

    name: str
    question: str
    page: str
    quick: str = ""
    full: str = ""
    sample: Sample | None = None
    results: list[str] | None = None
    needs: tuple[str, ...] = ()
    script: str | None = None

    @property
    def files(self) -> list[str]:
        """Names of its results."""
        return [self.name] if self.results is None else self.results

    def missing(self) -> list[str]:
        """What it needs and this machine does not have."""
        return [name for name in self.needs if not _there(name)]

    def arguments(self, results: Path | None = None, again: bool = False) -> list[str]:
        """Those of the full form; of the quick one, or of the sample, that write to a folder."""
        if results is None:
            return shlex.split(self.full)
        text = self.sample.arguments if again and self.sample else self.quick
        return [part.format(results=results) for part in shlex.split(text)]

    def command(self, arguments: list[str]) -> list[str]:
        """The script with arguments, to be run by a Python."""
        return [str(FOLDER.parent / (self.script or f"benchmarks/{self.name}.py")), *arguments]


def _there(name: str) -> bool:
    if name == "shared":
        given = os.environ.get("IFJAX_SHARED")
        return Path(given or FOLDER.parents[1] / "shared").is_dir()
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _study(name: str, fields: dict[str, Any]) -> Study:
    sample = fields.pop("sample", None)
    return Study(name, sample=sample and Sample(**sample), **fields)


STUDIES = {
    name: _study(name, fields)
    for name, fields in tomllib.loads((FOLDER / "studies.toml").read_text()).items()
}
