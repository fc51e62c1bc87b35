from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.interop.state_dict import Entry, arrays, assemble, entry, export, key_of
from ifjax.models import MLP, VGG


def test_prefix_counters_and_spelling():
    found = arrays(
        {"module.fc.bias": np.ones(2), "bn.num_batches_tracked": np.array(3)},
        lambda key: key.replace("fc.", "linear."),
    )
    assert [(name, e.key) for name, e in found.items()] == [("linear.bias", "module.fc.bias")]
    with pytest.raises(ValueError, match=r"one entry for 'a', got a second one at 'module.a'"):
        arrays({"a": np.ones(1), "module.a": np.ones(1)}, lambda key: key)


def test_tensors_of_bfloat16_keep_their_dtype():
    class Tensor:  # of torch, which has no numpy form of it
        dtype = "torch.bfloat16"

        def detach(self):
            return self

        cpu = detach

        def float(self):
            return np.array([1.5, -2.0], np.float32)

    found = arrays({"a": Tensor()}, lambda key: key)["a"].array
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), [1.5, -2.0])


@pytest.mark.parametrize(
    ("leaf", "shape", "path", "expected"),
    [
        ("weight", (2, 3), "params/m/kernel", (3, 2)),
        ("weight", (2, 3, 4, 5), "params/m/kernel", (4, 5, 3, 2)),
        ("weight", (2,), "params/m/scale", (2,)),
        ("bias", (2,), "params/m/bias", (2,)),
        ("running_mean", (2,), "batch_stats/m/mean", (2,)),
        ("running_var", (2,), "batch_stats/m/var", (2,)),
    ],
)
def test_entries_and_keys_are_inverse(leaf, shape, path, expected):
    found = entry("m", leaf, Entry(f"m.{leaf}", np.zeros(shape)))
    assert found is not None
    assert found[0] == path
    assert found[1].array.shape == expected
    assert key_of(lambda module: module, path) == f"m.{leaf}"


def test_what_no_module_has():
    assert entry("m", "weight_g", Entry("m.weight_g", np.zeros(3))) is None
    for path in ("params/m/gate", "params/kernel"):
        with pytest.raises(KeyError):
            key_of(lambda module: module, path)


def names(path: str) -> str:
    return key_of(lambda module: module, path)


def mlp(dtype) -> dict[str, Entry]:
    kernels = {"fc1": (4, 3), "linear": (3, 2)}
    found = {}
    for module, (into, out) in kernels.items():
        kernel, bias = np.ones((into, out), dtype), np.ones(out, dtype)
        found[f"params/{module}/kernel"] = Entry(f"{module}.weight", kernel)
        found[f"params/{module}/bias"] = Entry(f"{module}.bias", bias)
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_dtypes_are_kept(dtype):
    module, variables = assemble("MLP", mlp(dtype), [], MLP.from_variables, names)
    assert module == MLP((3,), 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(dtype)}
    state = export("MLP", variables, names)
    assert state["fc1.weight"].dtype == dtype
    assert state["fc1.weight"].shape == (3, 4)
    assert all(value.flags.c_contiguous and value.flags.writeable for value in state.values())


def test_a_dtype_that_jax_would_change_is_refused():
    with pytest.raises(ValueError, match=r"fc1\.bias: expected a dtype .* got float64"):
        assemble("MLP", mlp(np.float64), [], MLP.from_variables, names)
    with jax.enable_x64(True):
        _, variables = assemble("MLP", mlp(np.float64), [], MLP.from_variables, names)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float64")}


def test_differences_are_told_in_torchs_terms():
    entries = mlp(np.float32)
    del entries["params/fc1/bias"]
    entries["params/linear/kernel"] = Entry("head.w", np.ones((5, 2), np.float32))
    with pytest.raises(ValueError, match="not that of a toy") as caught:
        assemble("toy", entries, [Entry("x", np.ones(3))], MLP.from_variables, names)
    assert str(caught.value).split("\n  ")[1:] == [
        "fc1.bias: missing, expected shape (3,)",
        "head.w: expected shape (2, 3), got (2, 5)",
        "x: unexpected, shape (3,)\n"
        "pass model.state_dict() of one, with all of its parameters and buffers",
    ]
    with pytest.raises(ValueError, match=r"linear.weight: missing, expected 2 axes \(the dict has"):
        assemble("toy", {}, [], MLP.from_variables, names)


def test_export_refuses_what_it_cannot_write():
    model = VGG(((2,),))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2, 2, 3)))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), variables)
    with pytest.raises(ValueError, match=r"none for bn1_1\.running_mean, bn1_1.running_var"):
        export("VGG", {"params": variables["params"]}, names)
    for leaf in ({"gate": np.ones(2)}, {"bias": np.ones((2, 2))}, {"kernel": np.ones((2, 2, 2))}):
        with pytest.raises(ValueError, match="expected leaves of a VGG, got 'params/m/"):
            export("VGG", {"params": {"m": leaf}}, names)
