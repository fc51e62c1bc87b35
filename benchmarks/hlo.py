"""What a compiled program does, read from its text: kernels, loops, matrix shapes, collectives.

The text is that of ``compiled.as_text()`` for a TPU or a GPU, after all fusion.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "ragged-all-to-all",
)
# Instructions that name, group or forward values, and are no work of their own.
_FREE = {
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "tuple",
}
# The second half of what was begun before, or what holds other instructions.
_CONTROL = ("while", "conditional", "call", "async-start", "async-update", "async-done")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|c64|c128|[sufe]\w*?\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      name: its own.
      shape: of its result, as written.
      kind: what it does.
      rest: operands and attributes, as written.
    """

    name: str
    shape: str
    kind: str
    rest: str


class Work(NamedTuple):
    """What a program does.

    Attributes:
      kernels: instructions that are begun one by one: fusions and all else that is not fused.
      fusions: those of them that are fusions.
      loops: while loops, wherever they lie.
      products: distinct shapes of matrix products and convolutions.
      collectives: how many, by kind.
      traffic: bytes that a device holds of their results, by kind; of a loop of known length as
        often as it runs.
      largest: bytes of the largest result of a collective, by kind.
    """

    kernels: int
    fusions: int
    loops: int
    products: int
    collectives: Counter[str]
    traffic: Counter[str]
    largest: dict[str, int]


def work(text: str) -> Work:
    """Reads a program.

    >>> text = '''
    ... %fused (p: f32[4]) -> f32[4] {
    ...   ROOT %a = f32[4]{0} add(%p, %p)
    ... }
    ...
    ... ENTRY %main (x: f32[4]) -> f32[8] {
    ...   %f = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
    ...   ROOT %g = f32[8]{0} all-gather(%f), dimensions={0}
    ... }
    ... '''
    >>> found = work(text)
    >>> found.kernels, found.fusions, dict(found.traffic)
    (2, 1, {'all-gather': 32})
    """
    parts = computations(text)
    times = _times(parts)
    executed = set(_executed(text, parts))
    kernels = fusions = loops = 0
    largest: dict[str, int] = {}
    products: set[str] = set()
    collectives: Counter[str] = Counter()
    traffic: Counter[str] = Counter()
    for name, lines in parts.items():
        for line in lines:
            if line.kind in ("dot", "convolution") or "gemm" in line.rest.split("(")[0]:
                products.add(_operands(line, parts))
            if name not in executed:
                continue
            loops += line.kind == "while"
            kind = line.kind.removesuffix("-start")
            if kind in COLLECTIVES:
                size = _result(line)
                collectives[kind] += 1
                traffic[kind] += size * times.get(name, 1)
                largest[kind] = max(largest.get(kind, 0), size)
            if line.kind in _FREE or line.kind in _CONTROL or line.kind.endswith("-done"):
                continue
            kernels += 1
            fusions += line.kind == "fusion"
    return Work(kernels, fusions, loops, len(products), collectives, traffic, largest)


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation, by its name."""
    found: dict[str, list[Instruction]] = {}
    lines: list[Instruction] = []
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = found.setdefault(head[1], [])
        elif match := _INSTRUCTION.match(line):
            lines.append(Instruction(*match.groups()))
    return found


def size(shape: str) -> list[int]:
    """Bytes of every array of a shape as written.

    >>> size("(f32[2,3]{1,0}, bf16[4]{0}, s8[])")
    [24, 8, 1]
    """
    return [
        math.prod(map(int, filter(None, sizes.split(",")))) * _bits(kind) // 8
        for kind, sizes in _ARRAY.findall(shape)
    ]


def _bits(kind: str) -> int:
    return BITS.get(kind) or int(re.findall(r"\d+", kind)[0])


def _result(line: Instruction) -> int:
    """Bytes of a collective's result: one begun early also names its operands and flags."""
    sizes = size(line.shape)
    if line.kind.endswith("-start") and len(sizes) > 1:
        whole = [x for x in sizes if x > 4]
        return sum(whole[len(whole) // 2 :])
    return sum(sizes)


def _executed(text: str, parts: dict[str, list[Instruction]]) -> list[str]:
    """The entry, and what it and its loops run; not what is part of a kernel or a condition."""
    entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)
    found: list[str] = []
    queue = [entry[1]] if entry else []
    while queue:
        name = queue.pop()
        if name in parts and name not in found:
            found.append(name)
            held = (line.rest for line in parts[name] if line.kind in _CONTROL)
            queue += [inner for rest in held for inner in _held(rest)]
    return found


def _held(rest: str) -> list[str]:
    """The computations that a loop, a call or a choice runs."""
    found = [name for kind, name in _CALLED.findall(rest) if kind != "condition"]
    for names in _BRANCHES.findall(rest):
        found += re.findall(r"[\w.-]+", names)
    return found


def _times(parts: dict[str, list[Instruction]]) -> dict[str, int]:
    """How often a computation runs, as far as its loops have a known length."""
    called: dict[str, tuple[str, int]] = {}
    for name, lines in parts.items():
        for line in lines:
            if line.kind in _CONTROL:
                count = re.search(r'known_trip_count":\{"n":"(\d+)"', line.rest)
                for inner in _held(line.rest):
                    called[inner] = (name, int(count[1]) if count else 1)
    found: dict[str, int] = {}
    for name in called:
        times, outer = 1, name
        while outer in called:
            outer, count = called[outer]
            times *= count
        found[name] = times
    return found


def _operands(line: Instruction, parts: dict[str, list[Instruction]]) -> str:
    """Shape of a product's result and operands, without layouts: what is tuned once."""
    names = re.findall(r"%([\w.-]+)", line.rest.split(")")[0])
    known = {x.name: x.shape for lines in parts.values() for x in lines}
    shapes = [line.shape, *(known.get(name, "") for name in names)]
    return " ".join(re.sub(r"\{[^}]*\}", "", shape) for shape in shapes)


def reason(text: str) -> str:
    """What a compiler that gave up says of memory, or the last line."""
    short = re.search(r"Ran out of memory[^\n]*?[\d.]+[MGT][^\n]*?[\d.]+[MGT]", text)
    return short.group() if short else (text.splitlines() or ["no message"])[-1]
