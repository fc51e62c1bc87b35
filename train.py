"""Train a network, make it smaller by plain pruning and by Intra-Fusion, and compare the two."""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

try:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import tyro
    from flax.errors import FlaxError

    import ifjax
    from ifjax import data, interop, models, report, training
    from ifjax.tree import leaves_by_path
except ModuleNotFoundError as missing:
    print(f"train.py: {missing}; run: pip install 'ifjax[train]'", file=sys.stderr)
    raise SystemExit(2) from None

METHODS = {"prune": "plain pruning", "fuse": "Intra-Fusion"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Train (or load) a network, compress it, evaluate, fine-tune a little, evaluate, save.

    Times are for 2 CPU cores. ResNet-8 on the digits that come with scikit-learn, 1 to 2 minutes,
    98 % dense; at sparsity 0.3, by seed, 10 to 28 % pruned and 60 to 75 % fused; fine-tuned both
    96 to 97 %:

    python train.py

    A trained ResNet-20 on CIFAR-10, groups inside the blocks only, about 3 minutes, 91.73 % dense;
    at sparsity 0.3 47.59 % pruned and 72.74 % fused:

    python train.py --data cifar10 --data-dir DIR --model resnet20
    --checkpoint resnet20_cifar10.safetensors --include "params/layer*conv1*" --solver exact
    --fine-tune-epochs 0
    """

    data: Literal["digits", "cifar10"] = "digits"
    """Data set; digits comes with scikit-learn, cifar10 must have been prepared by TFDS."""
    data_dir: Path | None = None
    """Folder that holds cifar10/; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
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
    ] = "resnet8"
    """Network."""
    shortcut: Literal["A", "B"] = "A"
    """How a ResNet's shortcut gets wider: zero channels (A) or a projection (B)."""
    checkpoint: Path | None = None
    """Start from this network instead of training one: a folder that ifjax.save wrote (such as
    RESULTS/dense), or a .safetensors file with the state dict of a CIFAR ResNet."""
    out: Path | None = None
    """Folder of the results; by default runs/DATA-MODEL."""
    overwrite: bool = False
    """Replace the results that the folder already holds."""
    seed: int = 0
    """Of initialisation, order of the images and augmentation."""
    progress: bool = True
    """Show progress bars."""

    epochs: int = 12
    """Passes over the training images before compression."""
    batch_size: int = 64
    """Images per training step."""
    eval_batch_size: int = 512
    """Images per evaluation step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum, or AdamW."""
    learning_rate: Annotated[float, tyro.conf.arg(aliases=["--lr"])] = 0.1
    """Peak learning rate; AdamW wants about 0.002."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """On kernels only."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the learning rate falls: to zero, or by tenths at 1/2 and 3/4, or not at all."""
    warmup: float = 0.05
    """Part of the steps in which the learning rate rises."""
    label_smoothing: float = 0.0
    """Part of the target spread evenly over the classes."""
    augment: bool = True
    """Shift (and, where the data set allows, mirror) the training images at random."""

    sparsities: tuple[float, ...] = (0.3, 0.5, 0.7)
    """Fractions of neurons to remove from every group, each in (0, 1)."""
    methods: tuple[Literal["prune", "fuse"], ...] = ("prune", "fuse")
    """Plain pruning, Intra-Fusion, or both."""
    include: tuple[str, ...] = ("*",)
    """Patterns of the groups to cut (names as printed, * and ? match); by default all."""
    exclude: tuple[str, ...] = ()
    """Patterns of the groups to leave whole."""
    importance: Literal["l1", "l2", "linf", "random"] = "l1"
    """Score that chooses the neurons to keep."""
    solver: Literal["sinkhorn", "exact", "nearest"] = "sinkhorn"
    """Of the transport problem; exact needs: pip install 'ifjax[exact]'."""
    epsilon: float = 0.01
    """Sinkhorn's regularisation, relative to the mean cost."""
    merge: Literal["reference", "preserving"] = "reference"
    """How maps act on weights: as in the paper's code, or so that duplicates merge unchanged."""
    order: Literal["sequential", "simultaneous"] = "sequential"
    """Groups one by one from the output, as in the paper's code, or all from the given weights."""
    fine_tune_epochs: int = 2
    """Passes over the training images after compression; 0 for none."""
    fine_tune_learning_rate: Annotated[float, tyro.conf.arg(aliases=["--fine-tune-lr"])] = 0.02
    """Peak learning rate of the fine-tuning."""


