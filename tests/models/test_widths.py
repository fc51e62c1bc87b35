from __future__ import annotations

import flax.linen as nn
import jax
import pytest

from ifjax.models.widths import check_variables, check_widths, leaf_shape, numbered

TREE = {
    "params": {
        "fc1": {"kernel": jax.ShapeDtypeStruct((4, 3), "float32")},
        "fc3": {"kernel": jax.ShapeDtypeStruct((3, 3), "float32")},
        "linear": {"kernel": jax.ShapeDtypeStruct((3, 2), "bfloat16")},
    }
}


def test_leaf_shape_reads_a_leaf():
    assert leaf_shape(TREE, "params/linear/kernel", 2) == (3, 2)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("params/fc2/kernel", r"'params/fc2/kernel', got \['fc1', 'fc3', 'linear'\] at 'params'"),
        ("batch_stats/bn1/mean", r"got \['params'\] at 'root'"),
        ("params/fc1/kernel/deeper", "got ShapeDtypeStruct at 'params/fc1/kernel'"),
        ("params/fc1", "2 axes at 'params/fc1', got dict"),
    ],
)
def test_leaf_shape_names_what_is_not_there(path, message):
    with pytest.raises(ValueError, match=message):
        leaf_shape(TREE, path, 2)


def test_leaf_shape_checks_the_number_of_axes():
    with pytest.raises(ValueError, match=r"expected 4 axes at 'params/fc1/kernel'.*\(4, 3\)"):
        leaf_shape(TREE, "params/fc1/kernel", 4)


def test_numbered_stops_at_the_first_gap():
    assert numbered(TREE, "fc") == 1
    assert numbered(TREE, "conv") == 0
    assert numbered({}, "fc") == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("widths", [[4], (4, 0), (4.0,), (True,), ("4",)])
def test_check_widths_refuses(widths):
    with pytest.raises(ValueError, match="hidden"):
        check_widths("hidden", widths)


def test_check_variables_lists_every_difference():
    tree = {
        "params": {
            "kernel": jax.ShapeDtypeStruct((3, 5), "float32"),
            "scale": jax.ShapeDtypeStruct((2,), "float32"),
        }
    }
    with pytest.raises(ValueError, match="not those of one Dense") as caught:
        check_variables(nn.Dense(2), tree, (1, 3))
    message = str(caught.value)
    assert "params/kernel: expected (3, 2), got (3, 5)" in message
    assert "params/bias: expected (2,), got no leaf" in message
    assert "params/scale: expected no leaf, got (2,)" in message
