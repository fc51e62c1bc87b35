"""flax.linen networks; every width is an argument, so that a compressed one is ordinary again."""

from ifjax.models.cifar_resnet import BasicBlock, CifarResNet
from ifjax.models.cnn import SmallCNN
from ifjax.models.mlp import MLP
from ifjax.models.registry import NAMES, create
from ifjax.models.resnet_widths import ResNetWidths

__all__ = ["MLP", "NAMES", "BasicBlock", "CifarResNet", "ResNetWidths", "SmallCNN", "create"]