class UserError(Exception):
    """Something the user can put right; told in one line, before anything is written."""


class NotConverged(Exception):
    """A transport problem was not solved."""


class Network(NamedTuple):
    """Variables, and the functions that take them.

    ``apply_eval(variables, images)`` gives logits, ``apply_train`` logits and new batch statistics.
    """

    variables: Any
    apply_eval: Callable[[Any, jax.Array], Any]
    apply_train: Callable[[Any, jax.Array], Any]

    def shrink(self, variables: Any, spec: ifjax.FusionSpec) -> "Network":
        """Give the same network at the widths of a spec."""
        apply_eval = ifjax.shrink(self.apply_eval, spec)
        return Network(variables, apply_eval, ifjax.shrink(self.apply_train, spec))


class Job(NamedTuple):
    """A configuration that was found good, and what it stands for."""

    dataset: data.Dataset
    network: Network
    graph: ifjax.DependencyGraph
    specs: dict[tuple[float, str], ifjax.FusionSpec]
    out: Path


def main(config: Config, command: str = "") -> list[report.Row]:
    """Do all of it.

    Args:
        config: what to do.
        command: the command line, for the report.

    Returns:
        The rows of the table: the dense network, then every method at every sparsity.

    Raises:
        UserError: if the configuration, the data set or the checkpoint cannot be used; nothing
            was written then.
        ifjax.training.Divergence: if a loss becomes NaN or infinite.
        NotConverged: if Sinkhorn does not reach its tolerance.
    """
    began = time.monotonic()
    job = prepare(config)
    print(job.graph)
    with user_error("--out"):
        job.out.mkdir(parents=True, exist_ok=True)

    network = job.network
    if config.checkpoint is None:
        fit = trainer(config, job.dataset, network, config.epochs, config.learning_rate)
        network = network._replace(variables=fit(network.variables, "train"))
    rows = [measure_dense(config, job, network)]
    for sparsity in sorted(config.sparsities):
        rows += compress(config, job, network, sparsity)

    seconds = time.monotonic() - began
    title = f"{config.model} on {config.data}, {rows[0].weights:,} weights, seed {config.seed}"
    report.plot_accuracy(rows, job.out / "accuracy.png", title)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(config).items()}
    origin = report.provenance(command) | {"config": settings, "seconds": round(seconds, 1)}
    text = report.to_json(rows, origin | {"seed": config.seed})
    report.write_atomically(job.out / "results.json", lambda file: file.write_text(text))
    print(f"\n{report.table(rows)}\n")
    print(f"{seconds:.0f} s; networks, results.json and accuracy.png are in {job.out}")
    return rows


def prepare(config: Config) -> Job:
    """Turn a configuration into a job, or say in one line why not; writes nothing."""
    out = config.out or Path("runs") / f"{config.data}-{config.model}"
    check(config, out)
    with user_error("--data"):
        dataset = data.load(config.data, config.data_dir)
    if config.batch_size > len(dataset.train_images):
        raise UserError(
            f"--batch-size: {config.batch_size} is more than the "
            f"{len(dataset.train_images)} training images of {config.data}"
        )
    image = jax.ShapeDtypeStruct((1, *dataset.image_shape), "float32")
    with user_error("--checkpoint" if config.checkpoint else "--model"):
        if config.checkpoint is None:
            network = create(config, dataset)
        else:
            network = load(config, dataset, config.checkpoint)
        graph = ifjax.trace(network.apply_eval, network.variables, image)
    specs = {}
    for sparsity in config.sparsities:
        for method in config.methods:
            with user_error("spec"):
                specs[sparsity, method] = choose(config, graph, sparsity, method)
    return Job(dataset, network, graph, specs, out)


def check(config: Config, out: Path) -> None:
    """Raise for values that cannot work, whatever the data set and the network."""
    for sparsity in config.sparsities:
        if not 0.0 < sparsity < 1.0:
            raise UserError(f"--sparsities: each must lie between 0 and 1, got {sparsity}")
    for option in ("sparsities", "methods"):
        values = getattr(config, option)
        if not values or len(set(values)) < len(values):
            raise UserError(f"--{option}: expected one or more different values, got {values}")
    for option, least in {"epochs": 1, "batch_size": 1, "fine_tune_epochs": 0, "seed": 0}.items():
        if getattr(config, option) < least:
            flag = option.replace("_", "-")
            raise UserError(f"--{flag}: must be at least {least}, got {getattr(config, option)}")
    if not 0.0 <= config.label_smoothing < 1.0:
        raise UserError(f"--label-smoothing: must lie in [0, 1), got {config.label_smoothing}")
    for rate in (config.learning_rate, config.fine_tune_learning_rate):
        with user_error("optimizer"):
            optimizer_config(config, rate)
    if config.solver == "exact" and importlib.util.find_spec("ot") is None:
        raise UserError("--solver: exact needs POT; run: pip install 'ifjax[exact]'")
    with user_error("plot"):
        report.require_matplotlib()
    if config.checkpoint is not None and not config.checkpoint.exists():
        raise UserError(f"--checkpoint: there is no {config.checkpoint}")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file, expected a folder")
    if out.exists() and any(out.iterdir()) and not config.overwrite:
        raise UserError(f"--out: {out} is not empty; pass --overwrite or another folder")


