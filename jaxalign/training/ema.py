"""An exponential moving average of the parameters, kept beside them and used to evaluate and to export."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxalign.errors import UserError


class AverageState(NamedTuple):
    inner: Any  # of the optimizer
    average: Any  # like the parameters


def update(average: Any, params: Any, decay: float) -> Any:
    """decay * average + (1 - decay) * params, leaf by leaf in the average's dtype; no gradient."""
    return jax.tree.map(lambda a, p: a + (1 - decay) * (jax.lax.stop_gradient(p).astype(a.dtype) - a), average, params)


def averaged(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, and after each of its updates `update` of an average that begins at the first parameters.

    Polyak & Juditsky (1992) in its exponential form. The average is a leaf of the optimizer state, so it lies over
    devices like the parameters, is in every checkpoint, and stands still where an update is skipped.

    Raises:
      UserError: decay outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise UserError(f"train.ema_decay={decay} must be in [0, 1); 0 keeps no average")
    inner = optax.with_extra_args_support(optimizer)

    def init(params):
        # A copy: the state is donated, and no two of its arrays may be one.
        return AverageState(inner.init(params), jax.tree.map(jnp.copy, params))

    def step(gradients, state, params, **extra):
        updates, inner_state = inner.update(gradients, state.inner, params, **extra)
        average = update(state.average, optax.apply_updates(params, updates), decay)
        return updates, AverageState(inner_state, average)

    return optax.GradientTransformationExtraArgs(init, step)


def average_of(opt_state: Any) -> Any | None:
    """The average that `averaged` keeps in an optimizer state; None where there is none."""
    return opt_state.average if isinstance(opt_state, AverageState) else None
