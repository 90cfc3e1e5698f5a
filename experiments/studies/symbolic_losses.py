"""The sixteen losses of two predictions (arXiv 2412.17696) and a new one, on a table policy.

16 prompts with 8 responses of one token from normal logits; response 0 is chosen, response 1 rejected. Adam 0.02, 300
steps, logistic link, beta 1, without a term of likelihood. Settings are the names of the losses, and "orpo with
reference", ORPO's ratio less the log-ratio of the reference, which has no name elsewhere.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from jaxalign.losses.preference import PairLogProbs
from jaxalign.losses.symbolic.compilation import symbolic_loss
from jaxalign.losses.symbolic.decompilation import reference_form
from jaxalign.losses.symbolic.named import SINGLE_MODEL
from jaxalign.objective import loss

NEW = {"orpo with reference": reference_form(SINGLE_MODEL["orpo"].preference)}
FORMULAS = {name: named.preference for name, named in SINGLE_MODEL.items()} | NEW
SETTINGS = tuple(FORMULAS)
PROMPTS, RESPONSES, STEPS = 16, 8, 300
OPTIMIZER = optax.adam(0.02)


@functools.partial(jax.jit, static_argnums=(0, 2))
def train(setting: str, key: jax.Array, steps: int = STEPS) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(log-prob of the chosen, of the rejected response, mean of prompts; loss) after training."""
    start = jax.random.normal(key, (PROMPTS, RESPONSES))
    reference, one = jax.nn.log_softmax(start), jnp.ones(PROMPTS)

    def pairs(table):
        policy = jax.nn.log_softmax(table)
        return PairLogProbs(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], one, one, one)

    def value(table):
        return loss(symbolic_loss(formula=FORMULAS[setting], **pairs(table)._asdict()))

    def step(carry, _):
        table, moments = carry
        updates, moments = OPTIMIZER.update(jax.grad(value)(table), moments)
        return (optax.apply_updates(table, updates), moments), None

    (table, _), _ = jax.lax.scan(step, (start, OPTIMIZER.init(start)), length=steps)
    return pairs(table).chosen.mean(), pairs(table).rejected.mean(), value(table)


def run(setting: str, seed: int, steps: int = STEPS) -> dict[str, float]:
    """`chosen` and `rejected`: mean log-prob of the response, nats; `satisfied`: exp(-loss), the geometric mean of the
    probability of the formula, WMC(T) / (WMC(T) + WMC(B))."""
    chosen, rejected, value = train(setting, jax.random.key(seed), steps)
    return {"chosen": float(chosen), "rejected": float(rejected), "satisfied": float(jnp.exp(-value))}
