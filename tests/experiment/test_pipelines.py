"""FaP and PaF from training to the small network, through train.py's own main."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import shutil
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

import ifjax
from ifjax import data
from ifjax.experiment import stages
from ifjax.experiment.config import Config
from ifjax.experiment.network import create
from ifjax.experiment.pipelines import with_speedups
from ifjax.experiment.runner import evaluator
from ifjax.experiment.variants import Outcome

TINY = Config(
    mode="fap",
    model="mlp",
    epochs=3,
    augment=False,
    fine_tune_epochs=1.0,
    calibration_images=128,
    checkpoint_every=10,
    progress=False,
)
MODES = [("fap", 2), ("paf", 3)]


def load_train() -> ModuleType:
    path = Path(__file__).parents[2] / "train.py"
    spec = importlib.util.spec_from_file_location("train", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train = load_train()


def run(config: Config) -> list[Outcome]:
    with contextlib.redirect_stdout(io.StringIO()):
        return train.main(config)


@pytest.fixture(scope="module", params=MODES, ids=lambda mode: mode[0])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    mode, folds = request.param
    out = tmp_path_factory.mktemp(mode) / "out"
    config = dataclasses.replace(TINY, mode=mode, folds=folds, out=out)
    return config, run(config)


def test_rows_are_all_data_folds_and_what_became_of_them(finished) -> None:
    config, rows = finished
    name = {"fap": "FaP", "paf": "PaF"}[config.mode]
    compressed = ["plain pruning", "Intra-Fusion"]
    folds = [f"fold {i}" for i in range(config.folds)]
    fused = ["FaP, fused"] if config.mode == "fap" else []
    expected = ["all data", *compressed, *folds, *fused, *(f"{name}, {c}" for c in compressed)]
    assert [row.method for row in rows] == expected
    assert {row.weights for row in rows if row.sparsity == 0.5} == {rows[1].weights}
    # Fine-tuning mends what fusing apart networks and cutting them left.
    assert all(row.fine_tuned > max(row.accuracy, 0.5) for row in rows[-2:])


def test_speedups_compare_like_with_like(finished) -> None:
    _, rows = finished
    by_name = {row.method: row for row in rows}
    for row in rows:
        assert row.seconds is not None
        if row.method.startswith("fold") or row.method == "FaP, fused":
            assert row.speedup == by_name["all data"].seconds / row.seconds
        elif row.method.startswith(("FaP", "PaF")):
            same = by_name[row.method.partition(", ")[2]]
            assert row.speedup == same.seconds / row.seconds


def test_saved_networks_reach_the_accuracy_of_the_table(finished) -> None:
    config, rows = finished
    digits = data.load("digits")
    network = create(config, digits)
    for row in rows:
        variables, spec = ifjax.load(config.folder / row.checkpoint)
        small = network.shrink(variables, spec)
        accuracy = evaluator(config, digits, small)(variables).accuracy
        assert accuracy == (row.accuracy if row.fine_tuned is None else row.fine_tuned)


def test_folds_are_trained_on_folds(finished) -> None:
    """Networks of disjoint parts differ, and each does better than chance."""
    config, rows = finished
    folds = [row for row in rows if row.method.startswith("fold")]
    assert len({json.dumps(np.asarray(kernel(config, row)).tolist()) for row in folds}) == len(
        folds
    )
    assert all(row.accuracy > 0.5 for row in folds)


def kernel(config: Config, row: Outcome):
    return ifjax.load(config.folder / row.checkpoint)[0]["params"]["fc1"]["kernel"]


def test_a_run_that_is_started_again_does_only_what_is_missing(
    finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, rows = finished
    out = shutil.copytree(config.folder, tmp_path / "again")
    journal = json.loads((out / "run.json").read_text())
    journal["finished"] = False
    last = rows[-1].checkpoint
    del journal["stages"][last]
    (out / "run.json").write_text(json.dumps(journal))
    (out / "results.json").unlink()
    shutil.rmtree(out / last)
    trained = []
    fit = stages.train
    monkeypatch.setattr(
        stages, "train", lambda *args, **options: trained.append(args[3]) or fit(*args, **options)
    )
    again = run(dataclasses.replace(config, out=out))
    assert trained == [last]
    timeless = [dataclasses.replace(row, seconds=None, speedup=None) for row in rows]
    assert timeless == [dataclasses.replace(row, seconds=None, speedup=None) for row in again]
    a, b = (ifjax.load(folder / last)[0] for folder in (out, config.folder))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_time_is_that_of_training_whoever_did_it(finished) -> None:
    """A row takes at least what its training took, and longer than what it starts from."""
    _, rows = finished
    training = next(row.seconds for row in rows if row.method == "fold 0")
    assert all(row.seconds > training for row in rows[-2:])


def test_without_all_data_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    config = dataclasses.replace(
        TINY, whole=False, methods=("prune",), fine_tune_epochs=0.0, epochs=1, out=tmp_path / "out"
    )
    rows = run(config)
    assert [row.method for row in rows] == ["fold 0", "fold 1", "FaP, fused", "FaP, plain pruning"]
    assert all(row.speedup is None and row.fine_tuned is None for row in rows)


def test_speedup_needs_the_same_score_and_sparsity() -> None:
    def row(method: str, asked: float, importance: str | None, seconds: float) -> Outcome:
        return Outcome(
            asked, method, 1, 1, 0.5, importance=importance, asked=asked, seconds=seconds
        )

    rows = [
        row("all data", 0.0, None, 8.0),
        row("plain pruning, l1", 0.5, "l1", 10.0),
        row("plain pruning, l2", 0.5, "l2", 12.0),
        row("PaF, plain pruning, l2", 0.5, "l2", 6.0),
        row("PaF, plain pruning, l2", 0.7, "l2", 6.0),
    ]
    assert [found.speedup for found in with_speedups(rows)] == [1.0, None, None, 2.0, None]
