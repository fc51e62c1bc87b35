"""The main job on networks with batch norm and with settings of every kind; what it tells."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import ifjax
from ifjax.experiment import compression
from ifjax.experiment.curves import read
from ifjax.training.evaluate import Evaluation
from tests.main_job import TINY, Run, train

pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_overwrite_replaces_the_results(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("old")
    config = dataclasses.replace(TINY, out=tmp_path, overwrite=True, fine_tune_epochs=0.0)
    rows = train.main(config)
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == len(rows)
    train.main(config)  # networks that are there already are replaced, too


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
