"""Every option of ``train.py``."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any, Literal

from ifjax.experiment.options import option

Model = Literal[
    "mlp", "cnn",
    "resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
    "resnet18", "resnet34", "resnet50", "resnet101",
    "vgg11", "vgg13", "vgg16", "vgg19", "vit_tiny", "vit_small", "vit_b_16",
]  # fmt: skip

Importance = Literal["l1", "l2", "linf", "random", "lamp", "bn_scale", "taylor", "chip", "fisher"]


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Network."""

    model: Model = option(
        "resnet8",
        "The network: mlp, cnn; resnet8, resnet14, resnet20, resnet32, resnet44, resnet56, "
        "resnet110 (the CIFAR family); resnet18, resnet34, resnet50, resnet101; vgg11, vgg13, "
        "vgg16, vgg19; vit_tiny, vit_small, vit_b_16.",
        "NAME",
    )
    width: float = option(
        1.0, "Multiplies the widths of the network; the MLP and the CNN have none.", "FACTOR"
    )
    stem: Literal["auto", "cifar", "imagenet"] = option(
        "auto",
        "How a ResNet-18, -34, -50 or -101 begins: 3x3, or 7x7 and pooling; auto is what the data "
        "set wants.",
    )
    shortcut: Literal["A", "B"] = option(
        "A",
        "How the shortcut of the CIFAR ResNets gets wider: zero channels (A) or a projection (B).",
    )
    precision: Literal["float32", "bfloat16"] = option(
        "float32",
        "What is computed with; parameters and optimizer state are float32 in both.",
    )
    checkpoint: Path | None = option(
        None,
        "Start from this network instead of training one: a folder that ifjax.save wrote (such as "
        "RESULTS/dense), or a .safetensors file with the state dict of a torch network.",
        "PATH",
    )


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Data."""

    data: Literal["digits", "cifar10", "cifar100", "imagenet2012"] = option(
        "digits",
        "The data set; digits comes with scikit-learn, the others must have been prepared by "
        "TensorFlow Datasets.",
    )
    data_dir: Path | None = option(
        None,
        "Folder that holds cifar10/ and the like; by default $TFDS_DATA_DIR, else "
        "~/tensorflow_datasets.",
        "DIR",
    )
    train_images: int | None = option(
        None,
        "Train on so many images only, the first ones of the set; for trying things out.",
        "N",
    )
    augment: bool = option(
        True, "Shift (and, where the data set allows, mirror) the training images at random."
    )
    label_noise: float = option(
        0.0, "Part of the training images that get a wrong label.", "FRACTION"
    )


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """Training."""

    epochs: int = option(12, "Passes over the training images before compression.", "N")
    batch_size: int = option(64, "Images per training step.", "N")
    optimizer: Literal["sgd", "adamw"] = option("sgd", "SGD with Nesterov momentum, or AdamW.")
    learning_rate: float = option(
        0.1, "Peak learning rate; AdamW wants about 0.002.", "RATE", "--lr"
    )
    momentum: float = option(0.9, "Momentum of SGD.", "FACTOR")
    weight_decay: float = option(5e-4, "Weight decay, on kernels only.", "FACTOR")
    schedule: Literal["cosine", "step", "constant"] = option(
        "cosine", "How the learning rate falls: to zero, or in steps, or not at all."
    )
    milestones: tuple[int, ...] = option(
        (),
        "Epochs after which the learning rate falls in the schedule step; by default 1/2 and 3/4 "
        "of them, as in the fine-tuning.",
        "EPOCH",
    )
    gamma: float = option(0.1, "What the learning rate is multiplied by then.", "FACTOR")
    warmup: float = option(0.05, "Part of the steps in which the learning rate rises.", "FRACTION")
    clip_norm: float | None = option(
        None, "Longest gradient, over all weights; longer ones are scaled down.", "NORM"
    )
    label_smoothing: float = option(
        0.0, "Part of the target spread evenly over the classes.", "FRACTION"
    )
    fine_tune_epochs: float = option(
        2.0,
        "Passes over the training images after compression, 0.5 for half of them; 0 for none.",
        "N",
    )
    fine_tune_learning_rate: float = option(
        0.02, "Peak learning rate of the fine-tuning.", "RATE", "--fine-tune-lr"
    )


@dataclasses.dataclass(frozen=True)
class CutOptions:
    """What is cut."""

    sparsities: tuple[float, ...] | None = option(
        None,
        "Fractions to remove, each in (0, 1), each a comparison of its own; by default 0.3 0.5 "
        "0.7, and 0.5 with --mode fap or paf.",
        "FRACTION",
    )
    target: Literal["neurons", "weights"] = option(
        "neurons",
        "What they are fractions of: the neurons of every group (half of the neurons is about "
        "three quarters of the weights), or all weights of the network, where the one fraction of "
        "neurons is sought, the same for all groups, that comes nearest.",
    )
    include: tuple[str, ...] = option(
        ("*",), "Groups to cut: names as printed, * and ? match.", "PATTERN"
    )
    exclude: tuple[str, ...] = option((), "Groups to leave whole.", "PATTERN")
    per_group: bool = option(
        False, "Cut one group at a time, without fine-tuning, instead of all at once."
    )


@dataclasses.dataclass(frozen=True)
class MethodOptions:
    """How."""

    methods: tuple[Literal["prune", "fuse", "reconstruct"], ...] = option(
        ("prune", "fuse", "reconstruct"),
        "Plain pruning, Intra-Fusion, and reconstruction on training images without their labels; "
        "the last is for --mode compress, all groups at once.",
    )
    importances: tuple[Importance, ...] = option(
        ("l1",),
        "Scores that choose the neurons to keep, each a comparison of its own: "
        f"{', '.join(typing.get_args(Importance))}.",
        "SCORE",
        "--importance",
    )
    calibration_images: int = option(
        512,
        "Training images from which taylor, fisher and chip are computed, and networks are "
        "reconstructed (these without their labels).",
        "N",
    )
    solver: Literal["sinkhorn", "sinkhorn_kernel", "exact", "nearest", "auto"] = option(
        "sinkhorn",
        "What solves the transport problem; exact needs: pip install 'ifjax[exact]'; auto takes "
        "the exact one where that is fast.",
    )
    epsilon: float = option(0.01, "Sinkhorn's regularisation, relative to the mean cost.", "FACTOR")
    merge: Literal["reference", "preserving"] = option(
        "reference",
        "How maps act on weights: as in the paper's code, or so that duplicates merge unchanged.",
    )
    order: Literal["sequential", "simultaneous"] = option(
        "sequential",
        "Groups one by one from the output, as in the paper's code, or all from the given weights.",
    )
    rounds: int = option(
        1,
        "Reach each sparsity in so many rounds of compression and fine-tuning, of equal length.",
        "N",
    )


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """Split data."""

    mode: Literal["compress", "fap", "paf"] = option(
        "compress",
        "Compress a network; or train one on each of several folds of the data at once, and then "
        "fuse them and prune (fap), or prune each of them and fuse (paf), and fine-tune on all "
        "the data. The other options of this section go with fap and paf.",
    )
    folds: int = option(2, "Parts of the training images, with a network each.", "N")
    split: Literal["random", "stratified", "dirichlet"] = option(
        "random",
        "How the images are shared out to the folds: at random, evenly by class, or with every "
        "class in other parts to each (a Dirichlet draw).",
    )
    alpha: float = option(
        1.0,
        "How even the Dirichlet draw is: the smaller, the more the folds differ in their classes.",
        "NUMBER",
    )
    fold_start: Literal["same", "own"] = option(
        "own", "Whether the networks begin with the same weights, or with weights of their own."
    )
    fuse_on: Literal["weights", "activations"] = option(
        "activations", "What the networks of the folds are aligned by."
    )
    fuse_solver: Literal["sinkhorn_kernel", "exact"] = option(
        "sinkhorn_kernel", "What aligns them: a soft one, or one neuron to one neuron."
    )
    whole: bool = option(
        True, "Train and compress a network on all the data as well, to compare with."
    )


@dataclasses.dataclass(frozen=True)
class HostOptions:
    """Several hosts."""

    coordinator: str | None = option(
        None,
        "One run on several hosts, the same command on each: the address of process 0, or auto "
        "where Slurm, Open MPI, Kubernetes or Cloud TPU say it.",
        "HOST:PORT",
    )
    processes: int | None = option(
        None, "How many processes there are, with --coordinator HOST:PORT.", "N"
    )
    process: int | None = option(None, "Which of them this one is, from 0.", "I")
    local_devices: tuple[int, ...] | None = option(
        None, "The accelerators that this process takes; by default all of its host.", "I"
    )
    lost_after: int = option(
        15,
        "Seconds without a sign of life after which a process counts as lost, and the others end.",
        "SECONDS",
    )


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Running."""

    out: Path | None = option(
        None,
        "Folder of the results; by default runs/DATA-MODEL. `tensorboard --logdir` takes it.",
        "DIR",
    )
    overwrite: bool = option(False, "Replace the results that the folder already holds.")
    resume: bool = option(
        True, "Continue the unfinished run of the same settings that the folder holds."
    )
    seed: int = option(
        0, "Seed of initialisation, order of the images and augmentation; fold i has seed + i.", "N"
    )
    progress: bool = option(
        True,
        "Show how far a training is, on stderr: by a bar on a terminal, else by a line at its end.",
    )
    compile_cache: bool = option(
        True,
        "Keep compiled programs for later runs, which then begin sooner: in "
        "$JAX_COMPILATION_CACHE_DIR, by default ~/.cache/ifjax/programs (in $XDG_CACHE_HOME if "
        "that is set; ~/Library/Caches on macOS).",
    )
    eval_batch_size: int = option(512, "Images per evaluation step.", "N")
    eval_every: int = option(
        0,
        "Evaluate after every so many epochs of training, for the curves; 0 for the end only.",
        "N",
    )
    log_every: int = option(20, "Steps per point of the training curves.", "N")
    checkpoint_every: int = option(
        500, "Steps between the checkpoints from which an interrupted run continues.", "N"
    )


