"""Writes a run's model as a Hugging Face folder, which transformers and vLLM load.

  python -m experiments.export --checkpoint=runs/grpo_qwen --to=exported/grpo_qwen
  python -m experiments.export --checkpoint=runs/grpo_qwen-lora --to=exported/adapter --adapter-only

The newest checkpoint of the run is taken, which may go on meanwhile. A run that trained an adapter is written merged
into its base, or with --adapter-only as an adapter in PEFT's format. The folder appears whole or not at all.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np
from safetensors import SafetensorError

from experiments.setup import BASE, Model, Policy, build_model, build_policy, frozen_base
from experiments.warm_start import first_weights
from jaxalign.errors import UserError, user_message
from jaxalign.models import lora, peft_io
from jaxalign.models.fingerprint import fingerprint
from jaxalign.models.safetensors_io import save_folder
from jaxalign.models.value_head import without_value_head
from jaxalign.training.stored_checkpoint import StoredCheckpoint

DTYPES = ("float32", "bfloat16", "float16")


def export(
    checkpoint: str | Path,
    to: str | Path,
    *,
    adapter_only: bool = False,
    merge: bool = False,
    average: bool = False,
    step: int | None = None,
    dtype: str = "float32",
    max_file_bytes: int = 4 * 2**30,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes the model of a run's folder `checkpoint` to the new folder `to`, and returns it.

    Args:
        adapter_only, merge: the two forms of a run that trained an adapter; merged where neither is given.
        average: the moving average of what was trained (config.train.ema_decay), not its last value.
        step: of the checkpoint; None takes the newest.
        dtype: of the weights in the files; adapters are always float32.
        max_file_bytes: weights are split into files of at most this size.

    Raises:
        UserError: no checkpoint; `to` exists; too little space; an adapter or an average is asked for of a run without
            one; the base of the adapter is not the one it was trained on.
    """
    workdir, to = Path(checkpoint), Path(to)
    if adapter_only and merge:
        raise UserError("--adapter-only and --merge exclude each other; give one of them")
    if not workdir.is_dir():
        raise UserError(f"there is no folder {workdir}; --checkpoint is the folder of a run (its --workdir)")
    if to.exists() or to.is_symlink():
        raise UserError(f"{to} exists already; nothing is overwritten, give another --to or remove it")
    stored = StoredCheckpoint(workdir / "checkpoints", step)
    config = _one_device(stored.config)
    if "model" not in config or "adapter" not in config:
        raise UserError(
            f"checkpoint {stored.step} in {workdir} has no model and adapter in its config: another program wrote it"
        )
    model = build_model(config)
    policy = build_policy(config, model)
    if policy.adapter is None and (adapter_only or merge):
        raise UserError(
            f"the run in {workdir} trained all weights and no adapter; leave --adapter-only and --merge out"
        )
    if average and not config.train.get("ema_decay"):
        raise UserError(f"the run in {workdir} kept no average (config.train.ema_decay is 0); leave --average out")
    if average:
        params = stored.read({"opt_state": {"average": policy.abstract}})["opt_state"]["average"]
    else:
        params = stored.read({"params": policy.abstract})["params"]
    with whole_folder(to) as folder:
        if adapter_only:
            _check_room(to, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
            base_name = "" if config.model.path == "auto" else config.model.path
            peft_io.save(folder, params, policy.adapter, model.decoder.config, base_name=base_name)
        else:
            sizes = (leaf.size for leaf in jax.tree.leaves(model.decoder.abstract_params()))
            _check_room(to, sum(sizes) * np.dtype(jax.numpy.dtype(dtype)).itemsize)
            weights = (
                without_value_head(params)
                if policy.adapter is None
                else merged(config, policy, params, stored.required, say)
            )
            save_folder(
                folder,
                model.decoder.config,
                weights,
                dtype=dtype,
                extra=_special_ids(model),
                max_file_bytes=max_file_bytes,
            )
        model.tokenizer.save(folder)
        if not adapter_only:
            (folder / "generation_config.json").write_text(json.dumps(_special_ids(model), indent=1) + "\n")
    form = "adapter" if adapter_only else "weights" if policy.adapter is None else "merged weights"
    say(f"{form} of step {stored.step} written to {to}")
    return to


def merged(config, policy: Policy, adapter, required, say: Callable[[str], None]) -> dict:
    """The base in full precision with the adapter merged into it. Raises UserError if it is another base."""
    base = first_weights(config, policy.model, say)
    found = fingerprint(frozen_base(policy.model.decoder, base))
    if found != required.get(BASE):
        raise UserError(
            f"the adapter was trained on other base weights ({required.get(BASE, 'none')} there, {found} now): "
            f"config.model.path={config.model.path!r} now means {policy.model.source}"
        )
    return lora.merge(base, jax.device_put(adapter, policy.shardings), policy.adapter)


@contextlib.contextmanager
def whole_folder(to: Path) -> Iterator[Path]:
    """A temporary folder beside `to`, renamed to it at the end; removed if anything fails, with folders made for it."""
    partial = to.parent / f".{to.name}.partial-{os.getpid()}"
    made = [parent for parent in (to.parent, *to.parent.parents) if not parent.exists()]
    try:
        try:
            partial.mkdir(parents=True)
            yield partial
            partial.rename(to)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot write {to} ({error}); make room or give another --to") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # it holds what was exported
                parent.rmdir()


def _check_room(to: Path, size: int) -> None:
    place = next(parent for parent in to.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise UserError(
            f"{to} needs {size / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; make room, give another --to or a "
            "smaller --dtype"
        )


def _one_device(plain: dict) -> ml_collections.ConfigDict:
    """A stored config for the devices at hand. Lists were tuples."""

    def tuples(value):
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return tuple(tuples(item) for item in value) if isinstance(value, list) else value

    config = ml_collections.ConfigDict(tuples(plain))
    config.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
    return config


def _special_ids(model: Model) -> dict[str, int | list[int]]:
    tokenizer = model.tokenizer
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.eos_ids), "pad_token_id": tokenizer.pad_id}
    return {name: value for name, value in ids.items() if value not in (None, [])}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, metavar="WORKDIR", help="the folder of a run")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="the folder to make")
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights (default: %(default)s)")
    parser.add_argument("--merge", action="store_true", help="an adapter merged into its base (the default)")
    parser.add_argument("--adapter-only", action="store_true", help="the adapter alone, in PEFT's format")
    parser.add_argument("--average", action="store_true", help="the moving average of the weights (train.ema_decay)")
    parser.add_argument("--max-file-gb", type=float, default=4.0, help="largest file of weights (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        export(
            options.checkpoint,
            options.to,
            adapter_only=options.adapter_only,
            merge=options.merge,
            average=options.average,
            step=options.step,
            dtype=options.dtype,
            max_file_bytes=int(options.max_file_gb * 2**30),
        )
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"experiments.export: error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
