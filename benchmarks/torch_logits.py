"""The logits of imported networks beside torch's.

Every weight is drawn by a recipe from its name alone, so that both sides have the same ones and
only torch's logits need to be kept: tests/fixtures/torch_logits.npz. The ImageNet ResNets and the
vision transformers are torchvision's own classes, VGG and the CIFAR ResNets are written below with
the names usual for them.

    python benchmarks/torch_logits.py write   # with torch and torchvision: about 1 minute
    python benchmarks/torch_logits.py         # with ifjax: about 2 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FIXTURE = Path(__file__).parents[1] / "tests/fixtures/torch_logits.npz"
BATCH = 2
NARROW = 1 / 16

# Family, its arguments, and the side of the images, by name.
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    **{f"vgg{d} x 1/16": ("vgg", {"depth": d, "width": NARROW}, 32) for d in (11, 13, 16, 19)},
    **{
        f"resnet{d} x 1/16": ("resnet", {"depth": d, "width": NARROW}, 16)
        for d in (18, 34, 50, 101)
    },
    "torchvision vit, 2 blocks": (
        "vit",
        {"patch_size": 4, "num_layers": 2, "num_heads": 3, "hidden_dim": 12, "mlp_dim": 20},
        8,
    ),
    "torchvision resnet18": ("torchvision", {"name": "resnet18"}, 64),
    "torchvision resnet50": ("torchvision", {"name": "resnet50"}, 64),
    **{f"vgg{d}": ("vgg", {"depth": d}, 32) for d in (11, 13, 16, 19)},
    **{f"resnet{d}": ("resnet", {"depth": d}, 32) for d in (18, 34, 50, 101)},
    "torchvision resnet34": ("torchvision", {"name": "resnet34"}, 64),
    "torchvision resnet101": ("torchvision", {"name": "resnet101"}, 64),
    "torchvision vit_b_16": (
        "vit",
        {"patch_size": 16, "num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072},
        64,
    ),
}
# Those that take seconds; the others are for the slow tests.
QUICK = tuple(CASES)[:11]


def uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1), the same for the same name on every machine and numpy version."""
    bits = np.random.Philox(key=zlib.crc32(key.encode())).random_raw(math.prod(shape))
    return np.reshape((bits >> 11) * 2.0**-52 - 1, shape)


def draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """One entry of a state dict: He-scaled weights, norms that keep the scale of what they see."""
    if key.endswith("num_batches_tracked"):
        return np.array(7, np.int64)
    value = uniform(key, shape)
    if key.endswith(("running_var", "weight")) and len(shape) == 1:
        value = 1 + 0.5 * value
        # Branches weaker than the stream, which would grow exponentially with the blocks otherwise.
        if key.startswith("layer") and key.endswith(("bn2.weight", "bn3.weight")):
            value *= 0.4
    elif len(shape) == 1:
        value *= 0.2
    else:
        value *= math.sqrt(6 / math.prod(shape[1:]))
    return value.astype(np.float32)


def images(side: int) -> np.ndarray:
    """The input, NHWC."""
    return 2 * uniform("images", (BATCH, side, side, 3)).astype(np.float32)


def torch_network(family: str, arguments: Mapping[str, Any], side: int) -> Any:
    """The network of torch, with weights of its own."""
    import torchvision

    if family == "torchvision":
        return getattr(torchvision.models, arguments["name"])()
    if family == "vit":
        return torchvision.models.VisionTransformer(image_size=side, **arguments)
    return (vgg if family == "vgg" else resnet)(**arguments)


