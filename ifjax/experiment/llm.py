"""A language model made smaller: checkpoint and text in, checkpoint and a table out.

A program of its own beside train.py, which trains classifiers on data sets with labels: here
nothing is trained, and no option is shared. ``python -m ifjax.experiment.llm --help``.
"""

import dataclasses
import functools
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import ifjax
from ifjax.data.progress import progress
from ifjax.data.text import plain_wikitext, windows
from ifjax.experiment.errors import UserError, user_error
from ifjax.experiment.options import option, parse
from ifjax.experiment.perplexity import perplexity
from ifjax.interop import Checkpoint, load_gguf, load_huggingface, load_tokenizer
from ifjax.interop.huggingface import overrides_for, save_huggingface, uniform_widths
from ifjax.models import keep_layers, layer_divergence, silence_layers
from ifjax.models.decoder import DecoderConfig, decoder
from ifjax.models.decoder_groups import sparsities
from ifjax.report import write_atomically
from ifjax.spec.spec import FusionSpec

PROGRAM = "python -m ifjax.experiment.llm"


@dataclasses.dataclass(frozen=True)
class Files:
    """Files."""

    checkpoint: Path | None = option(
        None,
        "The network: a folder of Hugging Face (config.json and safetensors; Llama, Mistral, "
        "Qwen2, Qwen3, Gemma2, Gemma3), or a GGUF file.",
        "PATH",
    )
    text: Path | None = option(
        None,
        "Text to calibrate on, and, where no other is given, to measure: then its first half "
        "calibrates and its second half measures.",
        "FILE",
    )
    test_text: Path | None = option(None, "Text to measure the perplexity of.", "FILE")
    tokenizer: Path | None = option(
        None, "A tokenizer.json; by default the one of the checkpoint.", "FILE"
    )
    work: Path | None = option(
        None,
        "A folder for finished layers of the reconstruction: after a kill the same command goes "
        "on with the next one.",
        "FOLDER",
    )
    out: Path | None = option(
        None, "The folder of the small checkpoint; it must not be there yet.", "FOLDER"
    )


@dataclasses.dataclass(frozen=True)
class Cut:
    """What is removed."""

    ffn: float = option(0.25, "Fraction of the feed-forward neurons of every layer.", "FRACTION")
    kv_heads: float = option(
        0.0, "Fraction of the key-value heads, with their queries.", "FRACTION"
    )
    query_heads: float = option(0.0, "Fraction of the query heads of a kv head.", "FRACTION")
    hidden: float = option(0.0, "Fraction of the hidden width.", "FRACTION")
    layers: int = option(
        0, "Whole layers, those whose loss changes the predictions least.", "NUMBER"
    )
    round_to: int = option(1, "Widths are multiples of it.", "NUMBER")


@dataclasses.dataclass(frozen=True)
class How:
    """How."""

    method: Literal["reconstruction", "prune", "fuse"] = option(
        "reconstruction",
        "reconstruction: chosen by what can be made up for, and made up for on the text; prune, "
        "fuse: by the weights alone.",
    )
    windows: int = option(32, "Windows of text to calibrate on.", "NUMBER")
    test_windows: int = option(24, "Windows of text to measure.", "NUMBER")
    length: int = option(512, "Tokens of a window.", "NUMBER")
    dtype: Literal["float32", "bfloat16"] = option("float32", "What is computed with and written.")
    mapped: bool = option(
        False,
        "Weights stay in the files, a layer at a time is in memory; small ones are in files of the "
        "work folder. The dtype must be that of the files.",
    )
    wikitext: bool = option(False, "The text is tokenised WikiText: spaces are set right.")


@dataclasses.dataclass(frozen=True)
class Options(Files, Cut, How):
    """Makes a language model smaller, without training, and writes it as a checkpoint.

    python -m ifjax.experiment.llm --checkpoint SmolLM2 --text valid.txt --out small
    """


class Job(NamedTuple):
    """What was checked, before anything is computed or written."""

    dense: Checkpoint
    config: DecoderConfig  # without the layers that go
    kept: list[int]  # of the layers
    spec: FusionSpec  # of the network with all layers
    overrides: dict[str, Any]
    calibration: np.ndarray
    test: np.ndarray
    tokenizer: Any


