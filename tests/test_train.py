"""A whole run of the main job on tiny settings, what begins from it, and calls that are wrong."""

import contextlib
import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import ifjax
from ifjax import data
from ifjax.experiment import stages
from ifjax.experiment.network import create
from ifjax.experiment.runner import evaluator
from tests.main_job import SCRIPT, TINY, Run, train

pytestmark = pytest.mark.usefixtures("own_cache")


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
