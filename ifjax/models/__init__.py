"""flax.linen networks; every width is an argument, so that a compressed one is ordinary again."""

from ifjax.models.cifar_resnet import CifarResNet
from ifjax.models.cnn import SmallCNN
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
    "EncoderBlock",
    "ResNet",
    "ResNetWidths",
    "SmallCNN",
    "ViT",
    "ViTWidths",
    "create",
]
