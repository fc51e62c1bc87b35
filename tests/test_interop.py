from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ifjax.data import CIFAR10_MEAN, CIFAR10_STD, cifar10_split, normalize
from ifjax.interop import cifar_resnet_from_torch, cifar_resnet_to_torch, load_safetensors
from ifjax.models import CifarResNet, ResNetWidths

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
        (lambda state: state.clear(), r"layer1.0.conv1.weight: missing \(the dict has nothing"),
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


def test_missing_and_truncated_files_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_safetensors(tmp_path / "none.safetensors")
    whole = tmp_path / "whole.safetensors"
    save_file({"x": np.arange(100.0)}, whole)
    half = tmp_path / "half.safetensors"
    half.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"complete safetensors file at .*half.*200 bytes"):
        load_safetensors(half)


def test_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'ifjax\[train\]'"):
        load_safetensors(tmp_path / "x.safetensors")


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
