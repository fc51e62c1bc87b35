"""Training, fine-tuning and evaluation of any ``apply_fn(variables, images)``, small or large."""

from ifjax.training.distill import distillation_loss, feature_loss, make_distill_step
from ifjax.training.evaluate import Evaluation, evaluate, make_eval_step
from ifjax.training.feeding import SplitBatch, fold_steps, make_feed
from ifjax.training.layout import Layout, collect, make_layout, place
from ifjax.training.loop import Divergence, Every, Means, fit
from ifjax.training.loss import cross_entropy
from ifjax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from ifjax.training.split import (
    create_split_state,
    evaluate_folds,
    make_split_eval_step,
    make_split_step,
)
from ifjax.training.state import TrainState, create_state
from ifjax.training.step import Metrics, make_train_step

__all__ = [
    "Divergence",
    "Evaluation",
    "Every",
    "Layout",
    "Means",
    "Metrics",
    "OptimizerConfig",
    "SplitBatch",
    "TrainState",
    "collect",
    "create_split_state",
    "create_state",
    "cross_entropy",
    "distillation_loss",
    "evaluate",
    "evaluate_folds",
    "feature_loss",
    "fit",
    "fold_steps",
    "make_distill_step",
    "make_eval_step",
    "make_feed",
    "make_layout",
    "make_optimizer",
    "make_schedule",
    "make_split_eval_step",
    "make_split_step",
    "make_train_step",
    "place",
]
