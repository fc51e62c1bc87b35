"""The network of a configuration: initialised or read from a file, and checked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import ifjax
from ifjax import data, interop, models
from ifjax.experiment.config import Config
from ifjax.experiment.errors import UserError
from ifjax.tree import leaves_by_path

_IMAGENET_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")


class Network(NamedTuple):
    """Variables, and the functions that take them.

    ``apply_eval(variables, images)`` gives logits, ``apply_train`` logits and new batch statistics.
    """

    variables: Any
    apply_eval: Callable[[Any, jax.Array], Any]
    apply_train: Callable[[Any, jax.Array], Any]

    def shrink(self, variables: Any, spec: ifjax.FusionSpec) -> "Network":
        """The same network at the widths of a spec."""
        apply_eval = ifjax.shrink(self.apply_eval, spec)
        return Network(variables, apply_eval, ifjax.shrink(self.apply_train, spec))


def create(config: Config, dataset: data.ImageDataset, seed: int | None = None) -> Network:
    """Initialises the network that a configuration names.

    Args:
        config: its name, options and seed.
        dataset: gives the shape of the images and the number of classes.
        seed: in place of the configuration's.

    Returns:
        The network.

    Example:
        >>> network = create(Config(model="mlp"), data.load("digits"))
        >>> network.apply_eval(network.variables, jnp.zeros((1, 8, 8, 1))).shape
        (1, 10)
    """
    model = make_model(config, dataset)
    image = jnp.zeros((1, *dataset.image_shape))
    key = jax.random.key(config.seed if seed is None else seed)
    return as_network(model, jax.jit(model.init)(key, image))


def load(config: Config, dataset: data.ImageDataset, path: Path) -> Network:
    """Reads a dense network, and holds it to what the configuration and the data set ask for.

    Args:
        config: names the network.
        dataset: as for :func:`create`.
        path: what ``ifjax.save`` wrote, or a safetensors file.

    Returns:
        The network.

    Raises:
        UserError: if the file holds another network, or numbers that are not finite.
        ValueError: if the file is damaged.
    """
    model = make_model(config, dataset)
    if path.suffix == ".safetensors":
        variables = _from_torch(config, model, path)
    else:
        variables, spec = ifjax.load(path)
        if spec.structure.widths:
            raise UserError(
                f"--checkpoint: {path} was compressed already; start from a dense network"
            )
    image = jnp.zeros((1, *dataset.image_shape))
    expected = jax.eval_shape(model.init, jax.random.key(0), image)
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


def make_model(config: Config, dataset: data.ImageDataset) -> nn.Module:
    """Builds the module that a configuration names.

    Args:
        config: its name and options.
        dataset: gives the number of classes, and a ResNet's stem.

    Returns:
        The module.

    Raises:
        UserError: if the network has no such option.

    Example:
        >>> make_model(Config(model="resnet20", shortcut="B"), data.load("digits")).shortcut
        'B'
    """
    name, options = config.model, {}
    if config.width != 1.0:
        if name in ("mlp", "cnn"):
            raise UserError(f"--width: {name} has no such choice")
        options["width"] = config.width
    if name in _IMAGENET_RESNETS:
        stem = "imagenet" if dataset.name == "imagenet2012" else "cifar"
        options["stem"] = stem if config.stem == "auto" else config.stem
    elif config.stem != "auto":
        raise UserError(f"--stem: {name} has no such choice, {', '.join(_IMAGENET_RESNETS)} have")
    if name.startswith("resnet") and name not in _IMAGENET_RESNETS:
        options["shortcut"] = config.shortcut
    elif config.shortcut != "A":
        raise UserError(f"--shortcut: {name} has no such choice, resnet8 to resnet110 have")
    if config.precision == "bfloat16":
        options["dtype"] = jnp.bfloat16
    return models.create(name, dataset.num_classes, **options)


def as_network(model: nn.Module, variables: Any) -> Network:
    """Pairs a flax module's two modes with its variables.

    Args:
        model: a module whose ``__call__`` takes images and ``train``.
        variables: its variables.

    Returns:
        The network.
    """

    def apply_eval(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images)

    def apply_train(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    return Network(variables, apply_eval, apply_train)


def _from_torch(config: Config, model: Any, path: Path) -> Any:
    """Variables of a torch network of the configuration's family."""
    name, state = config.model, interop.load_safetensors(path)
    if name.startswith("vgg"):
        return interop.vgg_from_torch(state)[1]
    if name.startswith("vit"):
        return interop.vit_from_torch(state, heads=model.widths.heads)[1]
    if name in _IMAGENET_RESNETS:
        return interop.resnet_from_torch(state)[1]
    if name in ("mlp", "cnn"):
        raise UserError(f"--checkpoint: there are no torch networks named {name}, got {path}")
    found, variables = interop.cifar_resnet_from_torch(state)
    there = f"resnet{found.widths.depth}"
    if (there, found.shortcut) != (name, config.shortcut):
        raise UserError(
            f"--checkpoint: {path} holds a {there} with shortcuts {found.shortcut}; "
            f"pass --model {there} --shortcut {found.shortcut}"
        )
    return variables
