"""`compress` on a decoder that lies in files: what is in memory, beside the same one in memory.

Random weights, 1 GiB in float32, 28 layers in a list, half of the feed-forward neurons of each cut;
queries and keys are wide, so that there is much to read and to write and little to solve. Each row
is a process of its own: the leaves are read into memory, or are memory maps of the safetensors
files, and those that change are maps of files too.

* anonymous: MiB of memory that the system cannot take back, the largest that was seen; what the
  process has before it opens the files is subtracted.
* small: a hash of the bytes of all small leaves.

    pip install -e '.[llm]'
    python benchmarks/from_file.py     # a few minutes
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

MIB = 2**20
HIDDEN, HEADS, QUERY, VALUE, FFN, VOCABULARY = 512, 8, 1024, 64, 512, 256
SHAPES = {
    "attention_norm": (HIDDEN,),
    "query": (HIDDEN, HEADS, QUERY),
    "key": (HIDDEN, HEADS, QUERY),
    "value": (HIDDEN, HEADS, VALUE),
    "out": (HEADS, VALUE, HIDDEN),
    "ffn_norm": (HIDDEN,),
    "gate": (HIDDEN, FFN),
    "up": (HIDDEN, FFN),
    "down": (FFN, HIDDEN),
}
ENDS = {"embedding": (VOCABULARY, HIDDEN), "norm": (HIDDEN,)}


def main() -> None:
    """Makes the table, a process per row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(args.child[0], Path(args.child[1]))))
        return
    import record

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        total = write(Path(folder), args.layers)
        for leaves in ("in memory", "in files"):
            command = [sys.executable, __file__, "--child", leaves, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({"leaves": leaves, "weights MiB": total / MIB, **found})
            print(rows[-1], file=sys.stderr, flush=True)
    if len({row["small"] for row in rows}) > 1:
        raise SystemExit("the small leaves differ")
    if rows[1]["anonymous MiB"] > rows[0]["anonymous MiB"] - total / MIB / 2:
        raise SystemExit(f"weights that lie in files are in memory too: {rows}")
    print(record.markdown(rows))
    print("written:", record.write("from_file", rows).name)


def write(folder: Path, layers: int) -> int:
    """Random weights, a file per layer; their bytes."""
    from safetensors.numpy import save_file

    rng, total = np.random.default_rng(0), 0
    for number in range(-1, layers):
        shapes = ENDS if number < 0 else SHAPES
        arrays = {
            name: rng.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5)
            if len(shape) > 1
            else np.ones(shape, np.float32)
            for name, shape in shapes.items()
        }
        save_file(arrays, folder / f"{number + 1:03}.safetensors")
        total += sum(x.nbytes for x in arrays.values())
    return total


def measured(leaves: str, folder: Path) -> dict[str, Any]:
    """One row."""
    import ifjax
    from ifjax.interop.files import load_safetensors, map_safetensors
    from ifjax.models import DecoderConfig
    from ifjax.models.decoder import decoder

    read = load_safetensors if leaves == "in memory" else map_safetensors
    before = anonymous()
    peak = Peak()
    ends, *layers = (read(file) for file in sorted(folder.glob("*.safetensors")))
    params = {**ends, "layers": layers}
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (4, 1, 32))
    apply_fn = functools.partial(decoder, DecoderConfig(1e-5))
    spec = ifjax.trace(apply_fn, params, tokens[0]).spec(
        0.5, include="*gate*", importance="reconstruction"
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        kept = {"folder": work} if leaves == "in files" else {}
        small, _ = ifjax.compress(apply_fn, params, spec, [*tokens], **kept)
        seconds = time.perf_counter() - start
        most = peak.stop() - before
    found = hashlib.sha256()
    for layer in [{n: small[n] for n in ENDS}, *small["layers"]]:
        for name in sorted(layer):
            found.update(np.ascontiguousarray(layer[name]).view(np.uint8))
    return {"anonymous MiB": most / MIB, "seconds": seconds, "small": found.hexdigest()[:16]}


def anonymous() -> int:
    """Bytes of memory that are not parts of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("expected RssAnon in /proc/self/status: Linux tells it")


class Peak:
    """The largest of `anonymous`, looked at every ten milliseconds."""

    def __init__(self) -> None:
        """Begins to look."""
        self.most, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.01):
            self.most = max(self.most, anonymous())

    def stop(self) -> int:
        """Ends looking; bytes."""
        self._done.set()
        self._thread.join()
        return self.most


if __name__ == "__main__":
    main()
