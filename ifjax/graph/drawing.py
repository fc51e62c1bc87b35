"""The dependency graph as a drawing: which kernels write and read the neurons of which group."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from ifjax.graph.coupling import Coupling
from ifjax.spec.table import savings
from ifjax.structure.structure import Group

_NUMBER = re.compile(r"(\d+)")
_LINE = re.compile(r" at \S+:\d+(:\d+)? \(.*\)$")  # of the source
_STYLE = """\
classDef neuron fill:#DCEBF7,stroke:#0072B2,color:#000
classDef free fill:#fff,stroke:#0072B2,color:#000,stroke-dasharray:4
classDef leaf fill:#F4F4F4,stroke:#888,color:#000
classDef pinned fill:#fff,stroke:#D55E00,color:#000,stroke-dasharray:4"""


def to_mermaid(graph: Coupling, *, most: int = 12) -> str:
    r"""Draws the graph as a Mermaid flowchart, which GitHub and most notebooks render.

    A rounded box is a group, with its size and how many biases, scales and statistics go along; a
    plain box is a kernel or table: an arrow from it says that it produces the group's neurons, an
    arrow to it that it consumes them. Groups and leaves that differ in numbers alone (the layers
    of a network) share a box, ``layer[0-11]``. What is pinned stands in a box of its own, by
    reason.

    Args:
        graph: the structure, and what is pinned.
        most: the number of group boxes, of leaf boxes at each, and of reasons; the rest is counted.
            The groups with the most weights are drawn.

    Returns:
        The text of the flowchart, to be put into a ``mermaid`` code block.

    Raises:
        ValueError: if ``most`` is less than 1.

    Example:
        >>> import ifjax, jax.numpy as jnp
        >>> params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
        >>> graph = ifjax.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((1, 3)))
        >>> print("\n".join(graph.to_mermaid().splitlines()[:6]))
        flowchart LR
          g0("a<br>8 neurons"):::neuron
          l0["a<br>3 x 8"]:::leaf
          l0 --> g0
          l1["b<br>8 x 2"]:::leaf
          g0 --> l1
    """
    if most < 1:
        raise ValueError(f"expected to draw at least 1 group, got most={most!r}")
    classes = group_classes(graph.structure.groups)
    weights = {
        i: savings(graph.structure, groups[0])[0] * len(groups) for i, groups in classes.items()
    }
    drawn = sorted(sorted(classes, key=lambda i: -weights[i])[:most])
    lines = [f"  {_group_box(i, classes[i])}" for i in drawn]
    lines += _leaf_lines(graph, {i: classes[i] for i in drawn}, most)
    if len(classes) > len(drawn):
        rest = [i for i in classes if i not in drawn]
        count = sum(len(classes[i]) for i in rest)
        text = f"{count} more groups<br>{sum(weights[i] for i in rest):,} weights"
        lines.append(f'  more("{text}"):::neuron')
    lines += _pinned_box(graph, most)
    return "\n".join(["flowchart LR", *lines, *(f"  {x}" for x in _STYLE.splitlines())])


def group_classes(groups: Sequence[Group]) -> dict[int, list[Group]]:
    """Groups that look the same but for the numbers in their names."""
    classes: dict[object, list[Group]] = defaultdict(list)
    for group in groups:
        members = Counter((_masked(m.path), m.axis, m.role, m.where) for m in group.members)
        key = (_masked(group.name), group.size, group.kind, group.exact)
        classes[(*key, frozenset(members.items()))].append(group)
    return dict(enumerate(classes.values()))


def _group_box(number: int, groups: Sequence[Group]) -> str:
    """Names, size, and what goes along."""
    group = groups[0]
    text = [pattern([g.name for g in groups]), f"{group.size} neurons"]
    roles = Counter(
        "statistic" if m.role in ("mean", "variance") else m.role
        for m in group.members
        if m.role not in ("producer", "consumer")
    )
    if roles:
        counts = ", ".join(f"{n} {role}" for role, n in sorted(roles.items()))
        text.append(f"with {counts}")
    if not group.exact:
        text.append("cutting is not zeroing")
    return f'g{number}("{_label(text)}"):::{group.kind}'


