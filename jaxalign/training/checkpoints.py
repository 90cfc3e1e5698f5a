"""Checkpoints that survive: the whole state of a run, its data position and its config, kept by Orbax.

A checkpoint is a folder `<directory>/<step>` with four items: `state` (one array per leaf, named by its
path), `data` (JSON: where the data stands), `config` (JSON) and `about` (JSON: versions; shape, dtype
and checksum of every leaf). Orbax writes under a temporary name and renames at the end, so a folder with
a plain number is whole unless the disk lied; reading checks that too.
"""

import contextlib
import errno
import fcntl
import fnmatch
import importlib.metadata
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxalign.errors import UserError
from jaxalign.training.checkpoint_leaves import (
    BrokenCheckpoint,
    cause,
    description,
    like,
    named_leaves,
    nest,
    plain,
    read_leaves,
    reading,
    wanted_leaves,
)
from jaxalign.training.configuration import differences, to_plain
from jaxalign.training.sharding import path_name

# Config keys (with wildcards) that may differ between a checkpoint and the run that continues it: where and
# how long it runs, on what, and what it reports.
FREE_KEYS: tuple[str, ...] = (
    "workdir",
    "profile",
    "mesh.*",
    "distributed.*",
    "logging.*",
    "evaluation.*",
    "train.steps",
    "train.save_every",
    "train.keep",
    "train.save_behind",
    "train.evaluate_every",
    "train.micro_batches",
    "train.max_skipped_in_a_row",
)
_TEMPORARY = "*.orbax-checkpoint-tmp*"
_BROKEN = ".broken"
_PACKAGES = ("jaxalign", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")

# Orbax warns at every save that there is no OCDBT database to merge. There never is: see `Checkpointer`.
logging.getLogger("absl").addFilter(lambda record: "Skipping merge of OCDBT" not in str(record.msg))


class Restored(NamedTuple):
    """What a checkpoint held."""

    state: Any
    data_state: Any
    step: int


class Checkpointer:
    """Saves to and restores from one directory (a local path or one that Orbax knows, such as gs://).

    Args:
      directory: made if missing. One live process (the first of a run) holds it at a time.
      config: of this run, stored with every checkpoint and compared at restoring.
      keep: newest checkpoints kept.
      free_keys: dotted config keys, with wildcards, that may differ at restoring.
      asynchronous: copy the state and write it behind the training; by default on all backends but the
        CPU, where the copy would double the state's memory to save little time.
      compress: zstd; float32 weights shrink by 8 % and writing takes two to three times as long.

    Raises:
      UserError: the directory cannot be written or is held by another live process.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        config: Mapping[str, Any] | None = None,
        keep: int = 2,
        free_keys: Sequence[str] = FREE_KEYS,
        asynchronous: bool | None = None,
        compress: bool = False,
    ):
        self.directory = epath.Path(directory)
        if "://" not in os.fspath(directory):
            self.directory = epath.Path(os.path.abspath(directory))  # Orbax refuses relative ones
        self._config = to_plain(config or {})
        self._free_keys = tuple(free_keys)
        self._lock: int | None = None
        self._required: dict[str, str] = {}
        self._own_steps: set[int] = set()  # saved or restored here: what lies there is this run's
        if asynchronous is None:
            asynchronous = jax.default_backend() != "cpu"
        if jax.process_index() == 0:
            self._claim()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=asynchronous)
        handlers = {
            # OCDBT, one database for all arrays, would cost four times the processor time of files per array.
            "state": ocp.PyTreeCheckpointHandler(use_compression=compress, use_ocdbt=False),
            **{name: ocp.JsonCheckpointHandler() for name in ("data", "config", "about")},
        }
        with _disk_trouble(f"cannot keep checkpoints in {self.directory}", "give another workdir"):
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def _claim(self) -> None:
        """Makes the directory, locks it and clears what a killed process left half-written."""
        with _disk_trouble(f"cannot keep checkpoints in {self.directory}", "give another workdir"):
            self.directory.mkdir(parents=True, exist_ok=True)
            if "://" not in os.fspath(self.directory):
                self._lock = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder = os.read(self._lock, 20).decode().strip()
                    raise UserError(
                        f"{self.directory} is in use by process {holder}: wait for it, stop it, or give another workdir"
                    ) from None
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, str(os.getpid()).encode(), 0)
            for left in self.directory.glob(_TEMPORARY):
                print(f"warning: {left.name} is a half-written checkpoint; removed", flush=True)
                left.rmtree()

    def require(self, name: str, value: str) -> None:
        """A fact that the state stands on but does not hold (the weights under an adapter). It is stored with every
        checkpoint from now on, and one with another value is refused at restoring."""
        self._required[name] = value

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, data_state: Any) -> None:
        """Writes the checkpoint of `step`; asynchronous ones may still be under way on return.

        `state` is any tree of arrays (typed random keys included), `data_state` any JSON value, equal on
        all processes. Every process must call. A step that this run saved or restored before is left.
        Checkpoints beyond `keep` go only after the new one is whole.

        Raises:
          UserError: the checkpoint (or, asynchronously, the one before) could not be written; what was
            there is still there. Or the step exists and is not of this run.
        """
        step = int(step)
        if step in self._own_steps:
            return
        if step in self._manager.all_steps():
            raise UserError(
                f"{self.directory} already holds a checkpoint of step {step} that this run did not start from; "
                "give another workdir"
            )
        leaves = {name: plain(leaf) for name, leaf in named_leaves(state).items()}
        size = sum(leaf.nbytes for leaf in leaves.values())
        with self._writing(step):
            self._check_room(size)
            about = {
                "leaves": {name: description(leaf) for name, leaf in leaves.items()},
                "versions": _versions(),
                "processes": jax.process_count(),
                "required": self._required,
            }
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(nest(leaves)),
                    data=ocp.args.JsonSave({"data_state": data_state}),
                    config=ocp.args.JsonSave({"config": self._config}),
                    about=ocp.args.JsonSave(about),
                ),
            )
        self._own_steps.add(step)

    def wait(self) -> None:
        """Returns when everything saved is on disk; raises as `save` does."""
        with self._writing(max(self._own_steps, default=0)):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the directory."""
        try:
            self.wait()
        finally:
            self._manager.close()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _check_room(self, size: int) -> None:
        if "://" in os.fspath(self.directory):
            return
        free = shutil.disk_usage(self.directory).free
        if size / jax.process_count() > free:
            raise OSError(errno.ENOSPC, f"{size / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")

    @contextlib.contextmanager
    def _writing(self, step: int):
        """Turns whatever writing raises into one sentence and clears the attempt away."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            self._own_steps.discard(step)
            if jax.process_index() == 0:
                for _ in range(20):  # other arrays of the attempt may still be on their way to the disk
                    for left in self.directory.glob(_TEMPORARY):
                        with contextlib.suppress(OSError):
                            left.rmtree()
                    if not list(self.directory.glob(_TEMPORARY)):
                        break
                    time.sleep(0.05)
            with contextlib.suppress(Exception):
                self._manager.reload()
            kept = ", ".join(str(s) for s in self.steps()) or "none"
            raise UserError(
                f"the checkpoint of step {step} could not be written to {self.directory} ({cause(error)}); "
                f"checkpoints still there: {kept}. Make room or give another workdir"
            ) from error

    def restore_latest(self, abstract_state: Any) -> Restored | None:
        """The newest whole checkpoint, or None if the directory holds no checkpoint.

        `abstract_state` is a tree of arrays or ShapeDtypeStructs; its shardings and dtypes are those of
        the result, whatever mesh and dtype wrote the checkpoint. A checkpoint that cannot be read is
        reported, renamed to `<step>.broken` and the one before is taken. Checksums are compared wherever
        a leaf is read with the dtype it was written in, by one process.

        Raises:
          UserError: the checkpoint is of another config (the keys are named), stands on another fact that was
            given to `require`, or holds a state of another form; there are checkpoints but none can be read.
        """
        self.wait()
        self._manager.reload()
        broken: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                restored = self._restore(step, abstract_state)
            except BrokenCheckpoint as error:
                broken[step] = str(error)
                print(
                    f"warning: checkpoint {step} in {self.directory} cannot be read ({error}); trying the one before",
                    flush=True,
                )
                continue
            # Only now: had none been readable, the fault may lie elsewhere and nothing should be touched.
            if broken and jax.process_index() == 0:
                for bad in broken:
                    self._set_aside(bad)
            if broken:
                _meet("broken checkpoints are set aside")
                self._manager.reload()
            self._own_steps.add(step)
            return restored
        if broken:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in broken.items())
            raise UserError(
                f"none of the checkpoints in {self.directory} can be read ({reasons}); "
                "give another workdir to start from the beginning"
            )
        return None

    def check_config(self) -> None:
        """Refuses early, before anything large is read: UserError if the newest checkpoint is of another config.

        A checkpoint whose config cannot be read is left to `restore_latest`.
        """
        step = max(self.steps(), default=None)
        if step is None:
            return
        with contextlib.suppress(BrokenCheckpoint):
            with reading():
                texts = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
                config = texts["config"]["config"]
            self._check_config(step, config)

    def _set_aside(self, step: int) -> None:
        source = self.directory / str(step)
        target = self.directory / f"{step}{_BROKEN}"
        if target.exists():
            target.rmtree()
        source.rename(target)

    def _restore(self, step: int, abstract_state: Any) -> Restored:
        names = ("config", "about", "data")
        args = ocp.args.Composite(**{name: ocp.args.JsonRestore() for name in names})
        with reading():
            texts = self._manager.restore(step, args=args)
            config, stored = texts["config"]["config"], texts["about"]["leaves"]
            data_state = texts["data"]["data_state"]
        self._check_config(step, config)
        self._check_required(step, texts["about"].get("required", {}))
        wanted = wanted_leaves(abstract_state)
        self._check_form(step, stored, wanted)
        arrays = read_leaves(self._manager, step, wanted, stored)
        leaves, tree = jax.tree_util.tree_flatten_with_path(abstract_state)
        state = [like(arrays[path_name(path)], leaf) for path, leaf in leaves]
        return Restored(jax.tree.unflatten(tree, state), data_state, step)

    def _check_config(self, step: int, config: Mapping[str, Any]) -> None:
        different = {
            key: pair
            for key, pair in differences(config, self._config).items()
            if not any(fnmatch.fnmatchcase(key, free) for free in self._free_keys)
        }
        if different:
            text = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, (old, new) in different.items())
            raise UserError(
                f"checkpoint {step} in {self.directory} is of another config ({text}); "
                "use that config again or give another workdir"
            )

    def _check_required(self, step: int, stored: Mapping[str, str]) -> None:
        for name, value in self._required.items():
            if stored.get(name) != value:
                raise UserError(
                    f"checkpoint {step} in {self.directory} stands on other {name} ({stored.get(name, 'none')} there, "
                    f"{value} now); give it those it was made with, or another workdir"
                )

    def _check_form(self, step: int, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Names and shapes must be equal; dtypes may differ."""
        problems = [f"{name} is only in the checkpoint" for name in stored if name not in wanted]
        for name, leaf in wanted.items():
            if name not in stored:
                problems.append(f"{name} is not in the checkpoint")
            elif tuple(stored[name]["shape"]) != leaf.shape:
                problems.append(f"{name} has shape {tuple(stored[name]['shape'])} there, {leaf.shape} now")
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise UserError(
                f"checkpoint {step} in {self.directory} holds another state: {'; '.join(problems[:3])}{more}; "
                "use the model and optimizer it was made with or give another workdir"
            )


@contextlib.contextmanager
def _disk_trouble(what: str, remedy: str):
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}; {remedy}") from error


def _meet(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
