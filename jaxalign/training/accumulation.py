"""Loss and gradient of a batch as sums, at once or a micro-batch at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.objective import Metrics, Objective
from jaxalign.objective import add as add_objectives

# loss_fn(params, batch, key, extra) -> Objective, whose value for a batch is the sum of those of its parts
LossFn = Callable[[Any, Any, jax.Array, Any], Objective]


class CoupledLoss(NamedTuple):
    """A loss in which the rows of a batch interact (contrastive pairs, batch statistics), cut where they meet.

    outputs: (params, batch, key, extra) -> tree of arrays with the rows in front, each row from its own row alone.
    objective: (outputs, batch, key, extra) -> Objective of all rows.
    shared: params -> what the objective learns by itself (a temperature, class vectors); it is then given
      (outputs, shared) in place of outputs.
    update: (outputs, batch, extra) -> the entries of `TrainState.extra` that a step changes, from the outputs of all
      rows before the step; for a controller that follows what the loss sees. Once per step.
    combine: (gradient through copy 0, gradient through copy 1, ...) -> (what is taken in place of their sum, which is
      the gradient of the loss; metrics of it). The objective is then given a tuple of `copies` equal outputs (each with
      what is shared, if anything is), and by what it reads of which copy gradients are told apart: those of several
      objectives, or those through both completions of pairs. Each is of the whole batch, for one more backward pass.

    In micro-batches it is taken in two passes: the outputs of all micro-batches without gradient, the objective and
    its gradient by the outputs once for the whole batch, then micro-batch by micro-batch the outputs again with that
    gradient going backward. The result is that of one batch, for one more forward pass; what is held of the whole
    batch are outputs only (Gao et al., arXiv 2101.06983).
    """

    outputs: Callable[[Any, Any, jax.Array, Any], Any]
    objective: Callable[[Any, Any, jax.Array, Any], Objective]
    update: Callable[[Any, Any, Any], dict[str, Any]] | None = None
    shared: Callable[[Any], Any] | None = None
    combine: Callable[..., tuple[Any, Metrics]] | None = None
    copies: int = 1

    def __call__(self, params, batch, key, extra) -> Objective:
        given = self.outputs(params, batch, key, extra), self.learned(params)
        return self.judge((given,) * self.copies, batch, key, extra)

    def learned(self, params) -> Any:
        """What is shared, or nothing."""
        return () if self.shared is None else self.shared(params)

    def judge(self, given: tuple[tuple[Any, Any], ...], batch, key, extra) -> Objective:
        """The objective of `copies` times (outputs, learned)."""
        copies = tuple(outputs for outputs, _ in given) if self.shared is None else given
        return self.objective(copies[0] if self.combine is None else copies, batch, key, extra)

    def combined(self, gradients: tuple[Any, ...]) -> tuple[Any, Metrics]:
        """What is taken of the gradients through the copies."""
        return (gradients[0], {}) if self.combine is None else self.combine(*gradients)


# attach(frozen, params) -> what a loss takes as its params
Attach = Callable[[Any, Any], Any]


def attached(loss_fn: LossFn | CoupledLoss, attach: Attach, frozen) -> LossFn | CoupledLoss:
    """`loss_fn` as a function of `params` alone, over what is `frozen`."""
    if isinstance(loss_fn, CoupledLoss):
        outputs, shared = loss_fn.outputs, loss_fn.shared
        return loss_fn._replace(
            outputs=lambda params, *rest: outputs(attach(frozen, params), *rest),
            shared=None if shared is None else lambda params: shared(attach(frozen, params)),
        )
    return lambda params, *rest: loss_fn(attach(frozen, params), *rest)


def sums(loss_fn: LossFn | CoupledLoss, params, batch, key, extra, micro_batches: int = 1) -> tuple[Objective, Any]:
    """(objective, gradient of its total by `params`) of the whole batch, all sums in float32.

    Row r goes to micro-batch r % micro_batches. With the rows lying over devices in contiguous blocks every device
    keeps its own rows, and nothing moves. Micro-batch m is given the key fold_in(key, m); the objective of a
    `CoupledLoss` is given fold_in(key, 0).
    """
    return sums_and_extra(loss_fn, params, batch, key, extra, micro_batches)[:2]


def sums_and_extra(
    loss_fn: LossFn | CoupledLoss, params, batch, key, extra, micro_batches: int = 1
) -> tuple[Objective, Any, dict[str, Any]]:
    """`sums`, and what the `update` of a `CoupledLoss` changes in `extra` ({} without one)."""
    if isinstance(loss_fn, CoupledLoss) and (micro_batches > 1 or loss_fn.update or loss_fn.combine):
        in_passes = _in_two_passes if micro_batches > 1 else _in_one_pass
        objective, gradients, outputs = in_passes(loss_fn, params, batch, key, extra, micro_batches)
        gradient, metrics = loss_fn.combined(gradients)
        objective = objective._replace(metrics=objective.metrics | metrics)
        changed = {} if loss_fn.update is None else jax.lax.stop_gradient(loss_fn.update(outputs, batch, extra))
        return objective, gradient, changed
    return *_add_up(loss_fn, params, batch, key, extra, micro_batches), {}


def _add_up(loss_fn: LossFn, params, batch, key, extra, micro_batches: int) -> tuple[Objective, Any]:
    if micro_batches == 1:
        return _value_and_gradient(lambda p: loss_fn(p, batch, jax.random.fold_in(key, 0), extra), params)
    stacked = jax.tree.map(lambda leaf: _split(leaf, micro_batches), batch)

    def part(rows, index):
        return _value_and_gradient(lambda p: loss_fn(p, rows, jax.random.fold_in(key, index), extra), params)

    def body(carry, inputs):
        objective, gradients = part(*inputs)
        return (add_objectives(carry[0], objective), _add(carry[1], gradients)), None

    first = jax.tree.map(lambda leaf: leaf[0], stacked)
    shape = jax.eval_shape(lambda rows: part(rows, 0)[0], first)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), shape), _zeros_like(params)
    return jax.lax.scan(body, zeros, (stacked, jnp.arange(micro_batches)))[0]


def _in_one_pass(loss_fn: CoupledLoss, params, batch, key, extra, micro_batches: int):
    """(objective, gradients through the copies, outputs)"""
    del micro_batches
    key = jax.random.fold_in(key, 0)
    given, backward = jax.vjp(lambda p: (loss_fn.outputs(p, batch, key, extra), loss_fn.learned(p)), params)
    objective, cotangents = _judged(loss_fn, given, batch, key, extra)
    return objective, tuple(backward(cotangent)[0] for cotangent in cotangents), given[0]


def _in_two_passes(loss_fn: CoupledLoss, params, batch, key, extra, micro_batches: int):
    """(objective, gradients through the copies, outputs)"""
    stacked = jax.tree.map(lambda leaf: _split(leaf, micro_batches), batch)
    indices = jnp.arange(micro_batches)

    def outputs(params, rows, index):
        return loss_fn.outputs(params, rows, jax.random.fold_in(key, index), extra)

    pieces = jax.lax.map(lambda inputs: outputs(params, *inputs), (stacked, indices))
    whole = jax.tree.map(_merge, pieces)
    learned, backward_of_learned = jax.vjp(loss_fn.learned, params)
    objective, cotangents = _judged(loss_fn, (whole, learned), batch, jax.random.fold_in(key, 0), extra)
    by_outputs, by_learned = zip(*cotangents, strict=True)
    gradients = tuple(_add(_zeros_like(params), backward_of_learned(one)[0]) for one in by_learned)

    def body(gradients, inputs):
        rows, index, parts = inputs
        _, backward = jax.vjp(lambda p: outputs(p, rows, index), params)
        return tuple(_add(sums, backward(part)[0]) for sums, part in zip(gradients, parts, strict=True)), None

    parts = jax.tree.map(lambda leaf: _split(leaf, micro_batches), by_outputs)
    return objective, jax.lax.scan(body, gradients, (stacked, indices, parts))[0], whole


def _judged(loss_fn: CoupledLoss, given: tuple[Any, Any], batch, key, extra) -> tuple[Objective, tuple[Any, ...]]:
    """(objective, its gradient by each copy of `given`)"""
    return _value_and_gradient(lambda copies: loss_fn.judge(copies, batch, key, extra), (given,) * loss_fn.copies)


def _value_and_gradient(function: Callable[[Any], Objective], at) -> tuple[Objective, Any]:
    def total(at):
        objective = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), function(at))
        return objective.total, objective

    (_, objective), gradients = jax.value_and_grad(total, has_aux=True)(at)
    return objective, gradients


def _split(leaf, micro_batches: int):
    """[rows, ...] -> [micro_batches, rows / micro_batches, ...]"""
    rows = leaf.reshape(leaf.shape[0] // micro_batches, micro_batches, *leaf.shape[1:])
    return jnp.moveaxis(rows, 1, 0)


def _merge(leaf):
    """The inverse of `_split`."""
    return jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:])


def _zeros_like(params):
    return jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), params)


def _add(sums, gradients):
    return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), sums, gradients)
