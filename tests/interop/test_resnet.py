from __future__ import annotations

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from safetensors.numpy import save_file

from ifjax.data import CIFAR10_MEAN, CIFAR10_STD, cifar10_split, normalize
from ifjax.interop import (
    cifar_resnet_from_torch,
    cifar_resnet_to_torch,
    load_safetensors,
    resnet_from_torch,
    resnet_to_torch,
)
from ifjax.models import CifarResNet, ResNet, ResNetWidths
from tests.models.compression import drawn, struct

WIDTHS = {
    "A": ResNetWidths((3, 6, 9), ((2, 5), (4, 1), (7, 3)), ((1, 2), (3, 0))),
    "B": ResNetWidths((3, 6, 9), ((2, 5), (4, 1), (7, 3))),
}


def random_state(widths: ResNetWidths, shortcut: str) -> dict[str, np.ndarray]:
    """Write a state dict as torch does, in general position."""
    rng = np.random.default_rng(0)
    state: dict[str, np.ndarray] = {}

    def conv(name, out, into, size):
        state[f"{name}.weight"] = rng.normal(size=(out, into, size, size)) / size / np.sqrt(into)

    def norm(name, width):
        state[f"{name}.weight"] = rng.uniform(0.5, 1.5, width)
        state[f"{name}.bias"] = rng.normal(size=width)
        state[f"{name}.running_mean"] = rng.normal(size=width)
        state[f"{name}.running_var"] = rng.uniform(0.5, 2.0, width)

    before = widths.streams[0]
    conv("conv1", before, 3, 3)
    norm("bn1", before)
    for stage, inner in enumerate(widths.inner):
        stream = widths.streams[stage]
        for block, width in enumerate(inner):
            name = f"layer{stage + 1}.{block}"
            conv(f"{name}.conv1", width, before, 3)
            norm(f"{name}.bn1", width)
            conv(f"{name}.conv2", stream, width, 3)
            norm(f"{name}.bn2", stream)
            if shortcut == "B" and block == 0 and stage > 0:
                conv(f"{name}.shortcut.0", stream, before, 1)
                norm(f"{name}.shortcut.1", stream)
            before = stream
    state["linear.weight"] = rng.normal(size=(4, before))
    state["linear.bias"] = rng.normal(size=4)
    return {name: value.astype(np.float32) for name, value in state.items()}


