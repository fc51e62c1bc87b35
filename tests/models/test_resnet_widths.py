from __future__ import annotations

import jax
import pytest

from ifjax.models.resnet_widths import ResNetWidths, check_shortcut, pads_around, standard_pads
from ifjax.structure.axis import Atom, Pinned, Sum


def test_pads_around_reads_the_small_segments():
    before = Sum((Atom("a", 4), Atom("b", 4)))
    after = Sum((Atom("lo", 6), Pinned(2), Atom("a", 4), Atom("b", 4), Atom("hi", 8)))
    assert pads_around(before, after, {}) == (8, 8)
    assert pads_around(before, after, {"lo": 1, "hi": 5, "a": 2}) == (3, 5)
    assert pads_around(before, before, {}) == (0, 0)


def test_pads_around_refuses_other_networks():
    with pytest.raises(ValueError, match="zero channels"):
        pads_around(Atom("a", 4), Atom("b", 8), {})


def test_standard_pads_are_those_of_the_standard_widths():
    assert standard_pads((16, 32, 64)) == ResNetWidths.standard(20).pads == ((8, 8), (16, 16))
    with pytest.raises(ValueError, match="expected pads="):
        standard_pads((16, 32, 60))


def test_shortcut_is_a_or_b():
    check_shortcut("A")
    with pytest.raises(ValueError, match="C"):
        check_shortcut("C")


@pytest.mark.parametrize(("depth", "blocks"), [(18, 8), (34, 16), (50, 16), (101, 33)])
def test_four_stages(depth, blocks):
    widths = ResNetWidths.four_stages(depth)
    assert widths.depth == depth
    assert sum(map(len, widths.inner)) == blocks
    assert widths.bottleneck == (depth >= 50)
    assert widths.stem == (64 if depth >= 50 else None)
    thin = ResNetWidths.four_stages(depth, width=1 / 64)
    assert thin.streams == ((4, 8, 16, 32) if depth >= 50 else (1, 2, 4, 8))
    assert hash(thin) != hash(widths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4,), (((2, 3, 4),),)), r"a pair at inner\[0\]\[0\]"),
        (((4, 5), (((2, 3),), (2,))), r"inner\[1\]\[0\]"),
        (((4, 5), ((2,), ((2, 3),))), r"inner\[1\]\[0\]"),
        (((4,), (((2, 0),),)), r"inner\[0\]\[0\]\[1\], got 0"),
        (((4,), ((2,),), (), 0), r"stem\[0\], got 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_widths_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNetWidths(*arguments)


def test_read_off_the_variables():
    kernels = {
        "conv1": (3, 3, 3, 5),
        "layer1_0/conv1": (1, 1, 5, 2),
        "layer1_0/conv2": (3, 3, 2, 4),
        "layer1_0/conv3": (1, 1, 4, 6),
        "layer1_0/shortcut_conv": (1, 1, 5, 6),
        "layer1_1/conv1": (1, 1, 6, 3),
        "layer1_1/conv2": (3, 3, 3, 1),
        "layer1_1/conv3": (1, 1, 1, 6),
    }
    params: dict = {}
    for name, shape in kernels.items():
        block, _, conv = name.rpartition("/")
        at = params.setdefault(block, {}) if block else params
        at[conv] = {"kernel": jax.ShapeDtypeStruct(shape, "float32")}
    found = ResNetWidths.from_variables({"params": params})
    assert found == ResNetWidths((6,), (((2, 4), (3, 1)),), stem=5)
