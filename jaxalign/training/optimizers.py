"""Optimizers and learning-rate schedules by name."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxalign.errors import UserError
from jaxalign.training.sharding import path_name

# Norm scales, biases, magnitudes of adapters; by path, because the stacked scale of all layers has two dimensions.
NO_DECAY: tuple[str, ...] = (r"(.*/)?(scale|bias|magnitude)",)


def _adafactor(b1, b2, epsilon, moment_dtype):
    del b1, b2, epsilon, moment_dtype  # the second moment is factored, its decay follows the step
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))


# name -> (b1, b2, epsilon, moment_dtype) -> direction of the update, before decay and learning rate
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": lambda b1, b2, eps, dtype: optax.scale_by_adam(b1, b2, eps, mu_dtype=dtype),
    "adam": lambda b1, b2, eps, dtype: optax.scale_by_adam(b1, b2, eps, mu_dtype=dtype),
    "lion": lambda b1, b2, eps, dtype: optax.scale_by_lion(b1, b2, mu_dtype=dtype),
    "rmsprop": lambda b1, b2, eps, dtype: optax.scale_by_rms(decay=b2, eps=eps),
    "sgd": lambda b1, b2, eps, dtype: optax.trace(b1, accumulator_dtype=dtype) if b1 else optax.identity(),
    "adafactor": _adafactor,
}

# name -> progress after the warm-up in [0, 1], updates since the warm-up, warm-up -> factor before the floor
SCHEDULES: dict[str, Callable[[Any, Any, int], Any]] = {
    "constant": lambda progress, since, warmup: jnp.ones_like(progress),
    "linear": lambda progress, since, warmup: 1 - progress,
    "cosine": lambda progress, since, warmup: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    "inverse_sqrt": lambda progress, since, warmup: jax.lax.rsqrt(1 + since / max(warmup, 1)),
}


def _known(kind: str, name: str, table: dict) -> Any:
    if name not in table:
        raise UserError(f"optimizer.{kind}={name!r} is not known; use one of {', '.join(sorted(table))}")
    return table[name]


def make_schedule(
    name: str,
    learning_rate: float,
    *,
    warmup_steps: int = 0,
    total_steps: int | None = None,
    final_fraction: float = 0.0,
) -> optax.Schedule:
    """Learning rate of the update with number t = 0, 1, ...

    During the warm-up learning_rate * (t + 1) / warmup_steps, so that the first update is not lost.
    Then learning_rate * max(f, final_fraction) with f = 1 (`constant`), falling to 0 at `total_steps`
    along a line (`linear`) or half a cosine (`cosine`), or sqrt(w / (w + t')) with w warm-up steps (at
    least 1) and t' updates since then (`inverse_sqrt`).

    Raises:
      UserError: an unknown name; a falling schedule without `total_steps` beyond the warm-up.
    """
    shape = _known("schedule", name, SCHEDULES)
    if name in ("linear", "cosine") and (total_steps is None or total_steps <= warmup_steps):
        raise UserError(
            f"optimizer.schedule={name!r} needs more steps in all ({total_steps}) than "
            f"optimizer.warmup_steps={warmup_steps}"
        )
    length = max((total_steps or 0) - warmup_steps, 1)

    def schedule(count):
        count = jnp.asarray(count, jnp.float32)
        since = jnp.maximum(count - warmup_steps, 0)
        factor = jnp.maximum(shape(jnp.minimum(since / length, 1), since, warmup_steps), final_fraction)
        return learning_rate * jnp.minimum((count + 1) / max(warmup_steps, 1), 1) * factor

    return schedule


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scales the gradient g of all parameters together to g * min(1, max_norm / norm(g)).

    The extra argument `grad_norm` is norm(g) where the caller knows it; then no pass over g is made.
    """

    def update(updates, state, params=None, *, grad_norm=None, **unused):
        del params, unused
        norm = optax.tree.norm(updates) if grad_norm is None else grad_norm
        factor = jnp.where(norm > max_norm, max_norm / jnp.where(norm > 0, norm, 1), 1)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


class LearningRateState(NamedTuple):
    count: jax.Array  # [] int32: updates applied
    learning_rate: jax.Array  # [] float32: of the last one


def scale_by_learning_rate(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Multiplies by minus the learning rate, and keeps it in the state to be reported."""

    def init(params):
        del params
        return LearningRateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates, state, params=None):
        del params
        rate = schedule(state.count)
        updates = jax.tree.map(lambda u: u * -rate.astype(u.dtype), updates)
        return updates, LearningRateState(state.count + 1, rate)

    return optax.GradientTransformation(init, update)


def decay_mask(params: Any, no_decay: Sequence[str] = NO_DECAY) -> Any:
    """True for parameters that decay: those whose whole path matches none of the patterns."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(re.fullmatch(pattern, path_name(path)) for pattern in no_decay), params
    )


def make_optimizer(
    name: str = "adamw",
    learning_rate: float = 1e-5,
    *,
    schedule: str = "constant",
    warmup_steps: int = 0,
    total_steps: int | None = None,
    final_fraction: float = 0.0,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] = NO_DECAY,
    max_grad_norm: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    moment_dtype: str | None = None,
) -> optax.GradientTransformation:
    """Clipping, the direction of the named optimizer, decoupled weight decay, learning rate, in this order.

    `max_grad_norm` None or 0 does not clip. Decay subtracts learning_rate * weight_decay * parameter
    from whatever `no_decay` does not match. `moment_dtype` is that of the first moment. `b1` of "sgd" is
    its momentum. The state carries the learning rate of the last update under that name.

    Raises:
      UserError: unknown names; negative numbers; `adam` with weight decay.
    """
    direction = _known("name", name, OPTIMIZERS)
    numbers = {
        "learning_rate": learning_rate,
        "warmup_steps": warmup_steps,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm or 0,
    }
    for key, value in numbers.items():
        if not value >= 0:
            raise UserError(f"optimizer.{key}={value} must not be negative")
    if name == "adam" and weight_decay:
        raise UserError("optimizer.name='adam' has no weight decay; use 'adamw' or optimizer.weight_decay=0")
    dtype = None if moment_dtype is None else jnp.dtype(moment_dtype)
    rate = make_schedule(
        schedule,
        learning_rate,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        final_fraction=final_fraction,
    )
    parts: list[optax.GradientTransformation] = []
    if max_grad_norm:
        parts.append(clip_by_global_norm(max_grad_norm))
    parts.append(direction(b1, b2, epsilon, dtype))
    if weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay, lambda params: decay_mask(params, no_decay)))
    parts.append(scale_by_learning_rate(rate))
    return optax.chain(*parts)
