"""Compiles the programs of an experiment for a TPU slice that is not there, and says what they need.

  python -m experiments.aot --config=configs/grpo_qwen.py:qwen3_8b,pod --topology=v5e:16x16
  python -m experiments.aot --config=configs/sft_arithmetic.py --topology=v6e:2x4 --config.packing.rows_per_step=64

A CPU is enough; the extra tpu-aot brings the compiler. What is compiled is what `experiments.run` runs with the same
config on such a slice: the train step, and for rl the scoring and the decode program too. Weights and data are not
read. Prompts are taken to be config.data.max_prompt_tokens long, the model to end with token 0.

Flags:
  --config=FILE[:ARGUMENT], --config.KEY=VALUE, --debug, --help    as in `python -m experiments.run`
  --topology=CHIP:SHAPE      v5e, v5p or v6e and the shape of the slice, like v5e:16x16; required
  --programs=NAME[,NAME]     of train, score, decode; default all that the experiment has
  --json=FILE                writes the figures there too

Per device: bytes of arguments, temporaries and outputs against the memory of the chip; operations; collectives by
kind, how often they run, the bytes of their arrays and the bytes sent; and the least time of a run by the roofline, for
programs whose loops all have a known length. Of the decode loop, which ends when all completions have, one turn is
counted. The table of docs/aot.md was made with this.

Exit codes: 0 everything fits, 3 something does not (the report says what to change), 2 a mistake in what was given.
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.run import read_config, split_arguments
from jaxalign.errors import UserError, user_message

DOES_NOT_FIT = 3
SHAPES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}
FLAGS = {"topology": "chip and shape of the slice", "programs": "which programs", "json": "file of the figures"}
PROGRAMS = {"rl": ("train", "score", "decode"), "sft": ("train",)}
_MIB, _GIB = 2**20, 2**30


def open_topology(name: str) -> list[Any]:
    """The devices of a topology that nobody has to own. Raises UserError: no libtpu, no such topology."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the compiler for TPUs is not installed; `pip install 'jaxalign[tpu-aot]'` (or libtpu) brings it"
        )
    chip, _, shape = name.partition(":")
    if chip not in SHAPES or not shape:
        known = "; ".join(f"{chip}:{{{', '.join(shapes)}}}" for chip, shapes in SHAPES.items())
        raise UserError(f"--topology={name!r} is not known; it is CHIP:SHAPE, for example one of {known}")
    # The compiler asks the cloud where it is, and warns about the kind of machine, unless told.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(name, "tpu").devices)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        if "lockfile" in str(error):
            raise UserError(f"another process holds the TPU compiler; wait for it to end ({reason})") from error
        raise UserError(
            f"--topology={name!r} does not exist ({reason}); {chip} has {', '.join(SHAPES[chip])} and others"
        ) from error


def compile_part(part, chip, devices: int) -> dict[str, Any]:
    """Compiles a program and returns its figures; "fits" is False where the compiler, or the sum of bytes, refuses."""
    from jaxalign.training import compiled, hlo

    began = time.perf_counter()
    lowered = part.lower()
    figures: dict[str, Any] = {"name": part.name, "held": part.held, "state": part.state, "available": chip.memory}
    try:
        executable = lowered.compile()
    except Exception as error:
        refused = compiled.out_of_memory(str(error))
        if refused is None:
            raise
        # The compiler says how much is missing, and not to what. Before it is partitioned a program has whole arrays.
        whole = compiled.largest_arrays(lowered.compiler_ir("hlo").as_hlo_text())
        figures["largest"] = [(array.bytes / devices, f"{array} over {devices} devices") for array in whole]
        return figures | {"fits": False, "seconds": time.perf_counter() - began, "refused": refused._asdict()}
    figures["seconds"] = time.perf_counter() - began
    memory = compiled.memory(executable)
    figures["memory"] = memory._asdict() | {"total": memory.total}
    figures["fits"] = memory.total + part.held <= chip.memory
    cost = executable.cost_analysis() or {}
    figures["xla_flops"] = float(cost.get("flops", 0.0))
    try:
        program = executable.as_text()
    except Exception as error:  # some chips' compilers write newer programs than jaxlib reads
        figures["text"] = str(error).strip().splitlines()[0]
        whole = hlo.parse(lowered.compiler_ir("hlo").as_hlo_text())
        work = compiled.Work(hlo.product_flops(whole) / devices, None, None, whole.open_loops)
    else:
        work = compiled.work(program)
        figures["largest"] = [(array.bytes, str(array)) for array in compiled.largest_arrays(program)]
    figures["work"] = work._asdict() | {
        "collectives": {kind: t._asdict() for kind, t in (work.collectives or {}).items()}
    }
    limits = compiled.roofline(chip, work, memory)
    figures["roofline"] = limits._asdict() | {"seconds": limits.seconds, "limit": limits.limit}
    return figures


def advice(config, figures) -> list[str]:
    """What to change about a program that does not fit, the most telling first."""
    lines = []
    fsdp = config.mesh.fsdp
    state_bytes = figures["state"]
    if state_bytes + figures["held"] > figures["available"] // 2:
        lines.append(
            f"state and copies alone are {state_bytes / _GIB:.1f} GiB a device: split them further, "
            f"--config.mesh.fsdp={2 * max(fsdp, 1)} or more (a larger slice if that is all of it)"
        )
        if config.optimizer.moment_dtype != "bfloat16":
            lines.append("--config.optimizer.moment_dtype=bfloat16 saves 2 bytes a parameter")
    if figures["name"] == "train step":
        if config.model.remat != "full":
            lines.append("--config.model.remat=full keeps the inputs of layers only")
        lines.append(
            f"--config.train.micro_batches={2 * config.train.micro_batches} halves the rows worked on at once "
            "(they must still divide over the devices)"
        )
    if config.experiment == "rl":
        if config.rl.share_prompt and config.rollout.group_size * config.rollout.max_new_tokens > 1024:
            lines.append("--config.rl.share_prompt=False: a row per completion, since attention grows with its square")
        lines.append(
            "shorter rows: a smaller --config.rollout.max_new_tokens, or fewer --config.rollout.prompts_per_step"
        )
        if figures["name"] == "decode program":
            lines.append("--config.rollout.slots=N decodes N completions at a time")
    else:
        lines.append("shorter rows: a smaller --config.packing.row_length, or fewer --config.packing.rows_per_step")
    return lines


