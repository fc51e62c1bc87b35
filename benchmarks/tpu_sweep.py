"""One layer's step of `ifjax.compress` on a TPU pod, compiled ahead of time without one.

With ``jax[tpu]`` a CPU compiles for described chips; nothing is run. Two layers of a Llama-3-70B in
bfloat16, half of the feed-forward neurons and half of the queries of every key-value head cut, go
through the sweep as shapes: every program that it would run on a mesh is compiled instead, as
`benchmarks/tpu.py` does with fusion. Leaves are fully sharded over the first axis of the mesh and
tensor-parallel over the second, windows of text lie over the first. Counted are the programs of the
second layer, for what it reads is the small network's already.

* arguments, outputs, temporaries: MiB per chip, the largest of a program's calls. What is held of a
  batch from one program to the next stands as outputs in the last row.
* collectives: MiB on a chip of the largest result of each kind.
* whole: arrays that lie spread over chips, and that some collective brings whole to one.
* host: MiB of a unit's weights in double precision, which come from the chips leaf by leaf to be
  compared and written, and go back to where they lay.

    pip install -e '.[test,tpu]'
    python benchmarks/tpu_sweep.py
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tpu_programs import MIB, Recorder

TOKENS = 2048  # of a window; each share of the first axis has one
CASES = {"v5e 16 x 16": ("v5e:16x16", (32, 8)), "v5p 4 x 4 x 4": ("v5p:4x4x4", (8, 8))}
SIZES = {
    "small": {"hidden": 512, "ffn": 2048, "query_heads": 16, "kv_heads": 8, "head_dim": 32},
    "70B": {"hidden": 8192, "ffn": 28672, "query_heads": 64, "kv_heads": 8, "head_dim": 128},
}


def main() -> None:
    """Makes the tables, a process per case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=[*CASES])
    parser.add_argument("--size", default="70B", choices=[*SIZES])
    parser.add_argument("--text", help="a folder for the programs' text")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(args.child, args.size, args.text)))
        return
    import record
    from tpu import ENVIRONMENT

    rows = []
    for name in args.cases:
        command = [sys.executable, __file__, "--child", name, "--size", args.size]
        command += ["--text", args.text] if args.text else []
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, **ENVIRONMENT},
        )
        rows += [{"chips": name, **row} for row in json.loads(done.stdout.splitlines()[-1])]
    print(record.markdown(rows))
    rows = record.with_earlier("tpu_sweep", rows, ["chips", "program"])
    print("written:", record.write("tpu_sweep", rows).name)


def measured(case: str, size: str, folder: str | None) -> list[dict[str, Any]]:
    """The programs of the second layer on one mesh, those of a kind together."""
    import jax
    import numpy as np
    from jax.experimental import topologies

    jax.default_backend = lambda: "tpu"  # what is asked what it works on
    topology, shape = CASES[case]
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    devices = np.array(found.devices).reshape(shape)
    mesh = jax.sharding.Mesh(devices, ("data", "model"))
    recorder = Recorder(mesh, folder)
    swept(recorder, SIZES[size])
    return recorder.rows()


def swept(recorder: Recorder, sizes: dict[str, int]) -> None:
    """Two layers through the sweep, as shapes."""
    import jax
    import jax.numpy as jnp

    import ifjax
    from ifjax.jaxprs.arguments import Arguments
    from ifjax.models import DecoderConfig, DecoderWidths, init_decoder
    from ifjax.models.decoder import decoder_layer
    from ifjax.reconstruction.journal import Journal
    from ifjax.reconstruction.sweep import Given, sweep
    from ifjax.reconstruction.unroll import unrolled

    widths = DecoderWidths(vocabulary=8, layers=2, **sizes)
    params = jax.eval_shape(
        lambda key: init_decoder(key, widths, scan=False)["layers"], jax.random.key(0)
    )
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    config = DecoderConfig(1e-5)

    def apply_fn(layers: Any, x: Any) -> Any:
        return functools.reduce(lambda x, layer: decoder_layer(config, layer, x), layers, x)

    shape = (recorder.mesh.shape["data"], TOKENS, widths.hidden)
    graph = ifjax.trace(apply_fn, params, jax.ShapeDtypeStruct(shape, jnp.bfloat16))
    cut = {g.name: 0.5 for g in graph.groups if "gate" in g.name or "query heads" in g.name}
    rest = [g.name for g in graph.groups if g.name not in cut]
    spec = graph.spec(cut, exclude=rest, importance="reconstruction")
    place = functools.partial(jax.sharding.NamedSharding, recorder.mesh)
    spec_of = jax.sharding.PartitionSpec
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place(spec_of("data")))
    placed = jax.tree_util.tree_map_with_path(
        lambda path, w: jax.ShapeDtypeStruct(
            w.shape, w.dtype, sharding=place(spec_of(*lying(path[-1].key)))
        ),
        params,
    )
    flat = unrolled(apply_fn, params, spec.structure, (x,), {})
    walk = shapes_walk(recorder, flat, Arguments.split((x,), {}), jax.tree.leaves(placed))
    with patched(recorder, walk):
        sweep(walk, Given({}), lambda groups: {}, [False], Journal())


