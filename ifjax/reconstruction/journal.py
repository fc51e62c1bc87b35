"""What a sweep has done so far, in a folder: a run that was killed goes on from there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ifjax.parallel.hosts import agreed, every, is_apart, joined, parts_here
from ifjax.reconstruction.solve import Solved
from ifjax.reconstruction.walk import Walk


@dataclasses.dataclass(frozen=True)
class Journal:
    """Finished choices and solutions, a file each; without a folder nothing is kept.

    Attributes:
      folder: where they are.
      mesh: over several processes, which go on from the same place; None of one.
    """

    folder: Path | None = None
    mesh: Mesh | None = None

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str] | None, what: Iterable[Any], mesh: Mesh | None = None
    ) -> Journal:
        """The journal of a run.

        Args:
          folder: of this run alone; made where it does not exist.
          what: everything that the result depends on: text, and arrays.
          mesh: over several processes, each of which has a folder of its own in this one.

        Returns:
          The journal.

        Raises:
          ValueError: where the folder holds another run.
        """
        if folder is None:
            return cls(None, mesh)
        path = Path(folder)
        if mesh is not None:
            path /= f"process_{jax.process_index()}"
        journal, wrong = cls(path, mesh), _begun(path, _digest(what))
        if journal.everywhere(not wrong):
            return journal
        raise ValueError(wrong or f"{path}: fits, but that of another process does not")

    def everywhere(self, here: bool) -> bool:
        """Whether something is so in all processes."""
        return bool(every(np.array([here]), self.mesh).all())

    def remember(
        self, key: str, make: Callable[[], Mapping[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """Arrays by name: those of before, or else those that are made now."""
        found = self._load(key)
        if found is not None:
            return found[0]
        made = agreed({name: np.asarray(x) for name, x in make().items()}, self.mesh)
        self._save(key, made, None)
        return made

    def solve(
        self, key: str, walk: Walk, names: Mapping[int, str], solve: Callable[[], Solved | None]
    ) -> Solved | None:
        """Leaves as they were solved for before, or else as they are solved for now."""
        found = self._load(key)
        numbers = {path: n for n, path in names.items()}
        if found is not None:
            for path, x in found[0].items():
                old = walk.leaves[numbers[path]]
                known = joined(x, old.sharding, old.shape) if is_apart(old) else jnp.asarray(x)
                walk.write(numbers[path], known)
            return found[1]
        before = dict(walk.leaves)
        solved = solve()
        changed = {names[n]: x for n, x in walk.leaves.items() if x is not before[n]}
        self._save(key, {path: parts_here(x) for path, x in changed.items()}, solved)
        return solved

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"

    def _load(self, key: str) -> tuple[dict[str, np.ndarray], Solved | None] | None:
        if self.folder is None or not self.everywhere(self._file(key).exists()):
            return None
        with np.load(self._file(key)) as file:
            head = json.loads(bytes(file["head"]).decode())
            arrays = {
                name: np.frombuffer(bytes(file[f"x{i}"]), jnp.dtype(dtype)).reshape(shape)
                for i, (name, dtype, shape) in enumerate(head["arrays"])
            }
        solved = head["solved"]
        if solved is not None:
            solved = Solved(**{**solved, "sites": tuple(solved["sites"])})
        return arrays, solved

    def _save(self, key: str, arrays: Mapping[str, np.ndarray], solved: Solved | None) -> None:
        if self.folder is None:
            return
        head = {
            "key": key,
            "arrays": [(name, str(x.dtype), x.shape) for name, x in arrays.items()],
            "solved": None if solved is None else dataclasses.asdict(solved),
        }
        parts = {"head": np.frombuffer(json.dumps(head).encode(), np.uint8)}
        for i, x in enumerate(arrays.values()):  # as bytes: numpy does not know every dtype
            parts[f"x{i}"] = np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8)
        new = self._file(key).with_suffix(f".{os.getpid()}.tmp")
        with new.open("wb") as file:
            np.savez(file, **parts)  # type: ignore[arg-type]
        new.replace(self._file(key))


def _begun(path: Path, mark: str) -> str:
    """Marks a folder as that of a run; what is wrong where it is not."""
    path.mkdir(parents=True, exist_ok=True)
    known = path / "run.json"
    if known.exists():
        if json.loads(known.read_text()).get("digest") == mark:
            return ""
        return (
            f"{path} holds another run of compress: of other parameters, inputs or widths; "
            "give another folder, or remove it"
        )
    if any(x.suffix != ".tmp" for x in path.iterdir()):  # those of a run killed at once
        return f"{path}: expected an empty folder or a run of compress"
    _replace(known, json.dumps({"digest": mark}).encode())
    return ""


def _replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(f".{os.getpid()}.tmp")
    new.write_bytes(content)
    new.replace(path)


def _digest(what: Iterable[Any]) -> str:
    found = hashlib.sha256()
    for x in what:
        if isinstance(x, str):
            found.update(x.encode())
        else:
            is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            array = parts_here(jax.random.key_data(x) if is_key else x)
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()
