"""What programs ask of a chip, compiled instead of run: memory and collectives."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from typing import Any

MIB = 2**20
COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


class Recorder:
    """Compiles what would be run, and notes what it takes."""

    def __init__(self, mesh: Any, folder: str | None) -> None:
        """For a mesh; the folder is for the programs' text."""
        self.mesh, self.folder = mesh, folder
        self.known: dict[Any, Any] = {}
        self.notes: list[dict[str, Any]] = []
        self.counts, self.held = False, 0.0

    def __call__(self, name: str, function: Any, *args: Any) -> Any:
        """The shapes of what a jitted function gives, and where it lies."""
        import jax

        flat, tree = jax.tree.flatten(args, is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct))
        key = (name, function, tree, *map(_mark, flat))
        if key not in self.known:
            self.known[key] = self._compiled(name, function, args)
        note, out = self.known[key]
        if self.counts:
            self.notes.append(note)
        return out

    def _compiled(self, name: str, function: Any, args: Any) -> tuple[dict[str, Any], Any]:
        import jax

        start = time.perf_counter()
        lowered = function.lower(*args)
        program = lowered.compile()
        seconds = time.perf_counter() - start
        text, memory = program.as_text() or "", program.memory_analysis()
        if self.folder:
            with open(os.path.join(self.folder, f"{len(self.known):03}-{name}.txt"), "w") as file:
                file.write(text)
        out = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._named(s, x)),
            lowered.out_info,
            program.output_shardings,
        )
        arrays = [x for x in jax.tree.leaves((args, out)) if isinstance(x, jax.ShapeDtypeStruct)]
        note = {
            "name": name,
            "seconds": seconds,
            "arguments": memory.argument_size_in_bytes / MIB,
            "outputs": memory.output_size_in_bytes / MIB,
            "temporaries": memory.temp_size_in_bytes / MIB,
            **collectives(text, arrays),
        }
        print({k: v for k, v in note.items() if v}, file=sys.stderr, flush=True)
        return note, out

    def hold(self, walk: Any) -> None:
        """Notes what is held of a batch."""
        if self.counts:
            values = {id(x): x for x in [*walk.dense[0].values(), *walk.small[0].values()]}
            sizes = [
                math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
                for x in values.values()
            ]
            self.held = max(self.held, sum(sizes) / MIB)

    def _named(self, place: Any, x: Any) -> Any:
        """A sharding with the names of the mesh's axes."""
        import jax

        if isinstance(place, jax.sharding.NamedSharding):
            return place
        if place.is_fully_replicated:
            return jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        raise TypeError(f"{x.shape}: no axes of the mesh say how it lies: {place}")

    def rows(self) -> list[dict[str, Any]]:
        """A row per kind of program."""
        found = []
        for name in dict.fromkeys(n["name"] for n in self.notes):
            every = [n for n in self.notes if n["name"] == name]
            found.append(
                {
                    "program": name,
                    "calls": len(every),
                    "arguments MiB": max(n["arguments"] for n in every),
                    "outputs MiB": max(n["outputs"] for n in every),
                    "temporaries MiB": max(n["temporaries"] for n in every),
                    "collectives MiB": {
                        k: max(n["collectives"].get(k, 0) for n in every)
                        for k in sorted({k for n in every for k in n["collectives"]})
                    },
                    "whole": sorted({w for n in every for w in n["whole"]}),
                    "host MiB": max(n.get("host", 0) for n in every),
                    "compile s": sum({id(n): n["seconds"] for n in every}.values()),
                }
            )
        held = {"program": "held of a batch", "outputs MiB": self.held}
        return [*found, dict.fromkeys(found[0]) | held]


def _mark(x: Any) -> Any:
    """What a compiled program depends on of an argument."""
    if hasattr(x, "dtype"):
        return x.shape, str(x.dtype), getattr(x, "sharding", None)
    return x


def collectives(text: str, arrays: list[Any]) -> dict[str, Any]:
    """The largest result of each kind, and the spread arrays of which a chip is given all."""
    import hlo

    whole = {_squeezed(x.shape) for x in arrays if _parts(x) > 1 and len(_squeezed(x.shape)) > 1}
    largest: dict[str, float] = {}
    gathered = set()
    for shape, kind in COLLECTIVE.findall(text):
        sizes = hlo.size(shape)
        largest[kind] = max(largest.get(kind, 0), max(sizes, default=0) / MIB)
        for kind_of, axes in re.findall(r"\b([a-z]\w*)\[([\d,]+)\]", shape):
            if _squeezed(tuple(map(int, axes.split(",")))) in whole:
                gathered.add(f"{kind} {kind_of}[{axes}]")
    return {"collectives": largest, "whole": sorted(gathered)}


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n > 1)


def _parts(x: Any) -> int:
    """Over how many chips an array is split."""
    place = getattr(x, "sharding", None)
    return math.prod(x.shape) // max(math.prod(place.shard_shape(x.shape)), 1) if place else 1
