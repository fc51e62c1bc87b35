"""The drawing of what ifjax does, as SVG: neurons transported into fewer, then reconstructed.

``python docs/drawing.py`` writes docs/assets/fusion.svg.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ifjax.report.canvas import BLUE, GREEN, ORANGE, PURPLE, SKY

PATH = Path(__file__).parent / "assets" / "fusion.svg"
WIDTH, HEIGHT = 960, 330
TOP, BOTTOM = 84, 286
INK, PALE = "#333333", "#B0B0B0"
COLOURS = (BLUE, ORANGE, SKY, PURPLE)
# Which target every neuron of the layer goes to, and which neurons are the targets.
GOES = (0, 1, 0, 2, 3, 2, 1, 0)
TARGETS = (2, 6, 3, 4)


class Dot(NamedTuple):
    """A neuron."""

    x: float
    y: float
    colour: str
    radius: float = 10


def column(x: float, colours: list[str], radius: float = 10) -> list[Dot]:
    """Neurons below each other, in the middle of the drawing's height."""
    step = min(40.0, (BOTTOM - TOP) / max(1, len(colours) - 1))
    first = (TOP + BOTTOM - step * (len(colours) - 1)) / 2
    return [Dot(x, first + step * i, colour, radius) for i, colour in enumerate(colours)]


def line(a: Dot, b: Dot, colour: str, width: float) -> str:
    """A weight."""
    ends = f'x1="{a.x:.1f}" y1="{a.y:.1f}" x2="{b.x:.1f}" y2="{b.y:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}" stroke-opacity="0.6"/>'


def ribbon(a: Dot, b: Dot) -> str:
    """Mass that a neuron sends to a target."""
    middle = (a.x + b.x) / 2
    bend = f"{middle:.1f} {a.y:.1f} {middle:.1f} {b.y:.1f}"
    way = f"M {a.x:.1f} {a.y:.1f} C {bend} {b.x:.1f} {b.y:.1f}"
    look = f'fill="none" stroke="{a.colour}" stroke-width="7" stroke-opacity="0.45"'
    return f'<path d="{way}" {look}/>'


def circle(dot: Dot, ring: bool = False) -> str:
    """A neuron; targets have a ring."""
    edge = f' stroke="{INK}" stroke-width="2.5"' if ring else ""
    centre = f'cx="{dot.x:.1f}" cy="{dot.y:.1f}" r="{dot.radius}"'
    return f'<circle {centre} fill="{dot.colour}"{edge}/>'


def text(x: float, y: float, words: str, size: int = 15, weight: str = "normal") -> str:
    """Centred words."""
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}"'
    return f'<text {place} text-anchor="middle" fill="{INK}">{words}</text>'


def network(x: float, colours: list[str], weights: tuple[str, float]) -> list[str]:
    """Inputs, a layer, and what reads it."""
    inputs = column(x, [PALE] * 3)
    layer = column(x + 100, colours)
    outputs = column(x + 200, [PALE] * 2)
    colour, width = weights
    lines = [line(a, b, PALE, 1.2) for a in inputs for b in layer]
    lines += [line(a, b, colour, width) for a in layer for b in outputs]
    return [*lines, *map(circle, inputs + layer + outputs)]


def drawing() -> str:
    """The whole of it."""
    colours = [COLOURS[target] for target in GOES]
    small = [COLOURS[i] for i in range(len(TARGETS))]
    sources, targets = column(420, colours), column(560, small, radius=13)
    parts = network(60, colours, (PALE, 1.2))
    parts += [ribbon(a, targets[GOES[i]]) for i, a in enumerate(sources)]
    parts += [circle(dot, ring=i in TARGETS) for i, dot in enumerate(sources)]
    parts += [circle(dot) for dot in targets]
    parts += network(700, small, (GREEN, 3.0))
    for x, title, below in (
        (160, "a trained layer", "8 neurons"),
        (490, "transported", "those that are alike go into one"),
        (800, "reconstructed", "what reads them is solved for on data"),
    ):
        parts += [text(x, 40, title, 19, "bold"), text(x, HEIGHT - 14, below)]
    parts += [text(x, (TOP + BOTTOM) / 2 + 9, "→", 30) for x in (335, 635)]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif" '
        'role="img">\n<title>Neurons transported into fewer, then reconstructed</title>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="white"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(drawing())
    print("written:", PATH.name)
