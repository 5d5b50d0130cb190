"""Reads a compiled program in XLA's text format, and counts its memory traffic, collectives and the compiler's estimated cycles.

XLA's cost analysis counts the body of a loop once. Here every instruction counts as often as it runs.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Opcodes that move no bytes by themselves.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "while", "conditional", "call", "opt-barrier",
}  # fmt: skip
CUDNN = 'custom_call_target="__cudnn$conv'  # how a GPU's convolutions begin
SLICES = {"dynamic-slice", "slice", "gather"}
_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0, "opaque": 0}

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"\b(calls|body|to_apply|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_INDEX = re.compile(r"\bindex=(\d+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes:
      shape: shape of the result in XLA's notation, with layouts.
      operands: names of the operands, in the same computation.
      arguments: the text between the parentheses.
      rest: the text after the parentheses: attributes and metadata.
      root: whether the computation returns it.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    arguments: str
    rest: str
    root: bool

    @property
    def cycles(self) -> int:
        """The compiler's estimate of the cycles of one execution; 0 if it states none."""
        found = _CYCLES.search(self.rest)
        return int(found[1]) if found else 0

    def called(self) -> dict[str, list[str]]:
        """Returns the names of the computations that it runs, by the attribute that names them."""
        return {word: re.findall(r"[\w.\-]+", names) for word, names in _CALLED.findall(self.rest)}


Computation = dict[str, Instruction]  # by name, in order


class Program(NamedTuple):
    """A compiled module: its computations by name, the name of the entry computation, and the number of lines of its text."""

    computations: Mapping[str, Computation]
    entry: str
    lines: int


class Execution(NamedTuple):
    """An instruction, the number of times it runs, and the computation `within` which it is."""

    instruction: Instruction
    times: int
    within: Computation


@dataclasses.dataclass(frozen=True)
class Counts:
    """The size of a program's text, and the work of one execution on one device.

    Attributes:
      lines: lines of the text.
      fusions: fusions in the text.
      convolutions: convolutions in the text, those in fusions included.
      cycles: sum of the compiler's estimates, over the instructions that have one; 0 if none has.
      traffic: bytes read from and written to the device's main memory.
      collectives: calls of collectives, by kind.
      sent: bytes of the collectives' results, by kind.
    """

    lines: int
    fusions: int
    convolutions: int
    cycles: int
    traffic: int
    collectives: Mapping[str, int]
    sent: Mapping[str, int]


def count_program(text: str) -> Counts:
    """Counts a program from the text of `jax.stages.Compiled.as_text`."""
    program = parse(text)
    every = [one for computation in program.computations.values() for one in computation.values()]
    opcodes = Counter(one.opcode for one in every)
    cycles = traffic = 0
    calls: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for one, times, within in executions(program):
        cycles += times * one.cycles
        traffic += times * moved_bytes(program, one, within)
        kind = collective_kind(one.opcode)
        if kind:
            calls[kind] += times
            sent[kind] += times * array_bytes(_result(one))
    convolutions = sum(one.opcode == "convolution" or CUDNN in one.rest for one in every)
    return Counts(program.lines, opcodes["fusion"], convolutions, cycles, traffic, calls, sent)


