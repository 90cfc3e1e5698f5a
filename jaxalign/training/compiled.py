"""What a compiled program needs and how fast it can be at best: memory, operations, collectives, roofline.

Everything is per device, and read from the program before it has run once: a program that is compiled for a topology
of chips that are not there says it as well.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxalign.training import hlo


class Chip(NamedTuple):
    """What one chip has. `memory` is what its compiler lets programs use, a little less than what is sold."""

    memory: int  # bytes of HBM
    flops: float  # bfloat16 operations a second, peak
    memory_bandwidth: float  # bytes a second
    link_bandwidth: float  # bytes a second that it can send over all its links to other chips of the slice


_GIB = 2**30
# Peak figures of docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}; the bandwidth to other chips is given there for both
# directions together, and half of it is one. Memory is the limit that the compiler names (libtpu 0.0.52).
CHIPS: dict[str, Chip] = {
    "v5e": Chip(int(15.75 * _GIB), 197e12, 819e9, 200e9),
    "v5p": Chip(int(95.74 * _GIB), 459e12, 2765e9, 600e9),
    "v6e": Chip(int(31.25 * _GIB), 918e12, 1638e9, 400e9),
}


class Memory(NamedTuple):
    """Bytes of one device. `total` is what has to be there at once while the program runs."""

    argument: int
    output: int
    alias: int  # outputs that take the place of donated arguments
    temporary: int
    code: int

    @property
    def total(self) -> int:
        return self.argument + self.output - self.alias + self.temporary + self.code


class Traffic(NamedTuple):
    """All collectives of a kind, of one device."""

    count: float  # runs
    bytes: float  # of arrays, the larger of operands and results
    moved: float  # bytes that the device sends


class Work(NamedTuple):
    """What one run of a program does on one device; None where only its text says it, and that is not to be had."""

    flops: float
    memory_bytes: float | None
    collectives: dict[str, Traffic] | None
    open_loops: int = 0  # loops of unknown length, of which one turn is counted


class Roofline(NamedTuple):
    """Seconds that each resource needs at its peak; the step takes at least the longest of them."""

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        return max(self)

    @property
    def limit(self) -> str:
        return max(zip(self, self._fields, strict=True))[1]


class OutOfMemory(NamedTuple):
    """A program that the compiler refused."""

    needed: int
    available: int


def memory(compiled: Any) -> Memory:
    """Of a `jax.stages.Compiled`."""
    found = compiled.memory_analysis()
    return Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        found.generated_code_size_in_bytes,
    )


def work(text: str) -> Work:
    """Of the text of an optimized module. See `jaxalign.training.hlo` for what is counted how."""
    program = hlo.parse(text)
    return Work(
        hlo.product_flops(program),
        hlo.memory_traffic(program),
        by_kind(hlo.collectives(program)),
        program.open_loops,
    )


def by_kind(collectives: Sequence[hlo.Collective]) -> dict[str, Traffic]:
    """Sums over all runs, for the kinds that occur."""
    found = {}
    for kind in hlo.COLLECTIVES:
        group = [c for c in collectives if c.kind == kind]
        if group:
            found[kind] = Traffic(
                sum(c.runs for c in group), sum(c.runs * c.bytes for c in group), sum(c.runs * c.moved for c in group)
            )
    return found


def roofline(chip: Chip, work: Work, memory: Memory) -> Roofline:
    """The least time of one run: nothing waits for anything, and compute, memory and links all work at their peak.

    compute = flops / peak,  memory = HBM bytes / bandwidth,  interconnect = bytes sent / bandwidth of all links. Where
    the HBM bytes are not known they are the arguments and the outputs, each once.
    """
    touched = work.memory_bytes
    if touched is None:
        touched = memory.argument + memory.output
    sent = sum(traffic.moved for traffic in (work.collectives or {}).values())
    return Roofline(work.flops / chip.flops, touched / chip.memory_bandwidth, sent / chip.link_bandwidth)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _bytes(text: str) -> int:
    found = re.match(r"([0-9.]+)([KMGT]?)", text)
    return int(float(found.group(1)) * _UNITS[found.group(2)]) if found else 0


def out_of_memory(message: str) -> OutOfMemory | None:
    """Reads the compiler's complaint that a program does not fit; None if it complains about something else."""
    amounts = re.search(r"\(([0-9.]+[KMGT]?)\) exceeds available HBM \(([0-9.]+[KMGT]?)\)", message)
    if "RESOURCE_EXHAUSTED" not in message or amounts is None:
        return None
    return OutOfMemory(*(_bytes(text) for text in amounts.groups()))


def largest_arrays(text: str, count: int = 5) -> list[hlo.Array]:
    """The largest arrays that instructions outside of fusions make, arguments among them."""
    program = hlo.parse(text)
    found = {
        array._replace(on_chip=False)
        for name, instructions in program.computations.items()
        if program.runs[name] and name not in program.fused
        for instruction in instructions.values()
        for array in instruction.arrays
    }
    return sorted(found, key=lambda array: -array.bytes)[:count]