def main(options: Options) -> list[dict[str, Any]]:
    """Does all of it, and prints the table.

    Args:
        options: what to do.

    Returns:
        The rows, of the network before and after.

    Raises:
        UserError: for what the user can put right; nothing was written then.
    """
    job = prepare(options)
    assert options.out is not None
    config = job.config
    rows = [row("dense", job, job.dense.config, job.dense.params)]
    small = compressed(options, job)
    rows.append(row(options.method, job, config, small))
    if not all(math.isfinite(r["perplexity"]) for r in rows):
        raise UserError("--text: the perplexity is not finite; nothing was written")
    like = options.checkpoint if options.checkpoint and options.checkpoint.is_dir() else None
    with user_error("--out"):
        save_huggingface(options.out, config, small, job.dense.source, like=like)
        if like is None:
            job.tokenizer.save(str(options.out / "tokenizer.json"))
        content = {"rows": rows, "overrides": job.overrides, "options": settings(options)}
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(options.out / "compression.json", lambda file: file.write_text(text))
    print(f"\n{table(rows)}\n\nconfig.json: {json.dumps(job.overrides)}\n{options.out}")
    return rows


def prepare(options: Options) -> Job:
    """Reads and checks everything; writes nothing.

    Args:
        options: what to do.

    Returns:
        What is needed to do it.

    Raises:
        UserError: for what the user can put right, by the option that it is about.
    """
    for name in ("checkpoint", "text", "out"):
        if getattr(options, name) is None:
            raise UserError(f"--{name}: expected a path, got none; see --help")
    assert options.checkpoint is not None
    assert options.out is not None
    with user_error("--out"):
        check_folder(options.out, is_new=True)
    if options.work is not None:
        with user_error("--work"):
            if options.work.resolve().is_relative_to(options.out.resolve()):
                raise ValueError(f"{options.work}: lies in --out, which has to be new")
            check_folder(options.work, is_new=False)
    tokenizer_path = options.tokenizer or options.checkpoint
    with user_error("--checkpoint"):
        if not options.checkpoint.exists():
            raise ValueError(f"{options.checkpoint}: no such file or folder")
        is_gguf = options.checkpoint.suffix == ".gguf"
        with told("read", "tensors") as tell:
            read: Any = load_gguf if is_gguf else load_huggingface
            if options.mapped:
                if is_gguf:
                    raise ValueError("--mapped: expected a folder of safetensors, got a GGUF file")
                read = functools.partial(load_huggingface, scan=False, mapped=True)
            network = read(options.checkpoint, dtype=options.dtype, progress=tell)
    with user_error("--tokenizer"):
        tokenizer = load_tokenizer(tokenizer_path)
    calibration, test = texts(options, tokenizer)
    vocabulary = network.params["embedding"].shape[0]
    most = max(int(calibration.max()), int(test.max()))
    if most >= vocabulary:
        raise UserError(
            f"--tokenizer: gives token {most}, and the network knows {vocabulary}; give its own"
        )
    kept = [*range(uniform_widths(network.params).layers)]
    if options.layers:
        with user_error("--layers"):
            kept = kept_layers(network, options.layers, calibration)
    kinds = {k: getattr(options, k) for k in ("ffn", "kv_heads", "query_heads", "hidden")}
    asked = {kind: share for kind, share in kinds.items() if share}
    method: dict[str, Any] = {"importance": "reconstruction", "method": "prune"}
    if options.method != "reconstruction":
        method = {"method": options.method}
    with user_error(" ".join(f"--{k.replace('_', '-')} {v}" for k, v in asked.items()) or "--ffn"):
        graph = ifjax.trace(functools.partial(decoder, network.config), network.params, test[:1])
        fractions = sparsities(graph, asked)
        if not asked and options.layers:  # layers alone
            fractions = dict.fromkeys((group.name for group in graph.groups), 0.0)
        spec = graph.spec(fractions, round_to=options.round_to, uniform=True, **method)
        config = network.config.with_layers(kept)
        small = jax.eval_shape(
            lambda params: keep_layers(network.config, params, kept)[1],
            spec.small_struct(network.params),
        )
        found = overrides_for(config, small, network.source)
    return Job(network, config, kept, spec, found, calibration, test, tokenizer)


def check_folder(folder: Path, is_new: bool) -> None:
    """Whether a folder can be written to, or made, tried where it or its first parent is.

    Raises:
        ValueError: where that is a file or cannot be written to, or a new one is there.
    """
    if is_new and os.path.lexists(folder):
        raise ValueError(f"{folder} is there; give a new folder")
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    try:
        tempfile.TemporaryDirectory(dir=there).cleanup()
    except OSError as error:
        raise ValueError(
            f"{folder}: nothing can be written in {there} ({error.strerror}); give another place"
        ) from error


