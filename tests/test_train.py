"""The main job, in-process on tiny settings, and every way to call it wrongly."""

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

import ifjax
from ifjax import data, importance, models
from ifjax.experiment import compression, stages
from ifjax.experiment.config import Importance
from ifjax.experiment.curves import read
from ifjax.experiment.network import create
from ifjax.experiment.options import parse
from ifjax.experiment.runner import evaluator
from ifjax.training.evaluate import Evaluation

SCRIPT = Path(__file__).parents[1] / "train.py"


def load_train() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


train = load_train()

TINY = train.Config(
    model="mlp",
    epochs=3,
    augment=False,
    sparsities=(0.5,),
    fine_tune_epochs=1.0,
    checkpoint_every=1000,
    progress=False,
)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled programs of the tests stay out of the user's cache directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclasses.dataclass(frozen=True)
class Run:
    out: Path
    rows: list
    printed: str


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One whole run, which several tests look at."""
    out = tmp_path_factory.mktemp("train") / "results"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        rows = train.main(dataclasses.replace(TINY, out=out), "python train.py --tiny")
    return Run(out, rows, printed.getvalue())


def test_rows_are_the_dense_network_and_every_method(tiny_run: Run) -> None:
    assert [(row.sparsity, row.method) for row in tiny_run.rows] == [
        (0.0, "dense"),
        (0.5, "plain pruning"),
        (0.5, "Intra-Fusion"),
        (0.5, "reconstruction"),
    ]
    dense, *small = tiny_run.rows
    assert dense.weights == 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10
    assert dense.flops == 2 * (64 * 128 + 128 * 128 + 128 * 10)
    assert dense.fine_tuned is None
    for row in small:
        assert row.weights == 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
        assert row.flops == 2 * (64 * 64 + 64 * 64 + 64 * 10)
        assert row.fine_tuned is not None
        assert row.fine_tuned > 0.5


def test_results_hold_the_rows_and_what_they_were_made_with(tiny_run: Run) -> None:
    content = json.loads((tiny_run.out / "results.json").read_text())
    assert content["rows"] == [dataclasses.asdict(row) for row in tiny_run.rows]
    assert content["command"] == "python train.py --tiny"
    assert content["seed"] == 0
    assert content["config"]["model"] == "mlp"
    assert content["config"]["sparsities"] == [0.5]
    assert content["versions"]["jax"] == jax.__version__
    assert content["seconds"] > 0


def test_table_and_groups_are_printed(tiny_run: Run) -> None:
    for text in (train.report.table(tiny_run.rows), "fc1/kernel", "fc2/kernel"):
        assert text in tiny_run.printed


def test_the_folder_holds_the_results_and_nothing_else(tiny_run: Run) -> None:
    assert sorted(path.name for path in tiny_run.out.iterdir()) == [
        "accuracy.png",
        "dense",
        "fuse-0.5",
        "prune-0.5",
        "reconstruct-0.5",
        "results.json",
        "run.json",
        "tensorboard",
    ]
    assert (tiny_run.out / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_saved_networks_reach_the_accuracy_of_the_table(tiny_run: Run) -> None:
    dataset = data.load("digits")
    network = create(TINY, dataset)
    for row in tiny_run.rows:
        variables, spec = ifjax.load(tiny_run.out / row.checkpoint)
        small = network.shrink(variables, spec)
        found = evaluator(TINY, dataset, small)(variables).accuracy
        assert found == (row.fine_tuned or row.accuracy)
        assert spec.weights()[1] == row.weights


def test_the_same_seed_gives_the_same_rows(tiny_run: Run, tmp_path: Path) -> None:
    again = train.main(dataclasses.replace(TINY, out=tmp_path))
    assert again == tiny_run.rows


def test_a_checkpoint_takes_the_place_of_training(tiny_run: Run, tmp_path: Path) -> None:
    config = dataclasses.replace(
        TINY,
        checkpoint=tiny_run.out / "dense",
        out=tmp_path / "new" / "results",
        methods=("fuse",),
        fine_tune_epochs=0.0,
    )
    dense, fused = train.main(config)
    assert dense == tiny_run.rows[0]
    assert fused == dataclasses.replace(tiny_run.rows[2], fine_tuned=None)


def test_a_cut_that_leaves_next_to_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the method that fell below a tenth of the dense accuracy alone, and once."""
    found = iter([0.01, 0.5, 0.9])

    class Told:
        def __call__(self, variables: object) -> Evaluation:
            return Evaluation(next(found), loss=1.0, count=1)

        def latency(self, variables: object) -> float:
            return 1.0

    monkeypatch.setattr(compression, "evaluator", lambda *_: Told())
    config = dataclasses.replace(TINY, epochs=1, fine_tune_epochs=0.0, out=tmp_path)
    (dense, *_) = train.main(config)
    lines = [line for line in capsys.readouterr().out.splitlines() if "less than a tenth" in line]
    assert lines == [
        "plain pruning 50%: accuracy 1.00% (less than a tenth of the dense "
        f"{dense.accuracy:.2%}: cut less, or train on)"
    ]
    with pytest.raises(train.UserError, match="holds a finished run of the same settings"):
        train.main(config)


