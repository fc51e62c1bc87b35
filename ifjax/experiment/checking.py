"""What is wrong with a combination of options, whatever the data set and the network."""

import dataclasses
import math

from ifjax import report
from ifjax.experiment.config import Config
from ifjax.experiment.errors import UserError, user_error
from ifjax.experiment.runner import optimizer_config
from ifjax.transport.solvers import solver_of

# Read with --mode fap or paf only.
_OF_FOLDS = ("folds", "split", "alpha", "fold_start", "fuse_on", "fuse_solver", "whole")


def check(config: Config) -> None:
    """Refuses values that cannot work, whatever the data set and the network.

    Args:
        config: the configuration.

    Raises:
        UserError: naming the option, what it may be and what came.

    Example:
        >>> check(Config())
    """
    for sparsity in config.cuts:
        if not 0.0 < sparsity < 1.0:
            raise UserError(f"--sparsities: each must lie between 0 and 1, got {sparsity}")
    for option in ("sparsities", "methods", "importances"):
        values = config.cuts if option == "sparsities" else getattr(config, option)
        if not values or len(set(values)) < len(values):
            raise UserError(f"--{option}: expected one or more different values, got {values}")
    least = {
        "epochs": 1,
        "batch_size": 1,
        "eval_batch_size": 1,
        "eval_every": 0,
        "log_every": 1,
        "checkpoint_every": 1,
        "rounds": 1,
        "calibration_images": 1,
        "fine_tune_epochs": 0,
        "seed": 0,
        "folds": 2,
    }
    for option, minimum in least.items():
        value = getattr(config, option)
        if not minimum <= value < math.inf:
            flag = option.replace("_", "-")
            raise UserError(f"--{flag}: must be at least {minimum}, got {value:g}")
    if config.train_images is not None and config.train_images < 1:
        raise UserError(f"--train-images: must be at least 1, got {config.train_images}")
    if not 0.0 < config.width < math.inf:
        raise UserError(f"--width: must be positive, got {config.width:g}")
    _check_folds(config)
    if not 0.0 <= config.label_smoothing < 1.0:
        raise UserError(f"--label-smoothing: must lie in [0, 1), got {config.label_smoothing}")
    if config.rounds > 1 and not config.fine_tune_epochs:
        raise UserError("--rounds: there is nothing between the rounds with --fine-tune-epochs 0")
    if config.rounds > 1 and config.per_group:
        raise UserError("--rounds: --per-group cuts without fine-tuning, so in one round only")
    if not config.ways:
        raise UserError(
            "--methods: reconstruct goes with --mode compress on one host, all groups at once; got "
            "no other method"
        )
    if config.per_group and config.target != "neurons":
        raise UserError("--target: --per-group cuts shares of a group's neurons, not of weights")
    if config.milestones and config.milestones[-1] >= config.epochs:
        raise UserError(
            f"--milestones: must lie within the {config.epochs} epochs, got {config.milestones}"
        )
    for rate in (config.learning_rate, config.fine_tune_learning_rate):
        with user_error("optimizer"):
            optimizer_config(config, rate, config.milestones)
    with user_error("--solver"):
        solver_of(config.solver).require(3, 2, uniform=True)  # no assignment
    with user_error("plot"):
        report.require_matplotlib()
    if config.checkpoint is not None and not config.checkpoint.exists():
        raise UserError(f"--checkpoint: there is no {config.checkpoint}")


def _check_folds(config: Config) -> None:
    """Refuses what says nothing in the mode."""
    if not 0.0 <= config.label_noise < 1.0:
        raise UserError(f"--label-noise: must lie in [0, 1), got {config.label_noise:g}")
    changed = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) != f.default}
    if config.mode == "compress":
        for option in changed.intersection(_OF_FOLDS):
            flag = option.replace("_", "-")
            raise UserError(f"--{flag}: there are no folds with --mode compress; add --mode fap")
        return
    if not 0.0 < config.alpha < math.inf:
        raise UserError(f"--alpha: must be positive, got {config.alpha:g}")
    if "alpha" in changed and config.split != "dirichlet":
        raise UserError(f"--alpha: only --split dirichlet has one, got --split {config.split}")
    for option in ("per_group", "checkpoint"):
        if option in changed:
            flag = option.replace("_", "-")
            raise UserError(f"--{flag}: goes with --mode compress, got --mode {config.mode}")
    if config.rounds > 1 and config.mode == "paf":
        raise UserError("--rounds: --mode paf prunes before it fuses, in one round only")