def create(config: Config, dataset: data.Dataset) -> Network:
    """Initialise the network that the configuration names."""
    model = make_model(config, dataset)
    image = jnp.zeros((1, *dataset.image_shape))
    return as_network(model, jax.jit(model.init)(jax.random.key(config.seed), image))


def load(config: Config, dataset: data.Dataset, path: Path) -> Network:
    """Read a dense network, and hold it to what the configuration and the data set ask for."""
    if path.suffix == ".safetensors":
        model, variables = interop.cifar_resnet_from_torch(interop.load_safetensors(path))
        name = f"resnet{model.widths.depth}"
        if (name, model.shortcut) != (config.model, config.shortcut):
            raise UserError(
                f"--checkpoint: {path} holds a {name} with shortcuts {model.shortcut}; "
                f"pass --model {name} --shortcut {model.shortcut}"
            )
    else:
        model = make_model(config, dataset)
        variables, spec = ifjax.load(path)
        if spec.plan.widths:
            raise UserError(
                f"--checkpoint: {path} was compressed already; start from a dense network"
            )
    init, image = make_model(config, dataset).init, jnp.zeros((1, *dataset.image_shape))
    expected = jax.eval_shape(init, jax.random.key(0), image)
    found, wanted = leaves_by_path(variables), leaves_by_path(expected)
    for leaf in sorted(found.keys() | wanted.keys()):
        shapes = [getattr(tree.get(leaf), "shape", "no leaf") for tree in (wanted, found)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"--checkpoint: {path} is no {config.model} for {config.data}: "
                f"expected {shapes[0]} at {leaf}, got {shapes[1]}"
            )
        if not jnp.isfinite(found[leaf]).all():
            raise UserError(f"--checkpoint: {path} holds NaN or infinite numbers at {leaf}")
    return as_network(model, variables)


def make_model(config: Config, dataset: data.Dataset) -> nn.Module:
    """Build the module that the configuration names."""
    if config.model.startswith("resnet"):
        depth = int(config.model.removeprefix("resnet"))
        return models.CifarResNet.standard(depth, dataset.num_classes, shortcut=config.shortcut)
    return models.create(config.model, dataset.num_classes)


