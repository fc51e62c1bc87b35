"""Every option of ``train.py``."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from flax.errors import FlaxError

from ifjax.training.optimizer import OptimizerConfig

Importance = Literal["l1", "l2", "linf", "random", "lamp", "bn_scale", "taylor", "chip", "fisher"]


class UserError(Exception):
    """Something the user can put right; told in one line, before anything is written."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains (or loads) a network, compresses it, evaluates, fine-tunes a little, evaluates, saves.

    Or train several on a part of the data each, at the same time, and make them one small network.
    A run that was interrupted goes on where it was when the same command is given again.

    Times are for 2 CPU cores. ResNet-8 on the digits that come with scikit-learn, 1 to 2 minutes,
    98 % dense; at sparsity 0.3, by seed, 10 to 28 % pruned and 60 to 75 % fused; fine-tuned both
    96 to 97 %:

    python train.py

    A trained ResNet-20 on CIFAR-10, groups inside the blocks only, about 3 minutes, 91.73 % dense;
    at sparsity 0.3 47.59 % pruned and 72.74 % fused:

    python train.py --data cifar10 --data-dir DIR --model resnet20
    --checkpoint resnet20_cifar10.safetensors --include "params/layer*conv1*" --solver exact
    --fine-tune-epochs 0

    The same, one group at a time:

    python train.py --data cifar10 --data-dir DIR --model resnet20
    --checkpoint resnet20_cifar10.safetensors --include "params/layer*conv1*" --solver exact
    --per-group --sparsities 0.25 0.5 0.75

    Two networks on half of the digits each, fused, pruned and fine-tuned, about 1 minute:

    python train.py --mode fap --folds 2
    """

    mode: Literal["compress", "fap", "paf"] = "compress"
    """What to do: compress a network; or train one on each of several folds of the data at once,
    and then fuse them and prune (fap), or prune each of them and fuse (paf), and fine-tune on all
    the data."""
    data: Literal["digits", "cifar10", "cifar100", "imagenet2012"] = "digits"
    """Data set; digits comes with scikit-learn, the others must have been prepared by TFDS."""
    data_dir: Path | None = None
    """Folder that holds cifar10/ and the like; by default $TFDS_DATA_DIR, else
    ~/tensorflow_datasets."""
    train_images: int | None = None
    """Train on that many images only, the first ones of the set; for trying things out."""
    model: Literal[
        "mlp",
        "cnn",
        "resnet8",
        "resnet14",
        "resnet20",
        "resnet32",
        "resnet44",
        "resnet56",
        "resnet110",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "vgg11",
        "vgg13",
        "vgg16",
        "vgg19",
        "vit_tiny",
        "vit_small",
        "vit_b_16",
    ] = "resnet8"
    """Network."""
    width: float = 1.0
    """Multiplies the widths of the network; the MLP and the CNN have none."""
    stem: Literal["auto", "cifar", "imagenet"] = "auto"
    """How a ResNet-18, -34, -50 or -101 begins: 3x3, or 7x7 and pooling; by default as the data
    set wants it."""
    shortcut: Literal["A", "B"] = "A"
    """How the shortcut of the CIFAR ResNets (8 to 110) gets wider: zero channels (A) or a
    projection (B)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What is computed with; parameters and optimizer state are float32 in both."""
    checkpoint: Path | None = None
    """Start from this network instead of training one: a folder that ifjax.save wrote (such as
    RESULTS/dense), or a .safetensors file with the state dict of a torch network."""
    out: Path | None = None
    """Folder of the results; by default runs/DATA-MODEL. `tensorboard --logdir` takes it."""
    overwrite: bool = False
    """Replace the results that the folder already holds."""
    resume: bool = True
    """Continue the unfinished run of the same settings that the folder holds."""
    seed: int = 0
    """Of initialisation, order of the images and augmentation; fold i has seed + i."""
    progress: bool = True
    """Show how far a training is, on stderr: by a bar on a terminal, else by a line at its end."""
    compile_cache: bool = True
    """Keep compiled programs for later runs, which then begin sooner: in
    $JAX_COMPILATION_CACHE_DIR, by default ~/.cache/ifjax/programs (in $XDG_CACHE_HOME if that is
    set; ~/Library/Caches on macOS)."""

    epochs: int = 12
    """Passes over the training images before compression."""
    batch_size: int = 64
    """Images per training step."""
    eval_batch_size: int = 512
    """Images per evaluation step."""
    eval_every: int = 0
    """Evaluate after every so many epochs of training, for the curves; 0 for the end only."""
    log_every: int = 20
    """Steps per point of the training curves."""
    checkpoint_every: int = 500
    """Steps between the checkpoints from which an interrupted run continues."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum, or AdamW."""
    learning_rate: Annotated[float, tyro.conf.arg(aliases=["--lr"])] = 0.1
    """Peak learning rate; AdamW wants about 0.002."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """On kernels only."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the learning rate falls: to zero, or in steps, or not at all."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate of the training falls in the schedule step; by default
    1/2 and 3/4 of them, as in the fine-tuning."""
    gamma: float = 0.1
    """What it is multiplied by then."""
    warmup: float = 0.05
    """Part of the steps in which the learning rate rises."""
    clip_norm: float | None = None
    """Longest gradient, over all weights; longer ones are scaled down."""
    label_smoothing: float = 0.0
    """Part of the target spread evenly over the classes."""
    augment: bool = True
    """Shift (and, where the data set allows, mirror) the training images at random."""

    folds: int = 2
    """Parts of the training images, with a network each; with --mode fap or paf."""
    split: Literal["random", "stratified", "dirichlet"] = "random"
    """How the images are shared out to the folds: at random, evenly by class, or with every class
    in other parts to each (a Dirichlet draw)."""
    alpha: float = 1.0
    """Of the Dirichlet draw: the smaller, the more the folds differ in their classes."""
    fold_start: Literal["same", "own"] = "own"
    """Whether the networks of the folds begin with the same weights, or with weights of their
    own."""
    fuse_on: Literal["weights", "activations"] = "activations"
    """What the networks of the folds are aligned by."""
    fuse_solver: Literal["sinkhorn_kernel", "exact"] = "sinkhorn_kernel"
    """Of their alignment: a soft one, or one neuron to one neuron."""
    whole: bool = True
    """Train and compress a network on all the data as well, to compare with."""
    label_noise: float = 0.0
    """Part of the training images that get a wrong label."""

    sparsities: tuple[float, ...] | None = None
    """Fractions to remove, each in (0, 1); by default 0.3 0.5 0.7, and 0.5 with --mode fap or
    paf."""
    target: Literal["neurons", "weights"] = "neurons"
    """What they are fractions of: the neurons of every group, or all weights of the network, where
    the one fraction of neurons is sought, the same for all groups, that comes nearest."""
    methods: tuple[Literal["prune", "fuse"], ...] = ("prune", "fuse")
    """Plain pruning, Intra-Fusion, or both."""
    importances: Annotated[tuple[Importance, ...], tyro.conf.arg(aliases=["--importance"])] = (
        "l1",
    )
    """Scores that choose the neurons to keep, each a comparison of its own."""
    include: tuple[str, ...] = ("*",)
    """Patterns of the groups to cut (names as printed, * and ? match); by default all."""
    exclude: tuple[str, ...] = ()
    """Patterns of the groups to leave whole."""
    per_group: bool = False
    """Cut one group at a time, without fine-tuning, instead of all at once."""
    rounds: int = 1
    """Reach each sparsity in so many rounds of compression and fine-tuning, of equal length."""
    calibration_images: int = 512
    """Training images from which taylor, fisher and chip are computed."""
    solver: Literal["sinkhorn", "sinkhorn_kernel", "exact", "nearest", "auto"] = "sinkhorn"
    """Of the transport problem; exact needs: pip install 'ifjax[exact]'; auto takes the exact one
    where that is fast."""
    epsilon: float = 0.01
    """Sinkhorn's regularisation, relative to the mean cost."""
    merge: Literal["reference", "preserving"] = "reference"
    """How maps act on weights: as in the paper's code, or so that duplicates merge unchanged."""
    order: Literal["sequential", "simultaneous"] = "sequential"
    """Groups one by one from the output, as in the paper's code, or all from the given weights."""
    fine_tune_epochs: float = 2.0
    """Passes over the training images after compression, 0.5 for half of them; 0 for none."""
    fine_tune_learning_rate: Annotated[float, tyro.conf.arg(aliases=["--fine-tune-lr"])] = 0.02
    """Peak learning rate of the fine-tuning."""

    coordinator: str | None = None
    """One run on several hosts, the same command on each: HOST:PORT of process 0, or auto where
    Slurm, Open MPI, Kubernetes or Cloud TPU say it."""
    processes: int | None = None
    """How many processes there are, with --coordinator HOST:PORT."""
    process: int | None = None
    """Which of them this one is, from 0."""
    local_devices: tuple[int, ...] | None = None
    """The accelerators that this process takes; by default all of its host."""
    lost_after: int = 15
    """Seconds without a sign of life after which a process counts as lost, and the others end."""

    @property
    def folder(self) -> Path:
        """Where the results go."""
        mode = "" if self.mode == "compress" else f"-{self.mode}"
        return self.out or Path("runs") / f"{self.data}-{self.model}{mode}"

    @property
    def cuts(self) -> tuple[float, ...]:
        """The fractions to remove."""
        if self.sparsities is not None:
            return self.sparsities
        return (0.3, 0.5, 0.7) if self.mode == "compress" else (0.5,)


