"""A checkpoint that lies there, for reading alone."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from jaxalign.errors import UserError
from jaxalign.training.checkpoint_leaves import BrokenCheckpoint, nest, read_leaves, reading, wanted_leaves


class StoredCheckpoint:
    """The newest checkpoint of a directory (or that of `step`) for reading alone: a run may go on there meanwhile.

    Attributes: `step`, `config` (nested dicts, tuples as lists), `leaves` (name -> shape, dtype, checksum), `required`
    (what `Checkpointer.require` was given).

    Raises:
      UserError: there is no such checkpoint, or it cannot be read.
    """

    def __init__(self, directory: str | os.PathLike, step: int | None = None):
        self.directory = epath.Path(directory)
        if "://" not in os.fspath(directory):
            self.directory = epath.Path(os.path.abspath(directory))
        if not self.directory.is_dir():
            raise UserError(f"there are no checkpoints: {self.directory} does not exist")
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(),
            **{name: ocp.JsonCheckpointHandler() for name in ("config", "about")},
        }
        options = ocp.CheckpointManagerOptions(read_only=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        steps = sorted(self._manager.all_steps())
        if not steps or step not in (None, *steps):
            which = "checkpoint" if step is None else f"checkpoint of step {step}"
            there = f"; there are those of steps {', '.join(map(str, steps))}" if steps else ""
            raise UserError(f"there is no {which} in {self.directory}{there}")
        self.step = steps[-1] if step is None else step
        args = ocp.args.Composite(config=ocp.args.JsonRestore(), about=ocp.args.JsonRestore())
        with self._telling():
            texts = self._manager.restore(self.step, args=args)
            self.config, about = texts["config"]["config"], texts["about"]
            self.leaves, self.required = about["leaves"], about.get("required", {})

    def read(self, abstract_tree: Mapping[str, Any]) -> dict[str, Any]:
        """The leaves of the state that `abstract_tree` (nested dicts) names, with its shardings and dtypes.

        Raises:
          UserError: a leaf that is not there or has another shape; a file that cannot be read.
        """
        wanted = wanted_leaves(abstract_tree)
        for name, leaf in wanted.items():
            found = tuple(self.leaves[name]["shape"]) if name in self.leaves else None
            if found != leaf.shape:
                there = "is not in it" if found is None else f"has shape {found} there, {leaf.shape} is wanted"
                raise UserError(f"checkpoint {self.step} in {self.directory} is of another model: {name} {there}")
        with self._telling():
            return nest(read_leaves(self._manager, self.step, wanted, self.leaves))

    @contextlib.contextmanager
    def _telling(self):
        try:
            with reading():
                yield
        except BrokenCheckpoint as error:
            raise UserError(f"checkpoint {self.step} in {self.directory} cannot be read ({error})") from error