def torch_forward(state: dict[str, np.ndarray], x: np.ndarray, pads=None) -> np.ndarray:
    """Evaluate a state dict in float64 numpy, NCHW, straight from the definition."""
    state = {name: value.astype(np.float64) for name, value in state.items()}

    def conv(name, x, stride):
        weight = state[f"{name}.weight"]
        size = weight.shape[-1]
        side = size // 2
        x = np.pad(x, ((0, 0), (0, 0), (side, side), (side, side)))
        patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
        return np.einsum("bihwkl,oikl->bohw", patches[:, :, ::stride, ::stride], weight)

    def norm(name, x):
        scale, bias, mean, var = (
            state[f"{name}.{leaf}"][:, None, None]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    x = np.maximum(norm("bn1", conv("conv1", x, 1)), 0)
    blocks = sorted({tuple(name.split(".")[:2]) for name in state if name.startswith("layer")})
    for layer, block in blocks:
        name = f"{layer}.{block}"
        enters = layer != "layer1" and block == "0"
        y = np.maximum(norm(f"{name}.bn1", conv(f"{name}.conv1", x, 2 if enters else 1)), 0)
        y = norm(f"{name}.bn2", conv(f"{name}.conv2", y, 1))
        if f"{name}.shortcut.0.weight" in state:
            x = norm(f"{name}.shortcut.1", conv(f"{name}.shortcut.0", x, 2))
        elif enters:
            quarter = y.shape[1] // 4
            pad = pads[int(layer[5]) - 2] if pads else (quarter, quarter)
            x = np.pad(x[:, :, ::2, ::2], ((0, 0), pad, (0, 0), (0, 0)))
        x = np.maximum(x + y, 0)
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_logits_equal_the_definition(shortcut):
    widths = WIDTHS[shortcut]
    state = random_state(widths, shortcut)
    module, variables = cifar_resnet_from_torch(state, pads=widths.pads or None)
    assert module == CifarResNet(widths, 4, shortcut)
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    expected = torch_forward(state, x.transpose(0, 3, 1, 2), widths.pads)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_round_trip_is_exact(shortcut, tmp_path):
    widths = WIDTHS[shortcut]
    state = random_state(widths, shortcut)
    _, variables = cifar_resnet_from_torch(state, pads=widths.pads or None)
    save_file(cifar_resnet_to_torch(variables), tmp_path / "again.safetensors")
    again = load_safetensors(tmp_path / "again.safetensors")
    assert again.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    CifarResNet.from_variables(variables, pads=widths.pads or None)


def test_other_spellings_are_understood():
    state = random_state(WIDTHS["B"], "B")
    spelled = {
        "module." + name.replace("linear.", "fc.").replace("shortcut.", "downsample."): value
        for name, value in state.items()
    }
    spelled["module.bn1.num_batches_tracked"] = np.int64(3)
    module, variables = cifar_resnet_from_torch(spelled)
    plain_module, plain = cifar_resnet_from_torch(state)
    assert module == plain_module
    assert jax.tree.all(jax.tree.map(jnp.array_equal, variables, plain))


def test_tensors_that_require_gradients_are_read():
    class Parameter:
        def __init__(self, value):
            self.value = value

        def __array__(self, *args, **kwargs):
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")

        def detach(self):
            return self

        def cpu(self):
            return self.value

    state = random_state(WIDTHS["B"], "B")
    module, _ = cifar_resnet_from_torch({name: Parameter(value) for name, value in state.items()})
    assert module.shortcut == "B"


def test_computation_dtype_leaves_the_variables_alone():
    module, variables = cifar_resnet_from_torch(random_state(WIDTHS["B"], "B"), dtype=jnp.bfloat16)
    assert module.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_every_wrong_entry_is_named():
    state = random_state(WIDTHS["B"], "B")
    del state["layer2.0.bn2.running_var"]
    state["layer1.0.conv3.weight"] = np.zeros((3, 3, 1, 1), np.float32)
    state["layer3.1.bn1.bias"] = np.zeros(8, np.float32)
    with pytest.raises(ValueError, match=r"not that of a CIFAR ResNet") as caught:
        cifar_resnet_from_torch(state)
    message = str(caught.value)
    assert "layer2.0.bn2.running_var: missing, expected shape (6,)" in message
    assert "layer1.0.conv3.weight: unexpected, shape (3, 3, 1, 1)" in message
    assert "layer3.1.bn1.bias: expected shape (3,), got (8,)" in message
    assert message.count("\n") == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv1.weight"), "conv1.weight: missing"),
        (lambda state: state.pop("layer2.0.conv1.weight"), "layer2.0.conv1.weight: missing"),
        (lambda state: state.pop("linear.weight"), "linear.weight: missing"),
        (
            lambda state: state.clear(),
            r"layer1.0.conv1.weight: missing, expected 4 axes \(the dict has nothing\)",
        ),
        (lambda state: state.update({"linear.weight": np.zeros(3)}), "expected 2 axes"),
        (lambda state: state.update({"fc.bias": np.zeros(4)}), "a second one at 'fc.bias'"),
    ],
)
def test_what_cannot_be_inferred_is_named(change, message):
    state = random_state(WIDTHS["B"], "B")
    change(state)
    with pytest.raises(ValueError, match=message):
        cifar_resnet_from_torch(state)


def test_cut_streams_need_pads_that_fit():
    with pytest.raises(ValueError, match=r"before \+ 3 \+ after = 6"):
        cifar_resnet_from_torch(random_state(WIDTHS["A"], "A"), pads=((1, 1), (3, 0)))


def test_export_refuses_what_is_no_resnet():
    _, variables = cifar_resnet_from_torch(random_state(WIDTHS["B"], "B"))
    with pytest.raises(ValueError, match=r"none for bn1.running_mean"):
        cifar_resnet_to_torch({"params": variables["params"]})
    with pytest.raises(ValueError, match="got 'params/dense/gate'"):
        cifar_resnet_to_torch({"params": {"dense": {"gate": np.zeros(2)}}})


