"""Training, fine-tuning and evaluation of any ``apply_fn(variables, images)``, small or large."""

from ifjax.training.evaluate import Evaluation, evaluate, make_eval_step
from ifjax.training.loop import Divergence, Every, Means, fit
from ifjax.training.loss import cross_entropy
from ifjax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from ifjax.training.state import TrainState, create_state
from ifjax.training.step import Metrics, make_train_step

__all__ = [
    "Divergence",
    "Evaluation",
    "Every",
    "Means",
    "Metrics",
    "OptimizerConfig",
    "TrainState",
    "create_state",
    "cross_entropy",
    "evaluate",
    "fit",
    "make_eval_step",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
]