# Where and on what the results are made and how they are shown, not what they are.
_FREE = {
    "out",
    "overwrite",
    "resume",
    "progress",
    "compile_cache",
    "data_dir",
    "log_every",
    "checkpoint_every",
    "coordinator",
    "processes",
    "process",
    "local_devices",
    "lost_after",
}


def settings(config: Config) -> dict[str, Any]:
    """What determines the results of a run, as JSON can hold it.

    Args:
        config: the configuration.

    Returns:
        All options by name, but for those that say where results go and how they are shown.

    Example:
        >>> settings(Config())["sparsities"], "out" in settings(Config())
        ([0.3, 0.5, 0.7], False)
    """
    values = {key: value for key, value in vars(config).items() if key not in _FREE}
    values["sparsities"] = config.cuts
    return json.loads(json.dumps(values, default=lambda path: str(path.absolute())))


def optimizer_config(
    config: Config, learning_rate: float, milestones: tuple[int, ...] = ()
) -> OptimizerConfig:
    """Picks the optimizer's part of a configuration.

    Args:
        config: the configuration.
        learning_rate: the peak.
        milestones: steps at which the schedule ``step`` falls.

    Returns:
        What :func:`ifjax.training.make_optimizer` takes.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> optimizer_config(Config(), 0.3).learning_rate
        0.3
    """
    return OptimizerConfig(
        name=config.optimizer,
        learning_rate=learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        warmup=config.warmup,
        milestones=milestones,
        gamma=config.gamma,
        clip_norm=config.clip_norm,
    )


@contextlib.contextmanager
def user_error(option: str) -> Iterator[None]:
    """Turns what a library says about bad input into a :class:`UserError` about an option.

    Args:
        option: what the message begins with.

    Yields:
        Nothing.

    Raises:
        UserError: in place of ValueError, TypeError, ImportError, OSError and flax's errors.

    Example:
        >>> with contextlib.suppress(UserError), user_error("--lr"):
        ...     raise ValueError("must be positive")
    """
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError, FlaxError) as error:
        raise UserError(f"{option}: {error}") from error