@pytest.mark.parametrize("depth", [20, 56])
def test_pretrained_checkpoint_round_trips(shared, depth):
    path = shared / "checkpoints" / f"resnet{depth}_cifar10.safetensors"
    if not path.is_file():
        pytest.skip(f"no checkpoint at {path}")
    state = load_safetensors(path)
    module, variables = cifar_resnet_from_torch(state)
    assert module == CifarResNet.standard(depth)
    again = cifar_resnet_to_torch(variables)
    assert again.keys() == state.keys()
    assert all(np.array_equal(again[name], value) for name, value in state.items())


def test_pretrained_resnet20_classifies_cifar10(shared):
    path = shared / "checkpoints" / "resnet20_cifar10.safetensors"
    folder = shared / "tensorflow_datasets"
    if not path.is_file() or not folder.is_dir():
        pytest.skip(f"no checkpoint at {path}, or no data sets at {folder}")
    state = load_safetensors(path)
    module, variables = cifar_resnet_from_torch(state)
    images, labels = cifar10_split("test[:512]", folder)
    x = normalize(images, CIFAR10_MEAN, CIFAR10_STD)
    logits = jax.jit(module.apply)(variables, x)
    # 91.73 % on all 10,000 images; four standard errors of 512 are 4.9 %.
    assert np.mean(np.argmax(logits, -1) == labels) > 0.868
    expected = torch_forward(state, np.asarray(x[:1], np.float64).transpose(0, 3, 1, 2))
    np.testing.assert_allclose(logits[:1], expected, rtol=1e-4, atol=1e-3)


# networks of four stages

CUT = ResNet(ResNetWidths((8, 9), (((4, 5),), ((6, 4), (3, 5))), stem=5), 3, "B", "imagenet")


@pytest.mark.parametrize("names", ["torchvision", "cifar"])
@pytest.mark.parametrize(
    "model", [CUT, ResNet.standard(18, 3, width=1 / 16)], ids=["cut bottlenecks", "resnet18"]
)
def test_round_trip_of_other_resnets(model, names):
    variables = drawn(struct(model, 8, 8, 3))
    state = resnet_to_torch(variables, names=names)
    ends = {"torchvision": ("downsample.0", "fc"), "cifar": ("shortcut.0", "linear")}[names]
    assert f"layer2.0.{ends[0]}.weight" in state
    assert f"{ends[1]}.bias" in state
    module, again = resnet_from_torch(state | {"bn1.num_batches_tracked": np.array(3)})
    assert module == model
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))
    twice = resnet_to_torch(again, names=names)
    assert all(np.array_equal(twice[name], value) for name, value in state.items())


def test_names_follow_the_stem(monkeypatch):
    assert "fc.weight" in resnet_to_torch(drawn(struct(CUT, 8, 8, 3)))
    small = ResNet.standard(18, 3, width=1 / 16)
    assert "linear.weight" in resnet_to_torch(drawn(struct(small, 8, 8, 3)))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="'cifar' or 'torchvision'"):
        resnet_to_torch(drawn(struct(CUT, 8, 8, 3)), names="timm")


def test_wrong_entries_of_bottlenecks_are_named():
    state = resnet_to_torch(drawn(struct(CUT, 8, 8, 3)))
    del state["layer2.0.downsample.0.weight"]
    state["layer1.0.bn3.bias"] = np.zeros(7, np.float32)
    state["layer1.0.conv1.bias"] = np.zeros(4, np.float32)
    state["fc.scales"] = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="not that of a ResNet with projected") as caught:
        resnet_from_torch(state)
    assert str(caught.value).split("\n  ")[1:] == [
        "fc.scales: unexpected, shape (4,)",
        "layer1.0.bn3.bias: expected shape (8,), got (7,)",
        "layer1.0.conv1.bias: unexpected, shape (4,)",
        "layer2.0.downsample.0.weight: missing, expected shape (9, 8, 1, 1)\n"
        "pass model.state_dict() of one, with all of its parameters and buffers",
    ]


def test_networks_without_projections_are_told_so():
    with pytest.raises(ValueError, match=r"option A|projected shortcuts"):
        resnet_from_torch(random_state(WIDTHS["A"], "A"))
