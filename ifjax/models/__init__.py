"""flax.linen networks; every width is an argument, so that a compressed one is ordinary again."""

from ifjax.models.cifar_resnet import BasicBlock, CifarResNet, ResNetWidths
from ifjax.models.cnn import SmallCNN
from ifjax.models.mlp import MLP
from ifjax.models.registry import NAMES, create

__all__ = ["MLP", "NAMES", "BasicBlock", "CifarResNet", "ResNetWidths", "SmallCNN", "create"]
