from __future__ import annotations

import flax.linen as nn
import jax
import pytest

from ifjax.models.widths import (
    Difference,
    FromSpec,
    VariablesError,
    check_variables,
    check_widths,
    leaf_shape,
    numbered,
    scaled,
)

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


def test_errors_carry_the_differences():
    found = {"params": {"kernel": jax.ShapeDtypeStruct((3, 5), "float32")}}
    with pytest.raises(VariablesError) as caught:
        check_variables(nn.Dense(2), found, (1, 3))
    assert caught.value.differences == (
        Difference("params/bias", (2,), None),
        Difference("params/kernel", (3, 2), (3, 5)),
    )
    with pytest.raises(VariablesError) as caught:
        leaf_shape(TREE, "params/fc1/kernel", 4)
    assert caught.value.differences == (Difference("params/fc1/kernel", 4, (4, 3)),)
    with pytest.raises(VariablesError) as caught:
        leaf_shape(TREE, "params/fc2/kernel", 2)
    assert caught.value.differences == (Difference("params/fc2/kernel", 2, None),)


def test_scaled_rounds_to_at_least_one():
    assert [scaled(10, f) for f in (1.0, 0.26, 0.01, 2.0)] == [10, 3, 1, 20]
    for factor in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="positive width multiplier"):
            scaled(10, factor)


def test_a_class_without_from_variables_says_so():
    with pytest.raises(TypeError, match="does not say how it is built from variables"):
        FromSpec.from_variables({})