def report(figures, hints: Sequence[str] = ()) -> str:
    """The figures of a program as lines for people."""

    def size(count) -> str:
        return f"{count / _GIB:.2f} GiB" if count >= _GIB / 10 else f"{count / _MIB:.1f} MiB"

    verdict = "fits" if figures["fits"] else "DOES NOT FIT"
    lines = [f"{figures['name']}: {verdict} (compiled in {figures['seconds']:.0f} s)"]
    held = f", with {size(figures['held'])} held besides" if figures["held"] else ""
    if "refused" in figures:
        refused = figures["refused"]
        lines.append(f"  memory        {size(refused['needed'])} needed of {size(refused['available'])}{held}")
        lines += [f"  large array   {size(count)}  {what}" for count, what in figures["largest"]]
    else:
        memory = figures["memory"]
        lines.append(
            f"  memory        {size(memory['total'] + figures['held'])} of {size(figures['available'])}{held}: "
            f"arguments {size(memory['argument'])}, temporaries {size(memory['temporary'])}, outputs "
            f"{size(memory['output'])} (of them {size(memory['alias'])} in place), code {size(memory['code'])}"
        )
        if not figures["fits"]:
            lines += [f"  large array   {size(count)}  {what}" for count, what in figures.get("largest", [])]
        work, limits = figures["work"], figures["roofline"]
        if "text" in figures:
            lines.append(
                f"  operations    {work['flops'] / 1e12:.3f} T a device in products, by the program before it is "
                "partitioned; jaxlib cannot read what this chip's compiler wrote, so collectives are not known, and of "
                "the memory only arguments and outputs are counted"
            )
        else:
            lines.append(
                f"  operations    {work['flops'] / 1e12:.3f} T a device in products (cost_analysis, every loop counted "
                f"once: {figures['xla_flops'] / 1e12:.3f} T)"
            )
            for kind, traffic in work["collectives"].items():
                lines.append(
                    f"  {kind:<18}  {traffic['count']:.0f} x, {size(traffic['bytes'])} of arrays, "
                    f"{size(traffic['moved'])} sent"
                )
            if work["open_loops"]:
                lines.append(f"  (of {work['open_loops']} loop(s) of unknown length one turn is counted)")
        interconnect = "unknown" if "text" in figures else f"{1e3 * limits['interconnect']:.2f}"
        if not work["open_loops"]:
            lines.append(
                f"  at least      {1e3 * limits['seconds']:.2f} ms, by {limits['limit']} (compute "
                f"{1e3 * limits['compute']:.2f}, memory {1e3 * limits['memory']:.2f}, interconnect {interconnect} ms)"
            )
    if not figures["fits"]:
        lines += [f"  change        {hint}" for hint in hints]
    return "\n".join(lines)


def start(own: flags.FlagValues, overrides: Sequence[str]) -> int:
    """Compiles and reports. Returns the exit code."""
    config = read_config(own, overrides, __doc__ or "")
    if config is None:
        return 0
    if not own.topology:
        raise UserError("--topology=CHIP:SHAPE is missing, for example --topology=v5e:16x16")
    if config.get("experiment") not in PROGRAMS:
        raise UserError(
            f"{own.config}: the experiment {config.get('experiment')!r} cannot be compiled ahead of time; those of "
            f"{' and '.join(PROGRAMS)} can"
        )
    wanted = own.programs.split(",") if own.programs else list(PROGRAMS[config.experiment])
    for name in wanted:
        if name not in PROGRAMS[config.experiment]:
            raise UserError(
                f"--programs={own.programs}: {config.experiment} has no program {name!r}; it has "
                f"{', '.join(PROGRAMS[config.experiment])}"
            )
    os.environ["JAX_PLATFORMS"] = "cpu"
    devices = open_topology(own.topology)

    from experiments import programs
    from jaxalign.training.compiled import CHIPS

    chip = CHIPS[own.topology.partition(":")[0]]
    model = programs.abstract_model(config, devices)
    parts = programs.parts(config, model)
    axes = " x ".join(f"{count} {axis}" for axis, count in model.mesh.shape.items())
    print(f"{own.config}: {model.describe()}; {own.topology}, {len(devices)} devices as {axes}", flush=True)
    found = []
    for name in wanted:
        figures = compile_part(parts[name], chip, len(devices))
        found.append(figures)
        print(report(figures, advice(config, figures)), flush=True)
    if own.json:
        Path(own.json).write_text(
            json.dumps({"config": own.config, "topology": own.topology, "programs": found}, indent=1)
        )
    return 0 if all(figures["fits"] for figures in found) else DOES_NOT_FIT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` and returns the exit code."""
    argv = sys.argv if argv is None else argv
    try:
        return start(*split_arguments(argv, FLAGS))
    except KeyboardInterrupt:
        print("experiments.aot: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        message = user_message(error)
        if "--debug" in argv or message is None:
            raise
        print(f"experiments.aot: error: {message}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
