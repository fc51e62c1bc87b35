"""Drawings are valid flowcharts that say what the graph says, at any size."""

from __future__ import annotations

import itertools
import re

import jax
import jax.numpy as jnp
import pytest

import ifjax
from ifjax.models import CifarResNet

BOX = re.compile(r'^  (\w+)(\["(.*)"\]|\("(.*)"\)):::(\w+)( --- (\w+))?$')
ARROW = re.compile(r"^  (\w+) (-->|---) (\w+)$")


def parse(text: str):
    """Boxes ``{id: (lines, class)}`` and arrows; every line must be one of the known forms."""
    first, *lines = text.splitlines()
    assert first == "flowchart LR"
    boxes, arrows = {}, set()
    for line in lines:
        if line.startswith("  classDef "):
            continue
        if box := BOX.match(line):
            label = box[3] or box[4]
            assert not re.search(r'["<>]', label.replace("<br>", ""))
            boxes[box[1]] = (label.split("<br>"), box[5])
            if box[7]:
                arrows.add((box[1], box[7]))
        else:
            arrow = ARROW.match(line)
            assert arrow, line
            arrows.add((arrow[1], arrow[3]))
    assert {end for arrow in arrows for end in arrow} <= set(boxes)
    return boxes, arrows


def chain(widths):
    pairs = itertools.pairwise(widths)
    params = {f"layer{i}": jnp.ones(pair) for i, pair in enumerate(pairs)}

    def apply(params, x):
        for i in range(len(params)):
            x = jnp.tanh(x @ params[f"layer{i}"])
        return x

    return ifjax.trace(apply, params, jnp.ones((1, widths[0])))


def test_a_chain_is_drawn_as_it_is():
    boxes, arrows = parse(chain((3, 8, 9, 2)).to_mermaid())
    names = {lines[0]: box for box, (lines, _) in boxes.items()}
    first, second = (b for b, (_, kind) in boxes.items() if kind == "neuron")
    assert boxes[first][0] == ["layer0", "8 neurons"]
    leaves = [b for b, (_, kind) in boxes.items() if kind == "leaf"]
    assert [boxes[b][0] for b in leaves] == [
        ["layer0", "3 x 8"],
        ["layer1", "8 x 9"],
        ["layer2", "9 x 2"],
    ]
    assert arrows == {
        (leaves[0], first),
        (first, leaves[1]),
        (leaves[1], second),
        (second, leaves[2]),
    }
    pinned = boxes[names["pinned"]][0]
    assert "an axis of the function's inputs: layer0 axis 0" in pinned
    assert "an axis of the function's outputs: layer2 axis 1" in pinned


def test_repeated_layers_share_a_box():
    boxes, _ = parse(chain((3, *[8] * 20, 2)).to_mermaid())
    assert sum(kind == "neuron" for _, kind in boxes.values()) == 1
    labels = [lines[0] for lines, _ in boxes.values()]
    # The first and the last kernel have shapes of their own.
    assert "layer[0-19] (20 of them)" in labels
    assert "layer[1-19] (19 of them)" in labels
    assert "layer0" in labels
    assert len(boxes) == 5


def test_what_is_left_out_is_counted():
    graph = chain((3, *range(10, 30), 2))
    boxes, _ = parse(graph.to_mermaid(most=5))
    groups = {lines[0]: lines for lines, kind in boxes.values() if kind == "neuron"}
    assert len(groups) == 6
    assert "15 more groups" in groups
    # Those with the most weights are drawn.
    assert {f"layer{i}" for i in range(14, 19)} < set(groups)


def test_leaves_beyond_the_limit_are_counted():
    params = {chr(97 + i) * 2: jnp.ones((4, i + 2)) for i in range(9)} | {"in": jnp.ones((3, 4))}

    def apply(params, x):
        return [x @ params["in"] @ w for name, w in params.items() if name != "in"]

    boxes, arrows = parse(ifjax.trace(apply, params, jnp.ones((1, 3))).to_mermaid(most=4))
    (group,) = (b for b, (_, kind) in boxes.items() if kind == "neuron")
    labels = {boxes[b][0][0] for arrow in arrows for b in arrow if b != group}
    assert len(labels) == 5
    assert "6 more leaves" in labels


def test_a_residual_network_stays_readable():
    module = CifarResNet.standard(20, 10)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    text = ifjax.trace(module.apply, variables, x).to_mermaid()
    boxes, arrows = parse(text)
    assert len(boxes) < 25
    inner = "params/layer1_[0-2]/conv1/kernel (3 of them)"
    labels = {box: lines for box, (lines, kind) in boxes.items() if kind == "neuron"}
    (group,) = (box for box, lines in labels.items() if lines[0] == inner)
    assert labels[group][1:] == ["16 neurons", "with 1 additive, 1 multiplicative, 2 statistic"]
    ends = {
        boxes[a if b == group else b][0][0] for a, b in arrows if group in (a, b)
    }  # one kernel writes, one reads
    assert ends == {inner, "params/layer1_[0-2]/conv2/kernel (3 of them)"}


def test_names_cannot_break_the_syntax():
    params = {'a"]<b>#1': jnp.ones((3, 4)), "c": jnp.ones((4, 2))}

    def apply(params, x):
        return x @ params['a"]<b>#1'] @ params["c"]

    boxes, _ = parse(ifjax.trace(apply, params, jnp.ones((1, 3))).to_mermaid())
    assert "a#quot;]#lt;b#gt;#35;1" in {lines[0] for lines, _ in boxes.values()}


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="most=0"):
        chain((2, 3, 2)).to_mermaid(most=0)
