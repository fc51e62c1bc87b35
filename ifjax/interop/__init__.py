"""Torch state dicts and safetensors files, to and from flax variables; checkpoints of decoders.

Torch stores convolutions as OIHW and dense layers as (out, in), flax as HWIO and (in, out); the
names follow a fixed rule for each family of networks. Batch norm agrees but for the running
variance in training, where torch takes the unbiased estimate of a batch and flax the biased one.
"""

from ifjax.interop.files import load_safetensors, map_safetensors
from ifjax.interop.gguf import load_gguf
from ifjax.interop.huggingface import (
    Checkpoint,
    load_huggingface,
    overrides_for,
    save_huggingface,
)
from ifjax.interop.maxtext import (
    from_maxtext,
    maxtext_config,
    maxtext_overrides,
    to_maxtext,
)
from ifjax.interop.resnet import (
    cifar_resnet_from_torch,
    cifar_resnet_to_torch,
    resnet_from_torch,
    resnet_to_torch,
)
from ifjax.interop.tokenizers import load_tokenizer
from ifjax.interop.vgg import vgg_from_torch, vgg_to_torch
from ifjax.interop.vit import vit_from_torch, vit_to_torch

__all__ = [
    "Checkpoint",
    "cifar_resnet_from_torch",
    "cifar_resnet_to_torch",
    "from_maxtext",
    "load_gguf",
    "load_huggingface",
    "load_safetensors",
    "load_tokenizer",
    "map_safetensors",
    "maxtext_config",
    "maxtext_overrides",
    "overrides_for",
    "resnet_from_torch",
    "resnet_to_torch",
    "save_huggingface",
    "to_maxtext",
    "vgg_from_torch",
    "vgg_to_torch",
    "vit_from_torch",
    "vit_to_torch",
]
