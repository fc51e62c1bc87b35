"""The main job, in-process on tiny settings, and every way to call it wrongly."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

import ifjax
from ifjax import data

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
    fine_tune_epochs=1,
    progress=False,
)


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
        "results.json",
    ]
    assert (tiny_run.out / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_saved_networks_reach_the_accuracy_of_the_table(tiny_run: Run) -> None:
    dataset = data.load("digits")
    network = train.create(TINY, dataset)
    for row in tiny_run.rows:
        variables, spec = ifjax.load(tiny_run.out / row.checkpoint)
        small = network.shrink(variables, spec)
        assert train.evaluator(TINY, dataset, small)(variables) == (row.fine_tuned or row.accuracy)
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
        fine_tune_epochs=0,
    )
    dense, fused = train.main(config)
    assert dense == tiny_run.rows[0]
    assert fused == dataclasses.replace(tiny_run.rows[2], fine_tuned=None)


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
        ("--data cifar10 --data-dir {empty}", "--data: expected CIFAR-10 prepared"),
        ("--checkpoint {empty}/missing", "--checkpoint: there is no"),
        ("--checkpoint {empty}", "--checkpoint: "),
        ("--checkpoint {compressed}", "was compressed already; start from a dense network"),
        ("--model cnn --checkpoint {dense}", "is no cnn for digits: expected"),
        ("--out {file}", "is a file, expected a folder"),
        ("--out {results}", "is not empty; pass --overwrite or another folder"),
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
    before = sorted(tmp_path.rglob("*"))
    places = {
        "empty": tmp_path / "empty",
        "file": tmp_path / "file",
        "compressed": tiny_run.out / "fuse-0.5",
        "dense": tiny_run.out / "dense",
        "results": tiny_run.out,
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


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train.cli(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(train.Config):
        assert f"--{field.name.replace('_', '-')}" in text


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
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    assert train.cli([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert f"pip install '{extra}'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_overwrite_replaces_the_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("old")
    config = dataclasses.replace(TINY, out=tmp_path, overwrite=True, fine_tune_epochs=0)
    rows = train.main(config)
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == len(rows)
    train.main(config)  # networks that are there already are replaced, too


def test_safetensors_must_name_their_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
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
