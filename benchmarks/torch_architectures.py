"""Small networks in torch, and whether Torch-Pruning's groups of them are right: for peers.py.

Needs torch, torch-pruning and numpy alone.
"""

# ruff: noqa: D102
from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import nn
from torch.nn import functional

DTYPES = {"F32": np.float32, "I64": np.int64, "F16": np.float16}


def safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            array = np.frombuffer(body[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
            found[name] = torch.from_numpy(array.copy())
    return found


class Block(nn.Module):
    """Two convolutions and a shortcut that pads with zero channels (option A)."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.stride, self.pad = stride, (out - width) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride] if self.stride > 1 else x
        if self.pad:
            short = functional.pad(short, (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(y + short)


class ResNet20(nn.Module):
    """Of CIFAR, as it is usually written, or narrower."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        sizes = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        for stage, (from_, to, stride) in enumerate(sizes, 1):
            first = Block(from_, to, stride)
            layer = nn.Sequential(first, Block(to, to, 1), Block(to, to, 1))
            setattr(self, f"layer{stage}", layer)
        self.linear = nn.Linear(4 * width, 10)

    def inner(self) -> dict[str, nn.Module]:
        """The first convolution of every block, by our name of it."""
        return {
            f"layer{stage}_{i}.conv1": block.conv1
            for stage in (1, 2, 3)
            for i, block in enumerate(getattr(self, f"layer{stage}"))
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20(checkpoint: Path) -> ResNet20:
    """With pretrained weights."""
    network = ResNet20()
    network.load_state_dict(safetensors(checkpoint), strict=False)
    return network.eval()


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values of one product, cut apart or reshaped."""

    def __init__(self, how: str, d: int = 16, heads: int = 4, kv: int = 4) -> None:
        super().__init__()
        self.how, self.heads, self.kv, self.dim = how, heads, kv, d // heads
        self.qkv = nn.Linear(d, (heads + 2 * kv) * self.dim)
        self.out, self.head = nn.Linear(d, d), nn.Linear(d, 3)
        self.embed = nn.Linear(6, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        b, t, d = x.shape
        if self.how == "reshape":
            q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        else:
            sizes = [self.heads * self.dim, self.kv * self.dim, self.kv * self.dim]
            parts = zip(self.qkv(x).split(sizes, -1), (self.heads, self.kv, self.kv), strict=True)
            q, k, v = (p.view(b, t, n, self.dim).transpose(1, 2) for p, n in parts)
            k, v = (z.repeat_interleave(self.heads // self.kv, 1) for z in (k, v))
        y = (q @ k.transpose(-1, -2) / self.dim**0.5).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return self.head(x)


class Gated(nn.Module):
    """A gated feed-forward block whose gate and value are halves of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 32), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(functional.silu(gate) * value)


class Dense(nn.Module):
    """Concatenated feature maps, flattened into a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(9, 5, 3, padding=1)
        self.fc = nn.Linear(14 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in (self.conv1, self.conv2):
            x = torch.cat([x, functional.relu(conv(x))], 1)
        return self.fc(functional.avg_pool2d(x, 2).flatten(1))


class SqueezeExcite(nn.Module):
    """Depthwise convolution and a gate from the means."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.down, self.up = nn.Linear(12, 3), nn.Linear(3, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.depth(self.expand(x)))
        gate = self.up(functional.relu(self.down(x.mean((2, 3))))).sigmoid()
        return self.project(x * gate[:, :, None, None]).mean((2, 3))


class Shuffled(nn.Module):
    """Channels shuffled between two grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 1, groups=2)
        self.second, self.out = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.first(x))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.out(functional.relu(self.second(x))).mean((2, 3))


class PixelShuffled(nn.Module):
    """Channels become pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(functional.relu(functional.pixel_shuffle(self.first(x), 2)))


class Recurrent(nn.Module):
    """An LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(6, 8), nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embed(x))[0])


IMAGE, TEXT = (2, 3, 8, 8), (2, 5, 6)
# How it is made, the shape of its input, the layer that gives its output.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "residual, zero-padded shortcuts": (lambda: ResNet20(4), IMAGE, "linear"),
    "concatenated, flattened": (Dense, IMAGE, "fc"),
    "squeeze-excite, depthwise": (SqueezeExcite, IMAGE, "project"),
    "channel shuffle, grouped": (Shuffled, (2, 4, 8, 8), "out"),
    "pixel shuffle": (PixelShuffled, IMAGE, "out"),
    "gate and value in one": (Gated, TEXT, "down"),
    "q, k, v in one, split": (lambda: Attention("split"), TEXT, "head"),
    "q, k, v in one, reshaped": (lambda: Attention("reshape"), TEXT, "head"),
    "grouped queries": (lambda: Attention("split", kv=2), TEXT, "head"),
    "LSTM": (Recurrent, TEXT, "head"),
}


def zero_rows(group: Any, graph: Any) -> None:
    """Sets to zero whatever the group would remove of outputs."""
    for dependency, indices in group:
        layer = dependency.target.module
        if not graph.is_out_channel_pruning_fn(dependency.handler):
            continue
        for name in ("weight", "bias"):
            leaf = getattr(layer, name, None)
            if isinstance(leaf, torch.Tensor) and leaf.shape[:1] > (max(indices),):
                leaf.data[list(indices)] = 0


def check(name: str) -> dict[str, Any]:
    """How many groups there are, and what becomes of them."""
    torch.manual_seed(0)
    make, shape, output = NETWORKS[name]
    network, x = make().eval(), torch.randn(shape)
    row: dict[str, Any] = {"architecture": name, "groups": 0, "right": 0}
    row |= {"refused": 0, "fails": 0, "wrong": 0}
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=x)
        groups = graph.get_all_groups(ignored_layers=[dict(network.named_modules())[output]])
        roots = [group[0].dep.target.name.split(" ")[0] for group in groups]
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}"[:80]}
    row["groups"], errors = len(roots), []
    for root in roots:
        try:
            row[_outcome(network, root, x)] += 1
        except Exception as error:
            row["refused"] += 1
            errors.append(f"{root}: {type(error).__name__}: {error}"[:80])
    return row | {"error": errors[0] if errors else ""}


def _outcome(network: nn.Module, root: str, x: torch.Tensor) -> str:
    """Of pruning the group of a layer by a half."""

    def group_of(whole: nn.Module) -> tuple[Any, Any]:
        graph = torch_pruning.DependencyGraph().build_dependency(whole, example_inputs=x)
        layer = dict(whole.named_modules())[root]
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        half = list(range(graph.get_out_channels(layer) // 2))
        return graph.get_pruning_group(layer, prune, idxs=half), graph

    small, zeroed = copy.deepcopy(network), copy.deepcopy(network)
    group, graph = group_of(zeroed)
    zero_rows(group, graph)
    group, _ = group_of(small)
    group.prune()
    with torch.no_grad():
        expected = zeroed(x)
        try:
            found = small(x)
        except Exception:
            return "fails"
    same = found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)
    return "right" if same else "wrong"
