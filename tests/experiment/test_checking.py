"""What is refused, and what is not. (How users are told is tested in test_train.)"""

import math
from typing import Any

import pytest

from ifjax.experiment.checking import check
from ifjax.experiment.config import Config
from ifjax.experiment.errors import UserError

LEAST = {
    **dict.fromkeys(("epochs", "batch_size", "eval_batch_size", "log_every", "rounds"), 1),
    **dict.fromkeys(("checkpoint_every", "calibration_images", "train_images"), 1),
    **dict.fromkeys(("eval_every", "seed"), 0),
    "fine_tune_epochs": 0.0,
}
OF_FOLDS = {
    "folds": 3,
    "split": "stratified",
    "alpha": 0.5,
    "fold_start": "same",
    "fuse_on": "weights",
    "fuse_solver": "exact",
    "whole": False,
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "fap"},
        {"mode": "paf"},
        {"per_group": True},
        {"rounds": 2},
        {"mode": "fap", "rounds": 2},
        {"schedule": "step", "milestones": (6, 9)},
        {"mode": "fap", **OF_FOLDS, "split": "dirichlet"},
        {"label_noise": 0.4, "label_smoothing": 0.1, "width": 0.5},
    ],
)
def test_what_works_is_let_through(options: dict[str, Any]) -> None:
    check(Config(**options))


@pytest.mark.parametrize("option", LEAST)
def test_the_least_is_let_through_and_less_is_not(option: str) -> None:
    check(Config(**{option: LEAST[option]}))
    flag = option.replace("_", "-")
    with pytest.raises(UserError, match=f"--{flag}: must be at least {LEAST[option]:g}"):
        check(Config(**{option: LEAST[option] - 1}))


def test_two_folds_at_least() -> None:
    check(Config(mode="fap", folds=2))
    with pytest.raises(UserError, match="--folds: must be at least 2, got 1"):
        check(Config(mode="fap", folds=1))


@pytest.mark.parametrize("option", OF_FOLDS)
def test_options_of_folds_need_folds(option: str) -> None:
    flag = option.replace("_", "-")
    with pytest.raises(UserError, match=f"--{flag}: there are no folds with --mode compress"):
        check(Config(**{option: OF_FOLDS[option]}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsities": (0.5, 1.0)}, "--sparsities: each must lie between 0 and 1, got 1.0"),
        ({"sparsities": (0.5, math.nan)}, "--sparsities: each must lie between 0 and 1"),
        ({"sparsities": ()}, "--sparsities: expected one or more different values"),
        ({"methods": ("fuse", "fuse")}, "--methods: expected one or more different values"),
        ({"importances": ()}, "--importances: expected one or more different values"),
        ({"fine_tune_epochs": math.inf}, "--fine-tune-epochs: must be at least 0, got inf"),
        ({"width": 0.0}, "--width: must be positive"),
        ({"label_noise": 1.0}, r"--label-noise: must lie in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"--label-smoothing: must lie in \[0, 1\)"),
        ({"rounds": 2, "fine_tune_epochs": 0.0}, "nothing between the rounds"),
        ({"rounds": 2, "per_group": True}, "--per-group cuts without fine-tuning"),
        ({"rounds": 2, "mode": "paf"}, "--mode paf prunes before it fuses"),
        ({"per_group": True, "target": "weights"}, "shares of a group's neurons"),
        ({"per_group": True, "mode": "fap"}, "--per-group: goes with --mode compress"),
        ({"schedule": "step", "milestones": (12,)}, "must lie within the 12 epochs"),
        ({"learning_rate": math.nan}, "optimizer: learning_rate"),
        ({"fine_tune_learning_rate": -1.0}, "optimizer: learning_rate"),
        ({"mode": "fap", "alpha": 2.0}, "only --split dirichlet has one, got --split random"),
        ({"mode": "fap", "split": "dirichlet", "alpha": 0.0}, "--alpha: must be positive, got 0"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(Config(**options))


def test_checkpoints_must_exist_and_belong_to_compression(tmp_path) -> None:
    check(Config(checkpoint=tmp_path))
    with pytest.raises(UserError, match="--checkpoint: there is no"):
        check(Config(checkpoint=tmp_path / "missing"))
    with pytest.raises(UserError, match="--checkpoint: goes with --mode compress, got --mode fap"):
        check(Config(mode="fap", checkpoint=tmp_path))