def as_network(model: nn.Module, variables: Any) -> Network:
    """Pair a flax module's two modes with its variables."""

    def apply_eval(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images)

    def apply_train(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    return Network(variables, apply_eval, apply_train)


def choose(
    config: Config, graph: ifjax.DependencyGraph, sparsity: float, method: str
) -> ifjax.FusionSpec:
    """Decide what to cut, and how."""
    return graph.spec(
        sparsity,
        include=config.include,
        exclude=config.exclude or None,
        method=method,
        importance=config.importance,
        solver=config.solver,
        epsilon=config.epsilon,
        merge=config.merge,
        order=config.order,
        seed=config.seed,
    )


def measure_dense(config: Config, job: Job, network: Network) -> report.Row:
    """Evaluate and save the network as it is before compression."""
    whole = job.graph.spec(0.0)
    accuracy = evaluator(config, job.dataset, network)(network.variables)
    save(job.out / "dense", network.variables, whole)
    print(f"dense: accuracy {accuracy:.2%}", flush=True)
    return report.Row(0.0, "dense", whole.weights()[0], whole.flops()[0], accuracy, None, "dense")


def compress(config: Config, job: Job, network: Network, sparsity: float) -> list[report.Row]:
    """Compress by every method to one sparsity, evaluate, fine-tune, evaluate, save."""
    # All methods give the same widths, so one set of compiled steps serves them.
    spec = job.specs[sparsity, config.methods[0]]
    small = network.shrink(None, spec)
    accuracy_of = evaluator(config, job.dataset, small)
    tune = trainer(
        config, job.dataset, small, config.fine_tune_epochs, config.fine_tune_learning_rate
    )
    rows = []
    for method in config.methods:
        spec = job.specs[sparsity, method]
        label, folder = f"{METHODS[method]} {sparsity:.0%}", f"{method}-{sparsity:g}"
        variables, converged = fuse(network.variables, spec)
        if not converged:
            raise NotConverged(
                f"{config.solver} did not converge for {label} at epsilon {config.epsilon}; "
                "use a larger --epsilon, or --solver exact"
            )
        before, after = accuracy_of(variables), None
        message = f"{label}: accuracy {before:.2%}"
        if config.fine_tune_epochs:
            variables = tune(variables, f"fine-tune {label}")
            after = accuracy_of(variables)
            message += f", fine-tuned {after:.2%}"
        save(job.out / folder, variables, spec)
        print(message, flush=True)
        (_, weights), (_, flops) = spec.weights(), spec.flops()
        rows.append(report.Row(sparsity, METHODS[method], weights, flops, before, after, folder))
    return rows


def save(path: Path, variables: Any, spec: ifjax.FusionSpec) -> None:
    """Save a network in the place of an earlier one, if there is one, once it is complete."""
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    ifjax.save(new, variables, spec)
    shutil.rmtree(path, ignore_errors=True)
    new.rename(path)


@functools.partial(jax.jit, static_argnames="spec")
def fuse(variables: Any, spec: ifjax.FusionSpec) -> tuple[Any, jax.Array]:
    """Compute ``ifjax.fuse_params`` in one compiled program, and whether all solvers converged."""
    maps = ifjax.transport_maps(variables, spec)
    converged = jnp.array([found.converged for found in maps.values()]).all()
    return ifjax.apply_maps(variables, spec, maps), converged


def trainer(
    config: Config, dataset: data.Dataset, network: Network, epochs: int, learning_rate: float
) -> Callable[[Any, str], Any]:
    """Build ``(variables, description) -> trained variables``; compiles on its first call."""
    steps_per_epoch = len(dataset.train_images) // config.batch_size
    optimization = optimizer_config(config, learning_rate)
    schedule = training.make_schedule(optimization, max(1, epochs * steps_per_epoch))
    optimizer = training.make_optimizer(optimization, schedule)

    def prepare_images(key: jax.Array, images: jax.Array) -> jax.Array:
        return dataset.normalize(dataset.augment(key, images) if config.augment else images)

    step = training.make_train_step(
        network.apply_train, optimizer, config.label_smoothing, prepare_images
    )

    def batches(epoch: int) -> Iterator[data.Batch]:
        images, labels = dataset.train_images, dataset.train_labels
        return data.train_batches(images, labels, config.batch_size, seed=config.seed, epoch=epoch)

    def fit(variables: Any, description: str) -> Any:
        state, _ = training.fit(
            training.create_state(variables, optimizer, config.seed),
            step,
            batches,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            schedule=schedule,
            description=description,
            progress=config.progress,
        )
        return state.variables

    return fit


def evaluator(config: Config, dataset: data.Dataset, network: Network) -> Callable[[Any], float]:
    """Build ``variables -> test accuracy``; compiles on its first call."""
    step = training.make_eval_step(network.apply_eval, dataset.normalize)
    size = min(config.eval_batch_size, len(dataset.test_images))

    def accuracy(variables: Any) -> float:
        batches = data.eval_batches(dataset.test_images, dataset.test_labels, size)
        return training.evaluate(step, variables, batches).accuracy

    return accuracy


def optimizer_config(config: Config, learning_rate: float) -> training.OptimizerConfig:
    """Pick the optimizer's part of the configuration."""
    return training.OptimizerConfig(
        name=config.optimizer,
        learning_rate=learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        warmup=config.warmup,
    )


@contextlib.contextmanager
def user_error(option: str) -> Iterator[None]:
    """Turn what a library says about bad input into a :class:`UserError` about an option."""
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError, FlaxError) as error:
        raise UserError(f"{option}: {error}") from error


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run :func:`main`; 0, or 2 for what the user can put right, or 1 for a run that failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = tyro.cli(Config, prog="train.py", args=arguments)
    try:
        main(config, shlex.join(["python", "train.py", *arguments]))
    except KeyboardInterrupt:
        print("train.py: interrupted", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"train.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (training.Divergence, NotConverged) as error:
        print(f"train.py: stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(cli())