def lying(leaf: str) -> tuple[Any, ...]:
    """How a leaf lies: its stream over the first axis, its heads or neurons over the second."""
    if leaf in ("out", "down"):
        return ("model", None, "data") if leaf == "out" else ("model", "data")
    return ("data", "model") if leaf in ("query", "key", "value", "gate", "up") else ()


def shapes_walk(recorder: Recorder, flat: Any, arguments: Any, leaves: list[Any]) -> Any:
    """A walk at its beginning whose leaves and values are shapes."""
    import jax

    from ifjax.graph.facts.sites import find_sites
    from ifjax.graph.resized import resized
    from ifjax.jaxprs.evaluate import bind
    from ifjax.jaxprs.program import flatten
    from ifjax.reconstruction.walk import Walk

    class Shapes(Walk):
        """A walk that compiles what is made of parameters alone, and takes leaves as they are."""

        def parameter(self, number: int, dense: bool) -> Any:
            held = self.full if dense else self.leaves
            if number in held:
                return held[number]
            if number in self.program.constants:
                return self._constant(number, dense)
            step = self.program.steps[self.program.made[number]]
            operands = [self.parameter(n, dense) for n in step.inputs]
            make = functools.partial(bind if dense else self.resized.rebuild, step)
            found = jax.jit(lambda args: make(args))
            results = recorder("what is made of parameters alone", found, operands)
            return dict(zip(step.outputs, results, strict=True))[number]

        def check_finite(self, *args: Any, **kwargs: Any) -> None:
            """There are no numbers."""

        def write(self, leaf: int, value: Any) -> None:
            self.leaves[leaf] = value
            self.changed.add(leaf)

    made = resized(flat.apply_fn, flat.structure, flat.params, arguments, {})
    made.widths.clear()
    made.parts.clear()
    inputs = len(made.analysis.inputs)
    program = flatten(made.analysis.frame, [False] * len(leaves) + [True] * inputs)
    full = dict(zip(program.inputs, leaves, strict=False))
    values = dict(zip(program.inputs[len(leaves) :], arguments.arrays, strict=True))
    sites = find_sites(program)
    return Shapes(made, program, sites, full, dict(full), [values], [dict(values)])


@contextlib.contextmanager
def patched(recorder: Recorder, walk: Any) -> Iterator[None]:
    """Compiles where the sweep would run."""
    from unittest import mock

    import jax

    from ifjax.reconstruction import segments
    from ifjax.reconstruction import sweep as at

    def kept(x: Any, axes: Any, event: Any) -> Any:
        from ifjax.parallel.sharding import fitted
        from ifjax.reconstruction.events import narrow

        function = functools.partial(narrow, axes=axes, event=event)
        new = jax.eval_shape(function, x)
        if new.shape == x.shape:
            return x
        place = fitted(x.sharding, new.shape)
        return recorder("neurons taken", jax.jit(function, out_shardings=place), x)

    evaluate = segments._call
    with (
        mock.patch.object(segments, "_call", lambda *args: recorder("evaluation", evaluate, *args)),
        mock.patch("ifjax.reconstruction.walk.narrow", kept),
        mock.patch.object(at, "_choose_late", functools.partial(chosen, recorder)),
        mock.patch.object(at, "solve", functools.partial(solved, recorder)),
    ):
        yield


