"""Learning from a test batch in the pass that predicts it, and only in a part of the parameters."""

import re
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxalign.errors import UserError
from jaxalign.objective import Objective
from jaxalign.training.sharding import path_name
from jaxalign.training.state import TrainState
from jaxalign.training.step import make_train_step


def selected(params: dict, pattern: str) -> dict:
    """The leaves whose whole path matches the regular expression, in nested dicts of the same names.

    Raises UserError: nothing matches.
    """
    found: dict = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        if re.fullmatch(pattern, name):
            *folders, last = name.split("/")
            place = found
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = leaf
    if not found:
        raise UserError(f"no parameter matches {pattern!r} (config.adapt.parameters): nothing would be adapted")
    return found


def replaced(params: dict, part: dict) -> dict:
    """`params` with the leaves of `part` (from `selected`) in their places."""
    return params | {
        name: replaced(params[name], leaf) if isinstance(leaf, dict) else leaf for name, leaf in part.items()
    }


Forward = Callable[[Any, Any, dict], Any]  # (params, batch, extra) -> outputs


def make_adapt_step(
    forward: Forward, loss_fn: Callable[[Any, Any, dict], Objective], optimizer: optax.GradientTransformation, **layout
) -> Callable[[TrainState, Any], tuple[TrainState, Any, dict[str, jax.Array]]]:
    """(state, batch) -> (state, outputs, metrics): the outputs are those of BEFORE the update, which learns from them.

    `forward(state.params, batch, state.extra)` gives the outputs, `loss_fn(outputs, batch, extra)` the Objective of the
    same pass. A loss or gradient that is not finite leaves parameters and optimizer as they were and is counted.
    `layout`: mesh and shardings, as for `make_train_step`. To be called under `jit`, which joins the two passes.
    """

    def of_params(params, batch, key, extra):
        del key
        return loss_fn(forward(params, batch, extra), batch, extra)

    train_step = make_train_step(of_params, optimizer, **layout)

    def adapt_step(state, batch):
        outputs = forward(state.params, batch, state.extra)
        state, metrics = train_step(state, batch)
        return state, outputs, metrics

    return adapt_step