def kept_layers(network: Checkpoint, count: int, tokens: np.ndarray) -> list[int]:
    """The layers without those that change the predictions least, each taken alone.

    Raises:
        ValueError: where no layer would be left.
    """
    layers = uniform_widths(network.params).layers
    if not 0 < count < layers:
        raise ValueError(f"expected 1 to {layers - 1} of the {layers} layers, got {count}")
    found = layer_divergence(network.config, network.params, tokens[:4])
    return sorted(np.argsort(found, kind="stable")[count:].tolist())


def compressed(options: Options, job: Job) -> Any:
    """The small parameters: what the layers that go have added is made up for by the others."""
    config, params = job.dense.config, job.dense.params
    gone = sorted({*range(uniform_widths(params).layers)} - {*job.kept})
    altered = silence_layers(params, gone) if gone else None
    with user_error("--method"):
        if options.method != "reconstruction":
            small = ifjax.fuse_params(params if altered is None else altered, job.spec)
        elif job.spec.structure.widths or gone:
            apply_fn = functools.partial(decoder, config)
            batches = [job.calibration[i : i + 1] for i in range(len(job.calibration))]
            small, _ = ifjax.compress(
                apply_fn, params, job.spec, batches, folder=options.work, altered=altered
            )
        else:
            small = params
    return keep_layers(config, small, job.kept)[1] if gone else small


def texts(options: Options, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Windows to calibrate on, and to measure.

    Args:
        options: what to do.
        tokenizer: of the network.

    Returns:
        Tokens ``[count, length]`` of both.

    Raises:
        UserError: for a file that cannot be read, or a text that is too short.
    """

    def read(name: str, path: Path) -> list[int]:
        with user_error(name):
            text = path.read_text(encoding="utf-8")
            return tokenizer.encode(plain_wikitext(text) if options.wikitext else text).ids

    assert options.text is not None
    tokens = read("--text", options.text)
    if options.test_text is None:
        first, second = tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]
        parts = "--text, first half", "--text, second half, which is measured on"
    else:
        first, second = tokens, read("--test-text", options.test_text)
        parts = "--text", "--test-text"
    with user_error(parts[0]):
        calibration = windows(first, options.windows, options.length)
    with user_error(parts[1]):
        return calibration, windows(second, options.test_windows, options.length)


def row(name: str, job: Job, config: DecoderConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the table says of a network.

    Args:
        name: of the row.
        job: what was prepared.
        config: of the network.
        params: the network's.

    Returns:
        Widths, sizes and perplexity.
    """
    leaves = jax.tree.leaves(params)
    widths = uniform_widths(params)
    with told(f"perplexity, {name}", "windows") as tell:
        found = perplexity(config, params, job.test, progress=tell)
    return {
        "network": name,
        "layers": widths.layers,
        "hidden": widths.hidden,
        "ffn": widths.ffn,
        "heads": f"{widths.query_heads}/{widths.kv_heads}",
        "weights": sum(x.size for x in leaves),
        "MiB": sum(x.size * x.dtype.itemsize for x in leaves) / 2**20,
        "perplexity": found,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows, aligned.

    Example:
        >>> print(table([{"network": "dense", "weights": 1200, "perplexity": 22.674}]))
        network  weights  perplexity
        -------  -------  ----------
          dense    1,200       22.67
    """
    cells = [[*rows[0]]]
    cells += [
        [f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v for v in r]
        for r in ([*r.values()] for r in rows)
    ]
    wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * w for w in wide])
    return "\n".join(
        "  ".join(cell.rjust(w) for cell, w in zip(line, wide, strict=True)) for line in cells
    )


def settings(options: Options) -> dict[str, Any]:
    """The options as JSON has them."""
    found = dataclasses.asdict(options)
    return {k: str(v) if isinstance(v, Path) else v for k, v in found.items()}


@contextmanager
def told(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function that is told how much of how much is done, and shows it."""
    with progress(0, what, unit) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell


def cli(arguments: Sequence[str] | None = None) -> int:
    """Runs :func:`main`.

    Returns:
        0; 2 for what the user can put right, 130 for Control-C.
    """
    options = parse(Options, PROGRAM, sys.argv[1:] if arguments is None else arguments)
    try:
        main(options)
    except UserError as error:
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(cli())