def chosen(recorder: Recorder, walk: Any, group: Any, taps: Any, *_: Any) -> None:
    """A choice: the Gram matrix of what is read, and one round of the elimination."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ifjax.activations import moments
    from ifjax.parallel.matrices import spread
    from ifjax.reconstruction import elimination
    from ifjax.reconstruction.choice import CANDIDATES
    from ifjax.reconstruction.taps import form_of, units_of

    recorder.hold(walk)
    [tap] = taps
    x, mesh = walk.value(0, tap.input, False), recorder.mesh
    gram = recorder(
        f"{_kind(group.name)}: Gram matrix",
        moments._channel_moments,
        form_of(walk, tap.step, tap.side),
        x,
        mesh,
    )
    entries = math.prod(group.batch)
    n = group.size * entries
    if units_of(walk, tap, group).shape[1] == n:  # on the device: a column for each
        outputs = walk.parameter(tap.step.inputs[1 - tap.side], False).shape[-1]
        shape = (1, n, outputs)
        right = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=spread(mesh, shape))
        start = jax.ShapeDtypeStruct((), jnp.float32)
        name = f"{_kind(group.name)}: choice begun"
        begun = recorder(name, elimination._begun, gram, right, False, start, mesh)
        quota, taken = jax.ShapeDtypeStruct((entries,), jnp.int32), jax.ShapeDtypeStruct((n,), bool)
        name = f"{_kind(group.name)}: round of the choice"
        recorder(name, elimination._round, *begun, quota, taken, False, CANDIDATES, mesh)
    index = np.broadcast_to(np.arange(group.kept), (*group.batch, group.kept))
    walk.keep(group, index)


def solved(recorder: Recorder, walk: Any, unit: Any, held: Any, names: dict[int, str]) -> Any:
    """A solve: the moments of a batch, a ridge solution, its error."""
    import jax
    import jax.numpy as jnp

    from ifjax.activations import moments
    from ifjax.activations.moments import kernel
    from ifjax.parallel.matrices import spread
    from ifjax.reconstruction import ridge_on_device
    from ifjax.reconstruction.solve import Solved, _target
    from ifjax.reconstruction.taps import form_of

    recorder.hold(walk)
    [site], mesh = unit.sites, recorder.mesh
    form, weight = form_of(walk, site.step, site.side), walk.parameter(site.weight, False)
    leaf = _kind(names[site.leaves[0]])
    read = {n for p in unit.places for n in walk.program.steps[p].inputs} | {unit.end}
    small = {n: x for n in read if (x := walk.small[0].get(n)) is not None}
    dense = {n: walk.dense[0][n] for n in {unit.end}}

    @jax.jit
    def target(small: Any, dense: Any) -> Any:
        import copy

        one = copy.copy(walk)
        one.small, one.dense = [small], [dense]
        return _target(one, unit, (site,), site, 0)[0]

    wanted = recorder(f"{leaf}: target", target, small, dense)
    x = walk.value(0, site.input, False)
    sums = recorder(
        f"{leaf}: moments", moments._moments, (form,), (weight.shape,), (x,), wanted, True, mesh
    )
    shape = jax.eval_shape(functools.partial(kernel, form), weight).shape
    start = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=spread(mesh, shape))
    number = jax.ShapeDtypeStruct((), jnp.float32)
    name = f"{leaf}: ridge solution"
    found, offsets = recorder(name, ridge_on_device._solved, sums, start, number, False, mesh)
    if recorder.counts:
        recorder.notes[-1]["host"] = 8 * math.prod(shape) / MIB
    recorder(f"{leaf}: its error", ridge_on_device._errors, sums, found, offsets, mesh)
    walk.changed.update(site.leaves)
    if "0/down" in names[site.leaves[0]]:
        recorder.counts = True
    nan = math.nan
    return Solved((names[site.leaves[0]],), shape[1], 0, 0.01, nan, nan, nan, nan)


def _kind(name: str) -> str:
    """A name without the number of the layer."""
    return re.sub(r"^\d+/", "", name)


if __name__ == "__main__":
    main()