def vgg(depth: int, width: float = 1.0) -> Any:
    """VGG with batch norm for 32 x 32 pixels."""
    from torch import nn

    counts = {11: "11222", 13: "22222", 16: "22333", 19: "22444"}[depth]
    layers, channels = [], 3
    for count, full in zip(map(int, counts), (64, 128, 256, 512, 512), strict=True):
        out = int(full * width)
        for _ in range(count):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2))

    class VGG(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Linear(channels, 10)

        def forward(self, x: Any) -> Any:
            return self.classifier(self.features(x).flatten(1))

    return VGG()


def resnet(depth: int, width: float = 1.0) -> Any:
    """ResNet for small images, with the shortcut and the linear layer named as usual for CIFAR."""
    from torch import nn

    counts, expansion = {
        18: ((2, 2, 2, 2), 1),
        34: ((3, 4, 6, 3), 1),
        50: ((3, 4, 6, 3), 4),
        101: ((3, 4, 23, 3), 4),
    }[depth]

    Block = residual_block(expansion)

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            planes = channels = int(64 * width)
            self.conv1 = nn.Conv2d(3, planes, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(planes)
            for stage, count in enumerate(counts, start=1):
                blocks = []
                for i in range(count):
                    blocks.append(Block(channels, planes, 2 if stage > 1 and i == 0 else 1))
                    channels = expansion * planes
                setattr(self, f"layer{stage}", nn.Sequential(*blocks))
                planes *= 2
            self.linear = nn.Linear(channels, 10)

        def forward(self, x: Any) -> Any:
            x = self.bn1(self.conv1(x)).relu()
            for stage in range(1, 5):
                x = getattr(self, f"layer{stage}")(x)
            return self.linear(x.mean((2, 3)))

    return ResNet()


def residual_block(expansion: int) -> Any:
    """The class of a block: of two convolutions, or of three that end on more channels."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, channels: int, planes: int, stride: int) -> None:
            super().__init__()
            out = expansion * planes
            if expansion == 1:
                shapes = [(channels, planes, 3, stride), (planes, planes, 3, 1)]
            else:
                shapes = [
                    (channels, planes, 1, 1),
                    (planes, planes, 3, stride),
                    (planes, out, 1, 1),
                ]
            for i, (into, to, size, step) in enumerate(shapes, start=1):
                conv = nn.Conv2d(into, to, size, step, size // 2, bias=False)
                setattr(self, f"conv{i}", conv)
                setattr(self, f"bn{i}", nn.BatchNorm2d(to))
            self.count = len(shapes)
            self.shortcut = nn.Sequential()
            if stride > 1 or channels != out:
                projection = nn.Conv2d(channels, out, 1, stride, bias=False)
                self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out))

        def forward(self, x: Any) -> Any:
            y = x
            for i in range(1, self.count + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = y.relu() if i < self.count else y
            return (y + self.shortcut(x)).relu()

    return Block


def torch_logits(case: str) -> tuple[dict[str, tuple[int, ...]], np.ndarray]:
    """Shapes by key and the logits, both from torch."""
    import torch

    family, arguments, side = CASES[case]
    network = torch_network(family, arguments, side).eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    state = {key: torch.from_numpy(draw(key, shape)) for key, shape in shapes.items()}
    network.load_state_dict(state)
    with torch.no_grad():
        logits = network(torch.from_numpy(images(side).transpose(0, 3, 1, 2).copy()))
    return shapes, logits.numpy()


def imported(case: str, state: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """The module and variables that ifjax makes of a state dict."""
    from ifjax import interop

    family, arguments, _ = CASES[case]
    if family == "vgg":
        return interop.vgg_from_torch(state)
    if family == "vit":
        return interop.vit_from_torch(state, heads=arguments["num_heads"])
    return interop.resnet_from_torch(state)


def difference(case: str, shapes: Mapping[str, Any], expected: np.ndarray) -> float:
    """The largest difference of the logits over the largest logit."""
    import jax

    state = {key: draw(key, tuple(shape)) for key, shape in shapes.items()}
    module, variables = imported(case, state)
    found = jax.jit(module.apply)(variables, images(CASES[case][2]))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def fixture(case: str) -> tuple[dict[str, list[int]], np.ndarray]:
    """Shapes by key and the logits, as torch once gave them."""
    with np.load(FIXTURE) as file:
        return json.loads(str(file[f"{case} shapes"])), file[f"{case} logits"]


def write() -> None:
    """Write the fixture."""
    import torch
    import torchvision

    content = {"versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}"}
    for case in CASES:
        shapes, logits = torch_logits(case)
        print(f"{case}: logits up to {np.abs(logits).max():.3g}")
        content |= {f"{case} shapes": json.dumps(shapes), f"{case} logits": logits}
    FIXTURE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURE, **content)


def main() -> None:
    """Write the fixture, or print the differences to it."""
    if sys.argv[1:] == ["write"]:
        return write()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=["*"], help="globs on names of networks")
    args = parser.parse_args()
    import record

    rows = []
    for case in CASES:
        if not any(fnmatch.fnmatchcase(case, name) for name in args.only):
            continue
        shapes, expected = fixture(case)
        weights = sum(math.prod(shape) for shape in shapes.values())
        row = {"network": case, "numbers": weights}
        row["largest difference / largest logit"] = f"{difference(case, shapes, expected):.1e}"
        rows.append(row)
        print(rows[-1], flush=True)
    print(record.markdown(rows))
    record.write("torch_logits", rows)


if __name__ == "__main__":
    main()