def test_batch_norms_that_have_not_settled_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(
        TINY, model="cnn", epochs=1, batch_size=64, fine_tune_epochs=0.0, out=tmp_path
    )
    train.main(config)
    printed = capsys.readouterr().out
    assert printed.count("of the running statistics is what they began with") == 1


@pytest.mark.slow
def test_batch_norm_networks_go_through(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, model="cnn", out=tmp_path)
    rows = train.main(config)
    assert rows[0].accuracy > 0.9
    assert all(row.weights < 0.4 * rows[0].weights for row in rows[1:])
    assert all(row.fine_tuned > 0.6 for row in rows[1:])


def test_nan_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "mlp", "--lr", "1e30", "--no-progress", "--out", str(tmp_path / "out")]
    assert train.cli(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("train.py: stopped: the loss is ")
    assert "at step " in error
    assert "(learning rate " in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--sparsities 1.0", "--sparsities: each must lie between 0 and 1, got 1.0"),
        ("--sparsities 0.5 -0.1", "--sparsities: each must lie between 0 and 1, got -0.1"),
        ("--sparsities nan", "--sparsities: each must lie between 0 and 1, got nan"),
        ("--sparsities 0.5 0.5", "--sparsities: expected one or more different values"),
        ("--sparsities", "--sparsities: expected one or more different values"),
        ("--methods", "--methods: expected one or more different values"),
        ("--importances l1 l1", "--importances: expected one or more different values"),
        ("--importances bn_scale", "--importances: "),
        ("--importances chip --calibration-images 2000", "--calibration-images: 2000 is more than"),
        ("--target weights --sparsities 0.999", "0.999 of the weights cannot be removed"),
        ("--train-images 0", "--train-images: must be at least 1, got 0"),
        ("--train-images 2000", "--train-images: digits has 1438, got 2000"),
        ("--train-images 20", "--batch-size: 64 is more than the 20 training images"),
        ("--width 0.5", "--width: mlp has no such choice"),
        ("--width 0", "--width: must be positive, got 0"),
        ("--stem cifar", "--stem: mlp has no such choice"),
        ("--shortcut B", "--shortcut: mlp has no such choice"),
        ("--rounds 0", "--rounds: must be at least 1, got 0"),
        ("--rounds 2 --fine-tune-epochs 0", "--rounds: there is nothing between the rounds"),
        ("--rounds 2 --per-group", "--rounds: --per-group cuts without fine-tuning"),
        ("--per-group --target weights", "--target: --per-group cuts shares of a group's neurons"),
        ("--folds 3", "--folds: there are no folds with --mode compress"),
        ("--no-whole", "--whole: there are no folds with --mode compress"),
        ("--mode fap --folds 1", "--folds: must be at least 2, got 1"),
        ("--mode fap --folds 40", "--folds: expected min_size in 1..35"),
        ("--mode fap --alpha 2", "--alpha: only --split dirichlet has one"),
        ("--mode fap --split dirichlet --alpha 0", "--alpha: must be positive, got 0"),
        ("--mode paf --rounds 2", "--rounds: --mode paf prunes before it fuses"),
        ("--mode paf --per-group", "--per-group: goes with --mode compress, got --mode paf"),
        ("--label-noise 1", "--label-noise: must lie in [0, 1), got 1"),
        ("--coordinator here", "--coordinator: expected HOST:PORT or 'auto'"),
        ("--processes 2", "--coordinator: expected a coordinator"),
        ("--eval-every -1", "--eval-every: must be at least 0, got -1"),
        ("--checkpoint-every 0", "--checkpoint-every: must be at least 1, got 0"),
        ("--milestones 3", "milestones are for the schedule 'step'"),
        ("--schedule step --milestones 6 12", "--milestones: must lie within the 12 epochs"),
        ("--schedule step --milestones 3 --warmup 0.5", "between the warm-up's"),
        ("--gamma 0", "gamma must lie in (0, 1]"),
        ("--clip-norm 0", "clip_norm must be positive"),
        ("--epochs 0", "--epochs: must be at least 1, got 0"),
        ("--batch-size 0", "--batch-size: must be at least 1, got 0"),
        ("--batch-size 5000", "--batch-size: 5000 is more than the 1438 training images"),
        ("--fine-tune-epochs -1", "--fine-tune-epochs: must be at least 0, got -1"),
        ("--seed -1", "--seed: must be at least 0, got -1"),
        ("--lr nan", "learning_rate must be finite"),
        ("--fine-tune-lr -1", "learning_rate must be finite"),
        ("--warmup 1", "warmup must lie in [0, 1)"),
        ("--label-smoothing 1", "--label-smoothing: must lie in [0, 1)"),
        ("--epsilon 0", "epsilon must be positive"),
        ("--include nothing*", "nothing*"),
        ("--exclude nothing*", "nothing*"),
        ("--data cifar10 --data-dir {empty}", "--data: expected cifar10 prepared"),
        ("--checkpoint {empty}/missing", "--checkpoint: there is no"),
        ("--checkpoint {empty}", "--checkpoint: "),
        ("--checkpoint {compressed}", "was compressed already; start from a dense network"),
        ("--model cnn --checkpoint {dense}", "is no cnn for digits: expected"),
        ("--out {file}", "is a file, expected a folder"),
        ("--out {results}", "is not empty; pass --overwrite or another folder"),
        ("--out {unfinished}", "unfinished run of other settings: --batch-size is 32 there, 64"),
        ("--out {unfinished} --no-resume", "is not empty; pass --overwrite or another folder"),
        ("--out {unfinished}/run.json", "is a file, expected a folder"),
    ],
)
def test_bad_input_is_told_in_one_line_and_nothing_is_written(
    arguments: str,
    message: str,
    tiny_run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("kept")
    defaults = train.Config(model="mlp")
    there = train.settings(dataclasses.replace(defaults, batch_size=32))
    with train.Journal(tmp_path / "unfinished", there, None):
        pass
    before = sorted(tmp_path.rglob("*"))
    places = {
        "empty": tmp_path / "empty",
        "file": tmp_path / "file",
        "compressed": tiny_run.out / "fuse-0.5",
        "dense": tiny_run.out / "dense",
        "results": tiny_run.out,
        "unfinished": tmp_path / "unfinished",
    }
    given = [word.format_map(places) for word in arguments.split(" ")]
    model = [] if "--model" in given else ["--model", "mlp"]
    assert train.cli([*model, *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_truncated_checkpoint_is_told_in_one_line(tiny_run: Run, tmp_path: Path) -> None:
    """As a program of its own: reads that orbax had in flight end noisily in a test process."""
    copy = shutil.copytree(tiny_run.out / "dense", tmp_path / "truncated")
    files = [path for path in copy.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    options = ["--model", "mlp", "--checkpoint", str(copy), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(
        f"train.py: error: --checkpoint: {copy}: not a complete checkpoint"
    )
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", ["--data mnist", "--model vgg", "--epochs many", "--unknown"])
def test_words_the_command_line_does_not_know_end_with_2(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train.cli(arguments.split())
    assert stop.value.code == 2
    assert arguments.split()[0] in capsys.readouterr().err


def shown_help(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        train.cli(["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_explains_every_option_in_its_section(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown_help(capsys)
    places = {
        "network": ("model", "width", "checkpoint"),
        "data": ("data", "data-dir", "augment"),
        "training": ("epochs", "learning-rate, --lr", "fine-tune-epochs"),
        "what is cut": ("sparsities", "target", "include", "per-group"),
        "how": ("methods", "importances, --importance", "solver", "merge", "rounds"),
        "split data": ("mode", "folds", "split", "fuse-on", "whole"),
        "several hosts": ("coordinator", "processes", "lost-after"),
        "running": ("out", "resume", "seed", "progress", "compile-cache"),
    }
    titles = [line.rstrip(":") for line in text.splitlines() if re.match(r"[a-z ]+:$", line)]
    titles = titles[titles.index("network") :]
    assert titles == [*places, "help"]
    for title, options in places.items():
        section = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        for option in options:
            assert f"\n  --{option}" in f"\n{section}"
    for field in dataclasses.fields(train.Config):
        assert len(re.findall(rf"^  --{field.name.replace('_', '-')}\b", text, re.M)) >= 1


@pytest.mark.parametrize("columns", [62, 80, 250])
def test_no_line_of_the_help_is_broken(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line ends where the first word of the next one finds no room."""
    monkeypatch.setenv("COLUMNS", str(columns))
    width = min(columns - 2, 100)
    lines = shown_help(capsys).split("\nnetwork:\n")[1].splitlines()
    assert max(map(len, lines)) <= width
    pairs = [
        (line, after)
        for line, after in itertools.pairwise(lines)
        if after.startswith(" " * 26) and line[24:26] == "  "
    ]
    assert len(pairs) > 40
    for line, after in pairs:
        words = after.split()
        word = " ".join(words[:2]) if words[0] == "(default:" else words[0]
        assert len(f"{line} {word}") > width


def test_values_of_the_help_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown_help(capsys)
    for name in models.NAMES:
        assert re.search(rf"\b{name}\b", text)
    for clumsy in ("None", "DATA_DIR", "{'", "typing", "Path", "INT", "FLOAT"):
        assert not re.search(rf"(?<![\w$/]){re.escape(clumsy)}(?!\w)", text), clumsy
    assert "--data-dir DIR" in text
    assert "--coordinator HOST:PORT" in text


def test_the_commands_of_the_help_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    """And so are calls that were written for earlier versions."""
    text = shown_help(capsys).replace("\\\n", "")
    commands = re.findall(r"^    python train.py(.*)$", text, re.M)
    assert len(commands) == 4
    found = [parse(train.Config, "train.py", shlex.split(command)) for command in commands]
    assert found[1].include == ("params/layer*conv1*",)
    assert found[2].sparsities == (0.25, 0.5, 0.75)
    old = "--data_dir a --lr 0.5 --fine-tune-lr=0.1 --importance l1 --clip-norm None --no-whole"
    assert parse(train.Config, "train.py", old.split()) == train.Config(
        data_dir=Path("a"),
        learning_rate=0.5,
        fine_tune_learning_rate=0.1,
        importances=("l1",),
        whole=False,
    )


def test_help_says_where_compiled_programs_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown_help(capsys).split())
    for words in ("--no-compile-cache", "$JAX_COMPILATION_CACHE_DIR", "~/.cache/ifjax/programs"):
        assert words in text


CACHE = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")


@pytest.mark.parametrize(
    ("options", "variables", "place"),
    [
        ([], {}, "xdg/ifjax/programs"),
        ([], {"JAX_COMPILATION_CACHE_DIR": "{tmp}/chosen"}, "chosen"),
        (["--no-compile-cache"], {"JAX_COMPILATION_CACHE_DIR": "{tmp}/chosen"}, None),
    ],
)
@pytest.mark.slow
def test_compiled_programs_are_kept_where_they_should_be(
    options: list[str], variables: dict[str, str], place: str | None, tmp_path: Path
) -> None:
    """And a log is written to only at the ends of what takes long."""
    arguments = "--model mlp --epochs 1 --methods prune --sparsities 0.5 --fine-tune-epochs 0"
    unset = {name: x for name, x in os.environ.items() if not name.startswith(CACHE)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments.split(), "--out", str(tmp_path / "o"), *options],
        capture_output=True,
        text=True,
        env=unset
        | {"XDG_CACHE_HOME": str(tmp_path / "xdg")}
        | {name: value.format(tmp=tmp_path) for name, value in variables.items()},
    )
    assert done.returncode == 0, done.stderr
    files = set(tmp_path.rglob("*-cache"))
    assert {file.parent for file in files} == ({tmp_path / place} if place else set())
    assert len(files) > 5 or place is None
    (line,) = done.stderr.splitlines()
    assert line.startswith("train: 22/22 steps in ")


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [("matplotlib", [], "ifjax[train]"), ("ot", ["--solver", "exact"], "ifjax[exact]")],
)
def test_a_missing_extra_is_told_before_training(
    package: str,
    arguments: list[str],
    extra: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert train.cli([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert f"pip install '{extra}'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_overwrite_replaces_the_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("old")
    config = dataclasses.replace(TINY, out=tmp_path, overwrite=True, fine_tune_epochs=0.0)
    rows = train.main(config)
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == len(rows)
    train.main(config)  # networks that are there already are replaced, too


def test_safetensors_must_name_their_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safetensors_numpy = pytest.importorskip(
        "safetensors.numpy", reason="needs safetensors: pip install 'ifjax[train]'"
    )
    from ifjax import interop, models

    model = models.CifarResNet(models.ResNetWidths.standard(8, width=2))
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    file = tmp_path / "resnet8.safetensors"
    safetensors_numpy.save_file(interop.cifar_resnet_to_torch(variables), file)
    assert train.cli(["--model", "resnet20", "--checkpoint", str(file)]) == 2
    assert "holds a resnet8 with shortcuts A" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:-10])
    assert train.cli(["--model", "resnet20", "--checkpoint", str(file)]) == 2
    assert "--checkpoint: expected a complete safetensors file" in capsys.readouterr().err


def test_a_run_that_is_started_again_does_only_what_is_missing(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if killed after the first compressed network."""
    out = shutil.copytree(tiny_run.out, tmp_path / "again")
    journal = json.loads((out / "run.json").read_text())
    journal["finished"] = False
    del journal["stages"]["fuse-0.5"]
    (out / "run.json").write_text(json.dumps(journal))
    (out / "results.json").unlink()
    shutil.rmtree(out / "fuse-0.5")
    trained = []
    fit = stages.train

    def spy(*args: object, **options: object) -> object:
        trained.append(args[3])
        return fit(*args, **options)

    monkeypatch.setattr(stages, "train", spy)
    assert train.main(dataclasses.replace(TINY, out=out)) == tiny_run.rows
    assert trained == ["fuse-0.5"]
    content = json.loads((out / "results.json").read_text())
    untimed = [dataclasses.asdict(row) | {"latency": None} for row in tiny_run.rows]
    assert [row | {"latency": None} for row in content["rows"]] == untimed
    a, b = (ifjax.load(folder / "fuse-0.5")[0] for folder in (out, tiny_run.out))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def start(out: Path, *more: str) -> subprocess.Popen:
    options = "--model mlp --epochs 4 --sparsities 0.5 --fine-tune-epochs 2 --checkpoint-every 7"
    words = [*options.split(), "--no-progress", "--out", str(out), *more]
    return subprocess.Popen([sys.executable, str(SCRIPT), *words], stdout=subprocess.DEVNULL)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.005)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    """Killed by SIGKILL in the training and in the fine-tuning; test_kill.py does it more often."""
    assert start(tmp_path / "whole").wait() == 0
    out, kills = tmp_path / "killed", 0
    checkpoints = out / ".checkpoints"

    def at_least(stage: str, step: int) -> bool:
        folder = checkpoints / stage
        return any(int(p.name) >= step for p in folder.glob("*/[0-9]*") if p.name.isdecimal())

    rng = np.random.default_rng(time.time_ns())  # moments that no one chose
    for condition in (
        lambda: at_least("dense", 14),
        lambda: at_least("fuse-0.5", 21),
    ):
        process = start(out)
        wait_for(condition, process)
        time.sleep(rng.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 1
    assert start(out).wait() == 0
    for stage in ("dense", "prune-0.5", "fuse-0.5"):
        a, b = (ifjax.load(tmp_path / run / stage)[0] for run in ("whole", "killed"))
        jax.tree.map(np.testing.assert_array_equal, a, b)
    a, b = (
        json.loads((tmp_path / run / "results.json").read_text()) for run in ("whole", "killed")
    )
    for row in (*a["rows"], *b["rows"]):
        assert row.pop("latency") > 0
    assert a["rows"] == b["rows"]
    assert not checkpoints.exists()


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Shares of weights, several importances, rounds, bfloat16: on a network with batch norm."""
    out = tmp_path_factory.mktemp("experiments") / "results"
    config = dataclasses.replace(
        TINY,
        model="cnn",
        out=out,
        epochs=1,
        train_images=256,
        target="weights",
        sparsities=(0.6,),
        importances=("lamp", "taylor", "fisher", "chip"),
        rounds=2,
        calibration_images=64,
        fine_tune_epochs=1.5,
        eval_every=1,
        log_every=2,
        precision="bfloat16",
        methods=("fuse",),
        solver="nearest",
    )
    rows = train.main(config)
    return Run(out, rows, "")


@pytest.mark.slow
def test_shares_of_weights_are_met(experiments: Run) -> None:
    dense, *rows = experiments.rows
    assert [row.method for row in rows] == [
        f"Intra-Fusion, {score}" for score in ("lamp", "taylor", "fisher", "chip")
    ]
    for row in rows:
        assert abs(1 - row.weights / dense.weights - 0.6) < 0.02
        assert row.asked == 0.6
        assert 0.3 < row.sparsity < 0.6
    names = {"accuracy-chip.png", "fuse-chip-0.6", "accuracy-taylor.png"}
    assert names <= {path.name for path in experiments.out.iterdir()}


@pytest.mark.slow
def test_rounds_end_at_the_widths_and_parameters_stay_float32(experiments: Run) -> None:
    for row in experiments.rows[1:]:
        variables, spec = ifjax.load(experiments.out / row.checkpoint)
        assert spec.weights()[1] == row.weights
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}


@pytest.mark.slow
def test_curves_hold_training_test_and_compression(experiments: Run) -> None:
    folder = experiments.out / "tensorboard"
    assert sorted(read(folder / "dense")["train/loss"]) == [2, 4]
    assert set(read(folder / "dense")) == {
        "train/loss",
        "train/accuracy",
        "train/learning_rate",
        "test/loss",
        "test/accuracy",
    }
    dense, *rows = experiments.rows
    np.testing.assert_allclose(
        read(folder / "dense")["test/accuracy"][4], dense.accuracy, atol=1e-6
    )
    assert max(read(folder / "fuse-chip-0.6")["train/loss"]) == 6
    found = read(folder / "fuse-chip")
    np.testing.assert_allclose(found["sparsity/accuracy"][60], rows[-1].accuracy, atol=1e-6)
    np.testing.assert_allclose(found["sparsity/fine-tuned"][60], rows[-1].fine_tuned, atol=1e-6)


def test_one_group_at_a_time(tiny_run: Run, tmp_path: Path) -> None:
    """Beside each group cut in truth, at its small width."""
    config = dataclasses.replace(
        TINY,
        checkpoint=tiny_run.out / "dense",
        out=tmp_path,
        per_group=True,
        methods=("prune",),
        sparsities=(0.5, 0.9),
    )
    (dense,) = train.main(config)
    content = json.loads((tmp_path / "results.json").read_text())
    records = content["records"]
    assert content["rows"][0]["accuracy"] == dense.accuracy
    assert [(r["group"], r["sparsity"]) for r in records] == [
        (group, sparsity)
        for group in ("params/fc1/kernel", "params/fc2/kernel")
        for sparsity in (0.5, 0.9)
    ]
    assert (tmp_path / "sensitivity.png").exists()
    dataset = data.load("digits")
    network = create(TINY, dataset)
    variables, _ = ifjax.load(tiny_run.out / "dense")
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), "float32")
    graph = ifjax.trace(network.apply_eval, variables, image)
    for record in records:
        spec = graph.spec(record["sparsity"], include=record["group"], method="prune")
        small = network.shrink(None, spec)
        found = evaluator(TINY, dataset, small)(ifjax.fuse_params(variables, spec))
        assert found.accuracy == record["accuracy"]
        assert record["method"] == "plain pruning"


def test_every_network_of_the_command_line_exists() -> None:
    hints = typing.get_type_hints(train.Config)
    assert set(typing.get_args(hints["model"])) == set(models.NAMES)
    assert set(typing.get_args(hints["data"])) == set(data.DATASETS)
    assert {*typing.get_args(Importance)} == {*importance.names()} - {"reconstruction"}
