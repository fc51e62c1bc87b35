"""Networks as the options say, and torch's checkpoints in their place."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ifjax import data, interop
from ifjax.experiment.config import Config
from ifjax.experiment.errors import UserError
from ifjax.experiment.network import as_network, create, load, make_model


def dataset(name: str = "cifar10", size: int = 32) -> data.Dataset:
    images, labels = np.zeros((4, size, size, 3), np.uint8), np.arange(4, dtype=np.int32)
    return data.Dataset(name, images, labels, images, labels, 10, (0.5,) * 3, (0.25,) * 3)


def first_kernel(config: Config, name: str = "cifar10") -> tuple[int, ...]:
    model = make_model(config, dataset(name))
    struct = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return struct["params"]["conv1"]["kernel"].shape


def test_the_stem_follows_the_data_set_unless_it_is_named() -> None:
    config = Config(model="resnet18", width=0.125)
    assert first_kernel(config) == (3, 3, 3, 8)
    assert first_kernel(config, "imagenet2012") == (7, 7, 3, 8)
    assert first_kernel(dataclasses.replace(config, stem="imagenet")) == (7, 7, 3, 8)


def test_bfloat16_computes_in_it_and_keeps_float32_parameters() -> None:
    config = Config(model="resnet8", width=0.25, precision="bfloat16")
    model = make_model(config, dataset())
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    struct = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(struct)} == {jnp.dtype("float32")}
    network = as_network(model, struct)
    text = str(jax.make_jaxpr(network.apply_eval)(struct, image))
    convolutions = [line for line in text.splitlines() if "conv_general_dilated[" in line]
    assert len(convolutions) == 7
    assert all("bf16" in line for line in convolutions)


@pytest.mark.parametrize(
    ("model", "convert"),
    [
        ("resnet8", interop.cifar_resnet_to_torch),
        ("resnet18", interop.resnet_to_torch),
        ("vgg11", interop.vgg_to_torch),
        ("vit_tiny", interop.vit_to_torch),
    ],
)
def test_a_state_dict_comes_in_bit_for_bit(model: str, convert: object, tmp_path: Path) -> None:
    config, images = Config(model=model, width=1 / 48 if model == "vit_tiny" else 1 / 16), dataset()
    network = create(config, images)
    file = tmp_path / "network.safetensors"
    safetensors.numpy.save_file(convert(network.variables), file)
    found = load(config, images, file).variables
    assert jax.tree.structure(found) == jax.tree.structure(network.variables)
    jax.tree.map(np.testing.assert_array_equal, found, network.variables)
    with pytest.raises(UserError, match=r"is no .* for digits: expected"):
        load(dataclasses.replace(config, width=0.5, data="digits"), images, file)
    with pytest.raises(UserError, match="there are no torch networks named mlp"):
        load(Config(model="mlp"), images, file)
