"""What a model of the zoo is, and the registry that holds all of them."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Build = Callable[[int], tuple[Callable[..., Any], Any, tuple[Any, ...]]]
FRAMEWORKS = {  # modules of models by what they need
    "tests.zoo.plain_dense": "jax",
    "tests.zoo.plain_vision": "jax",
    "tests.zoo.plain_attention": "jax",
    "tests.zoo.plain_language": "jax",
    "tests.zoo.plain_recurrent": "jax",
    "tests.zoo.plain_unusual": "jax",
    "tests.zoo.linen_models": "flax",
    "tests.zoo.nnx_models": "flax",
    "tests.zoo.haiku_models": "haiku",
    "tests.zoo.equinox_models": "equinox",
    "tests.zoo.penzai_models": "penzai",
    "tests.zoo.equimo_models": "equimo.models",
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A network of the zoo.

    Attributes:
      name: of the network.
      family: what it stands for, see the table in the README.
      framework: what it is written in.
      build: from a batch size to ``(apply_fn, params, inputs)``; params may be structs, and the
        inputs of a smaller batch are the first rows of those of a larger one.
      state: which inputs and outputs follow the widths, as in `ifjax.trace`.
      reads_widths: ``apply_fn`` reads all widths off its parameters, so that it runs at any.
      rows: the rows of a batch do not see each other.
      tolerance: of changes relative to the largest entry of the output; larger only for a function
        that casts to float32 inside.
      silent: globs on the members, ``group: path[axis]``, whose permutation alone cannot move the
        output.
    """

    name: str
    family: str
    framework: str
    build: Build
    state: tuple[str, ...] | None = None
    reads_widths: bool = False
    rows: bool = True
    tolerance: float = 1e-9
    silent: tuple[str, ...] = ()


MODELS: list[Model] = []


def model(family: str, framework: str, **options: Any) -> Callable[[Build], Build]:
    """Adds the function below, named as the network, to the zoo."""

    def add(build: Build) -> Build:
        options.setdefault("reads_widths", framework == "jax")
        MODELS.append(Model(build.__name__, family, framework, build, **options))
        return build

    return add


def models() -> tuple[list[Model], dict[str, str]]:
    """All models that can be built here, and the packages that are missing, by module."""
    missing = {}
    for module, package in FRAMEWORKS.items():
        if _is_installed(package):
            importlib.import_module(module)
        else:
            missing[module] = package
    return MODELS, missing


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that would hold it
        return False


def weights(**shapes: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Parameters by name; their values are drawn by the checks."""
    return {name: jax.ShapeDtypeStruct(shape, float) for name, shape in shapes.items()}


def rows(batch: int, *shape: int) -> Any:
    """Normal numbers ``[batch, *shape]``, the same in the first rows for every batch size."""
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal((4, *shape))[:batch])


def tokens(batch: int, length: int, vocabulary: int = 11) -> Any:
    """Integers ``[batch, length]``."""
    every = np.random.default_rng(length).integers(0, vocabulary, (4, length))
    return jnp.asarray(every[:batch])
