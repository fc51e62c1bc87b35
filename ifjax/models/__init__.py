"""flax.linen networks, and a decoder of language on bare arrays.

Every width is an argument or a shape, so that a compressed network is ordinary again.
"""

from ifjax.models.cifar_resnet import CifarResNet
from ifjax.models.cnn import SmallCNN
from ifjax.models.decoder import DecoderConfig, Rotary, decoder
from ifjax.models.decoder_head import untie_decoder
from ifjax.models.decoder_layers import keep_layers, layer_divergence, silence_layers
from ifjax.models.decoder_widths import DecoderWidths, decoder_shapes, init_decoder
from ifjax.models.mlp import MLP
from ifjax.models.registry import NAMES, create
from ifjax.models.resnet import ResNet
from ifjax.models.resnet_blocks import BasicBlock, Bottleneck
from ifjax.models.resnet_widths import ResNetWidths
from ifjax.models.vgg import VGG
from ifjax.models.vit import EncoderBlock, ViT
from ifjax.models.vit_widths import ViTWidths

__all__ = [
    "MLP",
    "NAMES",
    "VGG",
    "BasicBlock",
    "Bottleneck",
    "CifarResNet",
    "DecoderConfig",
    "DecoderWidths",
    "EncoderBlock",
    "ResNet",
    "ResNetWidths",
    "Rotary",
    "SmallCNN",
    "ViT",
    "ViTWidths",
    "create",
    "decoder",
    "decoder_shapes",
    "init_decoder",
    "keep_layers",
    "layer_divergence",
    "silence_layers",
    "untie_decoder",
]
