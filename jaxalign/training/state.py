"""Everything that training changes, as one tree of arrays: what a step maps and a checkpoint holds."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state between two steps.

    `step` counts attempted updates and goes on when an update is skipped, so that data and randomness,
    which follow from it, move on too. The optimizer's own counts, and with them the learning-rate
    schedule, count applied updates only.
    """

    step: jax.Array  # [] int32
    params: Any
    opt_state: Any
    key: jax.Array  # base key; the key of a step is fold_in(key, step), so it never changes
    extra: dict[str, Any]  # states of controllers, averages, trackers
    skipped: jax.Array  # [] int32: updates left out because something was not finite
    skipped_in_a_row: jax.Array  # [] int32

    def replace(self, **changes) -> "TrainState":
        return dataclasses.replace(self, **changes)


def create_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    extra: dict[str, Any] | None = None,
    *,
    shardings: TrainState | None = None,
) -> TrainState:
    """The state before the first step.

    The state owns `params` from here on: a train step donates its state, so the arrays passed in die
    with the first step. Copy first what must live on (a frozen reference policy). `key` and `extra` are
    copied. With `shardings` (from `sharding.state_shardings`) everything else is born sharded;
    parameters that already lie right are not moved or copied.
    """

    # Under jit nothing can share a buffer with the parameters, which donation forbids, and arrays can
    # be born on devices of other processes.
    def rest(params, key, extra):
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, None, optimizer.init(params), key, extra, zero, zero)

    if shardings is not None:
        params = jax.device_put(params, shardings.params)
    out = None if shardings is None else shardings.replace(params=None)
    return jax.jit(rest, out_shardings=out)(params, key, extra or {}).replace(params=params)


def abstract_state(
    abstract_params: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    extra: dict[str, Any] | None = None,
    *,
    shardings: TrainState | None = None,
) -> TrainState:
    """Shapes and dtypes (and shardings) of `create_state`, without an array: to restore onto, to compile for."""
    state = jax.eval_shape(lambda p, k, e: create_state(p, optimizer, k, e), abstract_params, key, extra)
    return state if shardings is None else with_shardings(state, shardings)


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs of `abstract` that carry `shardings`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
