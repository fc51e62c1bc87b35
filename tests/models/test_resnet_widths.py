from __future__ import annotations

import pytest

from ifjax.graph.expression import Atom, Pinned, Sum
from ifjax.models.resnet_widths import ResNetWidths, check_shortcut, pads_around, standard_pads


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
