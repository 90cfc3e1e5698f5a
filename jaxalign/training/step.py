"""One optimizer update: a pure function, and the one place where it becomes a compiled one."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxalign.errors import UserError
from jaxalign.objective import metric_means, safe_divide
from jaxalign.placement import under_mesh
from jaxalign.training.accumulation import Attach, CoupledLoss, LossFn, attached, sums_and_extra
from jaxalign.training.mesh import batch_sharding, batch_shards, replicated
from jaxalign.training.state import TrainState


def _check_batch(batch, micro_batches: int, shards: int) -> None:
    if micro_batches < 1:
        raise UserError(f"micro_batches={micro_batches} must be at least 1")
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        name = f"batch{jax.tree_util.keystr(path)}"
        if leaf.ndim == 0:
            raise UserError(f"{name} is a scalar; every array of a batch has a leading batch axis")
        if leaf.shape[0] % (micro_batches * shards):
            raise UserError(
                f"{name} has {leaf.shape[0]} rows, which {micro_batches} micro-batch(es) over {shards} "
                "device(s) do not divide; change the batch size, micro_batches or the mesh"
            )


def _train_step(
    state: TrainState,
    batch: Any,
    frozen: Any = None,
    *,
    loss_fn: LossFn | CoupledLoss,
    attach: Attach | None = None,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
    shards: int = 1,
    params_shardings: Any = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The mathematics of `make_train_step`."""
    _check_batch(batch, micro_batches, shards)
    if attach is not None:
        loss_fn = attached(loss_fn, attach, frozen)
    key = jax.random.fold_in(state.key, state.step)
    objective, gradients, changed = sums_and_extra(loss_fn, state.params, batch, key, state.extra, micro_batches)
    if params_shardings is not None:  # summed over devices straight into the pieces each device owns
        gradients = jax.lax.with_sharding_constraint(gradients, params_shardings)

    # A weight that is not finite makes the loss so too, instead of 0.
    loss = safe_divide(objective.total, objective.weight) + 0 * objective.weight
    scale = safe_divide(jnp.ones(()), objective.weight)
    grad_norm = optax.tree.norm(gradients) * scale
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(objective.weight)

    # The raw sums enter the branch and are scaled there, and the norm comes along: with nothing but
    # elementwise work left, the compiler updates parameters and moments in place. (Scaling or measuring
    # before or after costs one more copy of all gradients, `where` over the state two.)
    def update(params, opt_state, gradients):
        gradients = jax.tree.map(lambda g, p: (g * scale).astype(p.dtype), gradients, params)
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            gradients, opt_state, params, grad_norm=grad_norm
        )
        return optax.apply_updates(params, updates), opt_state

    def skip(params, opt_state, gradients):
        del gradients
        return params, opt_state

    params, opt_state = jax.lax.cond(finite, update, skip, state.params, state.opt_state, gradients)
    before = {name: state.extra[name] for name in changed}
    changed = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, before)
    bad = (~finite).astype(jnp.int32)
    state = state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        extra={**state.extra, **changed},
        skipped=state.skipped + bad,
        skipped_in_a_row=(state.skipped_in_a_row + bad) * bad,
    )
    metrics = metric_means(objective.metrics) | {
        "loss": loss,
        "grad_norm": grad_norm,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
    }
    rates = [rate for _, rate in optax.tree_utils.tree_get_all_with_path(opt_state, "learning_rate")]
    if len(rates) == 1:
        metrics["learning_rate"] = rates[0]
    return state, metrics


def make_train_step(
    loss_fn: LossFn | CoupledLoss,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh | None = None,
    shardings: TrainState | None = None,
    micro_batches: int = 1,
    attach: Attach | None = None,
    frozen_shardings: Any = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled `(state, batch) -> (state, metrics)`; the state is donated (do not use it again).

    `loss_fn(params, batch, key, extra)` returns an Objective of the rows it is given; only `params`
    receives gradient. Every array of the batch has a leading batch axis. With several micro-batches the
    sums of losses, weights, metrics and gradients (float32) are accumulated and divided once by the
    weight of the whole batch, so the result is that of one batch; it holds a second set of gradients.
    A loss whose rows interact is given as a `CoupledLoss`, and is exact in micro-batches too.

    The `update` of a `CoupledLoss` changes entries of the state's `extra`, and its `combine` makes one gradient out of
    several, both once per step.

    If the loss or the norm of the gradient is not finite, parameters, optimizer state and `extra` stay as they
    are, bit for bit, and the step is counted in `skipped` and `skipped_in_a_row`; `step` goes on. A
    batch of weight 0 has loss 0 and gradient 0; that update is applied (momentum and decay act).

    Metrics: means of the objective's metrics, `loss`, `grad_norm` (of the mean loss, before clipping),
    `skipped` (so far), `skipped_in_a_row`, and `learning_rate` of the last applied update if the
    optimizer state holds one. The optimizer's `update` is given `grad_norm` as an extra argument.

    With `attach` the state's parameters are only a part of what the loss takes: the step is then
    `(state, batch, frozen) -> (state, metrics)` and the loss is given `attach(frozen, params)`. Nothing of
    `frozen` receives gradient, is donated or is in the state.

    With `mesh`, batches lie over (data, fsdp) (`mesh.put_batch`); `shardings` (`sharding.
    state_shardings`) is the layout of the state, by default replicated, `frozen_shardings` that of `frozen`.

    Raises:
      UserError (when called): rows that do not divide into micro-batches and devices.
    """
    step = functools.partial(
        _train_step, loss_fn=loss_fn, optimizer=optimizer, micro_batches=micro_batches, attach=attach
    )
    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    layout = replicated(mesh) if shardings is None else shardings
    step = functools.partial(
        step,
        shards=batch_shards(mesh),
        params_shardings=None if shardings is None else shardings.params,
    )

    def step_on_mesh(state, batch, *frozen):
        with under_mesh(mesh):
            return step(state, batch, *frozen)

    return jax.jit(
        step_on_mesh,
        in_shardings=(layout, batch_sharding(mesh), *(() if attach is None else (frozen_shardings,))),
        out_shardings=(layout, replicated(mesh)),
        donate_argnums=0,
    )