@dataclasses.dataclass(frozen=True)
class Config(
    NetworkOptions,
    DataOptions,
    TrainingOptions,
    CutOptions,
    MethodOptions,
    SplitOptions,
    HostOptions,
    RunOptions,
):
    r"""Trains (or loads) a network, compresses it, fine-tunes a little; evaluates and saves all.

    Or trains several on a part of the data each, at the same time, and makes them one small
    network. A run that was interrupted goes on where it was when the same command is given again.

    Times are for 2 CPU cores. ResNet-8 on the digits that come with scikit-learn, 1 to 2 minutes,
    97 to 99 % dense; at sparsity 0.3, by seed and version of jax, 10 to 28 % pruned, 46 to 81 %
    fused and 98 % reconstructed; fine-tuned 95 to 98 %:

        python train.py

    A trained ResNet-20 on CIFAR-10, groups inside the blocks only, about 3 minutes, 91.73 % dense;
    at sparsity 0.3 47.59 % pruned and 72.74 % fused:

        python train.py --data cifar10 --data-dir DIR --model resnet20 \
          --checkpoint resnet20_cifar10.safetensors --include "params/layer*conv1*" \
          --solver exact --fine-tune-epochs 0

    The same, one group at a time:

        python train.py --data cifar10 --data-dir DIR --model resnet20 \
          --checkpoint resnet20_cifar10.safetensors --include "params/layer*conv1*" \
          --solver exact --per-group --sparsities 0.25 0.5 0.75

    Two networks on half of the digits each, fused, pruned and fine-tuned, about 1 minute:

        python train.py --mode fap --folds 2
    """

    @property
    def folder(self) -> Path:
        """Where the results go."""
        mode = "" if self.mode == "compress" else f"-{self.mode}"
        return self.out or Path("runs") / f"{self.data}-{self.model}{mode}"

    @property
    def ways(self) -> tuple[str, ...]:
        """The methods that go with the rest: one network, on one host, all groups at once."""
        alone = self.mode == "compress" and self.coordinator is None and not self.per_group
        return self.methods if alone else self.scored

    @property
    def scored(self) -> tuple[str, ...]:
        """The methods that need no inputs."""
        return tuple(m for m in self.methods if m != "reconstruct")

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
