"""What the text of a compiled program says: its instructions, how often each runs, products and collectives.

`cost_analysis` of XLA counts the body of a loop once, however often it runs, and names no collective. Here the calls
between computations are followed from the entry, and the body of a loop counts as often as the loop runs where the
program says so (`known_trip_count`, or the bound in the condition of a counted loop). A loop that does not say it (the
decode loop, which ends when all completions have) counts once. Of the branches of a conditional every one counts.
"""

import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (\(.*\) -> .* )?\{$")
_NAMED = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_CALLEES = re.compile(r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Array(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool = False  # in a memory space of the chip's own (VMEM), not in HBM

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        width = _BYTES.get(self.dtype)
        if width is None:  # s8, u32, f8e4m3fn, s4: the number is bits
            found = re.match(r"[a-z]+?(\d+)", self.dtype)
            bits = int(found.group(1)) if found else 0
            return math.ceil(self.size * bits / 8)
        return self.size * width

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Instruction(NamedTuple):
    name: str
    opcode: str
    arrays: tuple[Array, ...]  # the result; several for a tuple
    operands: tuple[str, ...]
    attributes: str  # the rest of the line
    is_root: bool

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)


class Program(NamedTuple):
    computations: dict[str, dict[str, Instruction]]  # by name; their instructions by name, in order
    entry: str
    runs: dict[str, float]  # how often each computation runs
    fused: frozenset[str]  # computations that are part of one instruction of another
    open_loops: int  # loops of unknown length, counted once


class Collective(NamedTuple):
    """One collective of the program; bytes are those of one device."""

    kind: str  # one of COLLECTIVES
    runs: float
    bytes: int  # what a device has of the larger side, operands or results, in one run
    moved: float  # what a device sends in one run, by the ring algorithm
    group: int  # devices that take part together
    arrays: tuple[Array, ...]
    source: str  # the operation of the JAX program that it comes from


def parse(text: str) -> Program:
    """Reads the text of an HLO module. Raises ValueError where there is no entry.

    That of a compiled program (`compiled.as_text()`) is what one device does; that of a lowered one
    (`lowered.compiler_ir("hlo").as_hlo_text()`) is what all do together, before anything is fused or partitioned.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] = {}
    entry = ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations[header.group(2)] = {}
            entry = header.group(2) if header.group(1) else entry
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text has no ENTRY computation; pass the text of an HLO module")
    runs, fused, open_loops = _count_runs(computations, entry)
    return Program(computations, entry, runs, fused, open_loops)


def _instruction(line: str) -> Instruction | None:
    found = _NAMED.match(line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    # Before optimization names are written without a mark.
    operands = tuple(re.findall(r"%([\w.\-]+)" if "%" in inside else r"[\w.\-]+", inside))
    arrays = tuple(
        Array(dtype, tuple(int(n) for n in sizes.split(",") if n), "S(1)" in (layout or ""))
        for dtype, sizes, layout in _ARRAY.findall(shape)
    )
    if opcode in ("parameter", "constant"):
        operands = (inside,)
    return Instruction(found.group(2), opcode, arrays, operands, rest[close + 1 :], bool(found.group(1)))


def _closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    return len(text) - 1


def _trip_count(loop: Instruction, condition: dict[str, Instruction]) -> int | None:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if known:
        return int(known.group(1))
    # Loops that count from 0 by 1, as scans do.
    root = next((i for i in condition.values() if i.is_root), None)
    if root is None or root.opcode != "compare" or "direction=LT" not in root.attributes:
        return None
    bound = condition.get(root.operands[-1])
    if bound is None or bound.opcode != "constant" or not bound.operands[0].isdigit():
        return None
    return int(bound.operands[0])


def _count_runs(computations, entry):
    calls: dict[str, list[tuple[str, float]]] = defaultdict(list)
    fused, open_loops = set(), 0
    for name, instructions in computations.items():
        for instruction in instructions.values():
            callees = dict.fromkeys(callee for _, callee in _CALLEES.findall(instruction.attributes))
            for branches in _BRANCHES.findall(instruction.attributes):
                callees |= dict.fromkeys(re.findall(r"[\w.\-]+", branches))
            times = 1
            if instruction.opcode == "while":
                condition = dict(_CALLEES.findall(instruction.attributes))["condition"]
                count = _trip_count(instruction, computations.get(condition, {}))
                open_loops += count is None
                times = 1 if count is None else count
            calls[name] += [(callee, times) for callee in callees if callee in computations]
            # What is applied to single elements (the sum of a reduction) is as little a program of its own.
            if instruction.opcode not in ("while", "conditional", "call", "async-start"):
                fused |= set(callees)

    @functools.cache
    def order(name) -> tuple[str, ...]:  # callees first
        seen = dict.fromkeys(n for callee, _ in calls[name] for n in order(callee))
        return (*seen, name)

    runs = dict.fromkeys(computations, 0.0)
    runs[entry] = 1.0
    for name in reversed(order(entry)):
        for callee, times in calls[name]:
            runs[callee] += runs[name] * times
    return runs, frozenset(fused), open_loops


def _instructions(program: Program) -> Iterator[tuple[str, Instruction, float]]:
    for name, instructions in program.computations.items():
        if program.runs[name]:
            for instruction in instructions.values():
                yield name, instruction, program.runs[name]


def collectives(program: Program) -> list[Collective]:
    """Every collective that the program runs.

    On a TPU a collective may be spread over several fusions that each repeat its instruction (a chain), and an
    all-reduce of which every device keeps a part only is a fusion called all-reduce-scatter: the first is counted
    once, the second as the reduce-scatter that it is.
    """
    found, chains = [], set()
    for computation, instruction, runs in _instructions(program):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
        if chain:
            key = (chain.group(1), *re.findall(r"channel_id=(\d+)", instruction.attributes))
            if key in chains:
                continue
            chains.add(key)
        local = program.computations[computation]
        operands = tuple(a for name in instruction.operands if name in local for a in local[name].arrays)
        results = instruction.arrays
        if instruction.opcode.endswith("-start"):  # the result holds the operands too, and flags
            results = results[len(operands) : 2 * len(operands)] or results
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        larger = max((operands, results), key=lambda arrays: sum(array.bytes for array in arrays))
        size = sum(array.bytes for array in larger)
        group = _group_size(instruction.attributes)
        factor = 1 if kind == "collective-permute" else (2 if kind == "all-reduce" else 1) * (group - 1) / group
        source = re.search(r'op_name="([^"]*)"', instruction.attributes)
        found.append(Collective(kind, runs, size, size * factor, group, larger, source.group(1) if source else ""))
    return found


def _group_size(attributes: str) -> int:
    """Devices of a replica group, in the three ways that it is written."""
    if found := re.search(r"replica_groups=\{\{([0-9,]*)\}", attributes):
        return found.group(1).count(",") + 1
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(found.group(2))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found.group(1)))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'([^']+)'", found.group(2)))
    return 2  # collective-permute names pairs


def product_flops(program: Program) -> float:
    """Floating-point operations of all matrix products of one device, 2 for a multiplication and addition.

    Products are `dot`, or `convolution` on a TPU. What custom kernels do is not seen.
    """
    total = 0.0
    for computation, instruction, runs in _instructions(program):
        if instruction.opcode in ("dot", "convolution"):
            local = program.computations[computation]
            left, right = (local[name].arrays[0].shape for name in instruction.operands[:2])
            count = _dot_flops if instruction.opcode == "dot" else _convolution_flops
            total += runs * count(instruction, left, right)
    return total


def _dot_flops(instruction: Instruction, left, right) -> float:
    del right
    axes = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", instruction.attributes)
    contracted = [int(axis) for axis in axes.group(1).split(",") if axis] if axes else []
    return 2.0 * instruction.arrays[0].size * math.prod(left[axis] for axis in contracted)


def _convolution_flops(instruction: Instruction, left, right) -> float:
    """Batch axes of a product are written as space, of which dilation and padding leave a part: it is counted out."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if not labels:
        return 0.0
    inputs, kernel, output = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(field.split("=") for field in window.group(1).split()) if window else {}
    spatial = sorted(label for label in inputs if label.isdigit())

    def numbers(name, default):
        return [int(n) for n in fields[name].split("x")] if name in fields else [default] * len(spatial)

    pads = [int(p.split("_")[0]) for p in fields["pad"].split("x")] if "pad" in fields else [0] * len(spatial)
    strides, dilations, spreads = numbers("stride", 1), numbers("lhs_dilate", 1), numbers("rhs_dilate", 1)
    out = instruction.arrays[0].shape
    total = 2.0 * out[output.index("b")] * out[output.index("f")] * right[kernel.index("i")]
    for axis, label in enumerate(spatial):
        size = left[inputs.index(label)]
        positions = np.arange(out[output.index(label)])[:, None] * strides[axis] - pads[axis]
        positions = positions + np.arange(right[kernel.index(label)]) * spreads[axis]
        inside = (positions >= 0) & (positions % dilations[axis] == 0) & (positions // dilations[axis] < size)
        total *= inside.sum()
    return total


def memory_traffic(program: Program) -> float:
    """Bytes that the instructions read from and write to a device's HBM, from their shapes.

    A fusion counts as its operands and results; of an operand that it only slices, the slices count, and of a result
    that it updates in place, the update.
    """
    total = 0.0
    free = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}
    for computation, instruction, runs in _instructions(program):
        if computation in program.fused or instruction.opcode in free:
            continue
        local = program.computations[computation]
        called = dict(_CALLEES.findall(instruction.attributes)).get("calls")
        inner = program.computations.get(called or "", {})
        written = _written(inner) if inner else None
        if instruction.opcode in ("dynamic-slice", "gather"):
            total += runs * 2 * _in_memory(instruction.arrays)
            continue
        if instruction.opcode == "dynamic-update-slice":
            total += runs * 2 * _in_memory(local[instruction.operands[1]].arrays)
            continue
        total += runs * (_in_memory(instruction.arrays) if written is None else written)
        for index, name in enumerate(instruction.operands):
            if name in local and local[name].opcode != "constant":
                arrays = local[name].arrays
                sliced = _read(inner, index) if inner else None
                total += runs * min(_in_memory(arrays), math.inf if sliced is None else sliced)
    return total


def _in_memory(arrays) -> int:
    return sum(array.bytes for array in arrays if not array.on_chip)


def _read(fusion: dict[str, Instruction], index: int) -> float | None:
    """Bytes that a fusion reads of operand `index` where it slices it only or updates it in place; else None."""
    parameter = next((i for i in fusion.values() if i.opcode == "parameter" and i.operands == (str(index),)), None)
    if parameter is None:
        return None
    total = 0
    for user in (i for i in fusion.values() if i.opcode != "parameter" and parameter.name in i.operands):
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            total += user.bytes
        elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name):
            return None
    return total


def _written(fusion: dict[str, Instruction]) -> float | None:
    """Bytes that a fusion writes whose root updates an array in place; None if it writes its result."""
    root = next((i for i in fusion.values() if i.is_root), None)
    if root is None or root.opcode != "dynamic-update-slice" or root.operands[1] not in fusion:
        return None
    return fusion[root.operands[1]].bytes


def arrays(program: Program) -> set[Array]:
    """Every array that the program makes, inside fusions too (where it is never in memory as a whole)."""
    return {array._replace(on_chip=False) for _, i, _ in _instructions(program) for array in i.arrays}