def parse(text: str) -> Program:
    """Parses the text of a compiled module.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        # Computations begin at the margin, instructions are indented.
        if line[:1] not in ("", " ", "}") and (opened := _COMPUTATION.match(line)):
            current = computations[opened[2]] = {}
            entry = opened[2] if opened[1] else entry
        elif found := _INSTRUCTION.match(line):
            made = _instruction(found[2], found[3], bool(found[1]))
            if made is not None:
                current[made.name] = made
    if not entry:
        raise ValueError("the text of the compiled program has no entry")
    return Program(computations, entry, text.count("\n"))


def executions(program: Program) -> Iterator[Execution]:
    """Yields every instruction that runs, in loops and branches too; a fusion counts as one, and every branch as run."""
    yield from _executions(program, program.entry, 1)


def _executions(program: Program, name: str, times: int) -> Iterator[Execution]:
    computation = program.computations.get(name, {})
    for one in computation.values():
        yield Execution(one, times, computation)
        for part, count in _run_by(program, one):
            yield from _executions(program, part, times * count)


def _run_by(program: Program, one: Instruction) -> Iterable[tuple[str, int]]:
    called = one.called()
    if one.opcode == "while":
        return [(name, trip_count(program, one)) for name in called.get("body", ())]
    if one.opcode in ("conditional", "call"):
        return [(name, 1) for names in called.values() for name in names]
    # An async-start wraps one collective or copy, which runs beside other instructions.
    return [(name, 1) for name in called.get("calls", ())] if one.opcode == "async-start" else ()


def trip_count(program: Program, loop: Instruction) -> int:
    """Returns the trip count of a loop: as stated, else the only constant of its condition (a loop from 0), else 1."""
    stated = _TRIPS.search(loop.rest)
    if stated:
        return int(stated[1])
    found = _CONDITION.search(loop.rest)
    condition = program.computations.get(found[1], {}) if found else {}
    limits = [
        int(one.arguments)
        for one in condition.values()
        if one.opcode == "constant" and one.arguments.isdigit()
    ]
    return limits[0] if len(limits) == 1 else 1


def collective_kind(opcode: str) -> str | None:
    """Returns the collective that an opcode starts; None if it starts none."""
    kind = opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


def moved_bytes(program: Program, one: Instruction, within: Computation) -> int:
    """Returns the bytes that an instruction reads from and writes to main memory; of a sliced operand, the slice alone counts."""
    if one.opcode in FREE or one.opcode.endswith("-done") or one.opcode == "async-start":
        return 0
    inner = _fused(program, one)
    written = _written_bytes(one, inner)
    if one.opcode in SLICES:
        # A slice reads as many bytes of its operand as it writes.
        return 2 * written
    operands = [within[name] for name in one.operands if name in within]
    return written + sum(_read_bytes(operand, inner, place) for place, operand in enumerate(operands))


def _fused(program: Program, one: Instruction) -> Computation:
    names = one.called().get("calls", ()) if one.opcode == "fusion" else ()
    return program.computations.get(names[0], {}) if names else {}


def _written_bytes(one: Instruction, inner: Computation) -> int:
    """Returns the bytes written to main memory; of an array updated in place, those of the update."""
    root = next((each for each in inner.values() if each.root), one)
    # The root may be a bitcast or a copy of the update.
    while root.opcode in ("bitcast", "copy") and root.operands[:1] and root.operands[0] in inner:
        root = inner[root.operands[0]]
    if root.opcode == "dynamic-update-slice" and root.operands[1:] and root.operands[1] in inner:
        return array_bytes(inner[root.operands[1]].shape) if main_memory_bytes(one.shape) else 0
    return main_memory_bytes(_result(one))


def _read_bytes(operand: Instruction, inner: Computation, place: int) -> int:
    whole = main_memory_bytes(operand.shape)
    parameter = next(
        (each for each in inner.values() if each.opcode == "parameter" and each.arguments == str(place)), None
    )
    if parameter is None or not whole:
        return whole
    readers = [each for each in inner.values() if parameter.name in each.operands]
    # A fusion that only slices an operand, or updates it in place, does not read the rest of it.
    if readers and all(
        each.opcode in SLICES
        or (each.opcode == "dynamic-update-slice" and each.operands[0] == parameter.name)
        for each in readers
    ):
        return min(whole, sum(array_bytes(each.shape) for each in readers if each.opcode in SLICES))
    return whole


def array_bytes(shape: str) -> int:
    """Returns the bytes of an array, or of all arrays of a tuple, from a shape in XLA's notation."""
    return sum(_bytes(kind, sides) for kind, sides, _ in _ARRAY.findall(shape))


def main_memory_bytes(shape: str) -> int:
    """Returns the part of `array_bytes` in the device's main memory; a layout with S(n) is in another memory space."""
    return sum(_bytes(kind, sides) for kind, sides, layout in _ARRAY.findall(shape) if "S(" not in layout)


def _bytes(kind: str, sides: str) -> int:
    named = re.search(r"\d+", kind)
    bits = _BITS[kind] if kind in _BITS else int(named[0]) if named else 0
    return math.prod(int(side) for side in sides.split(",") if side) * bits // 8


def _result(one: Instruction) -> str:
    """Returns the shape of an instruction's result; a -start opcode returns operands too, a copy-start its result first."""
    parts = _tuple_parts(one.shape)
    if not one.opcode.endswith("-start") or len(parts) < 2 or one.opcode == "all-reduce-start":
        return one.shape
    return parts[0] if one.opcode == "copy-start" else parts[1]


def _tuple_parts(shape: str) -> Sequence[str]:
    if not shape.startswith("("):
        return [shape]
    parts, depth, start = [], 0, 1
    for place, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or depth == 0:
            parts.append(shape[start:place].strip())
            start = place + 1
    return parts


def _instruction(name: str, text: str, root: bool) -> Instruction | None:
    """Parses SHAPE OPCODE(ARGUMENTS)REST; returns None for any other text."""
    shape_end = _end_of_group(text) if text.startswith("(") else text.find(" ")
    shape, rest = text[:shape_end], text[shape_end:].lstrip()
    opening = rest.find("(")
    if shape_end < 1 or opening < 1:
        return None
    closing = opening + _end_of_group(rest[opening:])
    arguments = rest[opening + 1 : closing - 1]
    operands = tuple(_NAME.findall(arguments))
    return Instruction(name, rest[:opening], shape, operands, arguments, rest[closing:], root)


def _end_of_group(text: str) -> int:
    """Returns the index after the parenthesis that closes the one at the beginning of `text`."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    return len(text)
