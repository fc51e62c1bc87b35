"""What a folder of results knows about its run: settings, stages that are finished, whether all is.

A run is cut into stages (training the dense network, every compressed network). The journal is one
JSON file, replaced as a whole when a stage is finished, so that a run that was killed goes on with
the first stage that it lacks.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ifjax.report import write_atomically
from ifjax.training.distributed import is_first, on_first

FILE = "run.json"
CHECKPOINTS = ".checkpoints"
LOGS = "tensorboard"


def find_run(
    folder: Path, settings: Mapping[str, Any], *, overwrite: bool, resume: bool
) -> dict[str, Any] | None:
    """Looks what a folder holds, and gives the finished stages of the run to continue.

    An unfinished run of the same settings is continued, unless ``resume`` is False. Anything else
    that the folder holds is replaced with ``overwrite``, and an error without. Nothing is written.
    On several hosts every process has to call this, and gets what process 0 finds.

    Args:
        folder: where the results go; need not exist.
        settings: what determines the results, as JSON can hold it.
        overwrite: whether other contents may be replaced.
        resume: whether an unfinished run is continued.

    Returns:
        The records of the finished stages by name; None for a run that starts anew.

    Raises:
        ValueError: if the folder is a file, or holds what may not be replaced; for an unfinished
            run of other settings it says which.

    Example:
        >>> find_run(Path("/not/there"), {"seed": 0}, overwrite=False, resume=True) is None
        True
    """
    return on_first(lambda: _find(folder, settings, overwrite, resume))


class Journal:
    """The open journal of a run; a context manager that keeps other runs out of the folder.

    On several hosts, process 0 alone writes, and every process has to open it.

    Attributes:
        folder: of the results.
        stages: records of the finished stages, by name.
        seconds: what training took, by stage, of those that were trained since it was opened;
            over interruptions, but without what was done twice.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Journal(Path(folder), {"seed": 0}, None) as journal:
        ...         journal.add("dense", {"accuracy": 0.9})
        ...     find_run(Path(folder), {"seed": 0}, overwrite=False, resume=True)
        {'dense': {'accuracy': 0.9}}
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], stages: Mapping[str, Any] | None
    ) -> None:
        """Opens it, with what :func:`find_run` gave.

        Raises:
            BlockingIOError: if another process works in the folder.
        """
        self.folder, self.stages, self._settings = folder, dict(stages or {}), settings
        self.seconds: dict[str, float] = {}
        self._lock: int | None = None
        on_first(lambda: self._open(anew=stages is None))

    def __enter__(self) -> "Journal":
        """The journal."""
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets others into the folder; what was done stays."""
        if self._lock is not None:
            os.close(self._lock)

    def add(self, stage: str, record: Any) -> None:
        """Notes that a stage is finished, and drops its training checkpoints.

        Args:
            stage: its name.
            record: what is to be known of it, as JSON can hold it.
        """
        self.stages[stage] = record
        if is_first():
            self._write(finished=False)
            shutil.rmtree(self.checkpoints(stage), ignore_errors=True)

    def finish(self) -> None:
        """Notes that the whole run is finished."""
        if is_first():
            self._write(finished=True)
            shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)

    def checkpoints(self, stage: str) -> Path:
        """The folder of a stage's training checkpoints."""
        return self.folder / CHECKPOINTS / stage

    def logs(self, name: str) -> Path:
        """The folder of the curves of that name."""
        return self.folder / LOGS / name

    def _open(self, *, anew: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder, os.O_RDONLY)  # given back by the system whatever happens
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise BlockingIOError(f"another process is working in {self.folder}") from error
        if anew and _read(self.folder) is not None:
            self._clear()
        self._write(finished=False)

    def _write(self, *, finished: bool) -> None:
        content = {"finished": finished, "settings": self._settings, "stages": self.stages}
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_atomically(self.folder / FILE, lambda file: file.write_text(text))

    def _clear(self) -> None:
        """Removes what an earlier run left here, its journal first."""
        (self.folder / FILE).unlink()
        (self.folder / "results.json").unlink(missing_ok=True)
        for name in (CHECKPOINTS, LOGS):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def _find(
    folder: Path, settings: Mapping[str, Any], overwrite: bool, resume: bool
) -> dict[str, Any] | None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    found = _read(folder)
    if found is not None and not found["finished"] and resume:
        changes = _differences(found["settings"], settings)
        if not changes:
            return found["stages"]
        if not overwrite:
            raise ValueError(
                f"{folder} holds an unfinished run of other settings: {'; '.join(changes)}; pass "
                "the same to continue it, --overwrite to replace it, or another folder"
            )
    if not overwrite:
        finished = ""
        if found is not None and found["finished"]:
            same = "other" if _differences(found["settings"], settings) else "the same"
            finished = f"; it holds a finished run of {same} settings, its table in results.json"
        raise ValueError(f"{folder} is not empty; pass --overwrite or another folder{finished}")
    return None


def _read(folder: Path) -> dict[str, Any] | None:
    """The content of the journal, or None where there is none of ours."""
    try:
        found = json.loads((folder / FILE).read_text())
        return found if {"finished", "settings", "stages"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Says for every setting that differs what it is here and there."""
    return [
        f"--{key.replace('_', '-')} is {_word(there.get(key))} there, {_word(here.get(key))} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


def _word(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