def _leaf_lines(graph: Coupling, classes: dict[int, list[Group]], most: int) -> Iterable[str]:
    """Boxes of kernels, and the arrows between them and the groups."""
    shown: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for number, groups in classes.items():
        for group in groups:
            roles = {m.role for m in group.members}
            connected = {"producer", "consumer"} & roles or roles
            for member in group.members:
                if member.role in connected:
                    shown[member.path].add((number, member.role))
    boxes: dict[object, list[str]] = defaultdict(list)
    for path, ends in shown.items():
        shape = graph.structure.leaf[path].shape
        boxes[(_masked(path), shape, frozenset(ends))].append(path)
    at_group = Counter[int]()
    left_out = Counter[int]()
    numbers = itertools.count()
    order = {leaf.path: place for place, leaf in enumerate(graph.structure.leaves)}
    position = {
        m.path: m.position
        for g in graph.structure.groups
        for m in g.members
        if m.role == "producer"
    }
    last = max(position.values(), default=0) + 1
    for paths in sorted(boxes.values(), key=lambda p: (position.get(p[0], last), order[p[0]])):
        ends = sorted(shown[paths[0]])
        kept = [end for end in ends if at_group[end[0]] < most]
        for number in {number for number, _ in ends}:
            (at_group if any(number == k for k, _ in kept) else left_out)[number] += 1
        if not kept:
            continue
        box = f"l{next(numbers)}"
        shape = " x ".join(map(str, graph.structure.leaf[paths[0]].shape))
        yield f'  {box}["{_label([pattern(paths), shape])}"]:::leaf'
        for number, role in kept:
            if role == "producer":
                yield f"  {box} --> g{number}"
            elif role == "consumer":
                yield f"  g{number} --> {box}"
            else:
                yield f"  g{number} --- {box}"
    for number, count in sorted(left_out.items()):
        yield f'  l{next(numbers)}["{count} more leaves"]:::leaf --- g{number}'


def _pinned_box(graph: Coupling, most: int) -> list[str]:
    """What cannot be cut, by the reason without its source line."""
    reasons: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for pinned in graph.pinned:
        reasons[_LINE.sub("", pinned.reason)][pinned.path].append(str(pinned.axis))
    text = []
    for reason, axes in list(reasons.items())[:most]:
        classes: dict[tuple[str, str], list[str]] = defaultdict(list)
        for path, numbers in axes.items():
            classes[_masked(path), ", ".join(numbers)].append(path)
        names = [f"{pattern(paths)} axis {numbers}" for (_, numbers), paths in classes.items()]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        text.append(f"{reason}: {'; '.join(names[:3])}{more}")
    if len(reasons) > most:
        text.append(f"{len(reasons) - most} more reasons")
    return [f'  pinned["{_label(["pinned", *text])}"]:::pinned'] if text else []


def _masked(name: str) -> str:
    return _NUMBER.sub("#", name)


def pattern(names: Sequence[str]) -> str:
    """One text for names that differ in numbers alone, with how many they are."""
    distinct = list(dict.fromkeys(names))
    if len(distinct) == 1:
        return distinct[0]
    parts = []
    for tokens in zip(*map(_NUMBER.split, distinct), strict=True):
        if len(set(tokens)) == 1:
            parts.append(tokens[0])
        else:
            values = sorted(set(map(int, tokens)))
            consecutive = values[-1] - values[0] == len(values) - 1
            parts.append(f"[{values[0]}-{values[-1]}]" if consecutive else "*")
    return f"{''.join(parts)} ({len(distinct)} of them)"


def _label(lines: Sequence[str]) -> str:
    """Lines of a Mermaid text, with the characters escaped that it would read as syntax."""
    escapes = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;"}
    return "<br>".join("".join(escapes.get(c, c) for c in line) for line in lines)
