"""Losses of pairs on a table policy: how near to the optimum, under noise, and with labels that never disagree.

8 prompts with 6 responses, rewards and logits of the reference normal (logits times 0.5), beta 0.5, 4,000 pairs of
different responses. Full batches, Adam 0.05. Settings are "<method>, <labels>, <steps>" with labels drawn from the
Bradley-Terry law of the rewards ("clean"), the same with 30 % of them turned round ("flipped"), or the better response
always chosen ("certain"); "start" is the reference. Methods are those of the table of methods with beta 0.5 and, where
labels are smoothed, a smoothing of 0.3.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from jaxalign.losses.preference import PairLogProbs, preference_loss
from jaxalign.methods import METHODS
from jaxalign.objective import loss

SETTINGS = (
    "start",
    "dpo, clean, 600",
    *(f"{name}, flipped, 600" for name in ("dpo", "robust_dpo", "cdpo")),
    *(f"{name}, certain, {steps}" for name in ("dpo", "ipo") for steps in (300, 1500)),
)
PROMPTS, RESPONSES, PAIRS, BETA, FLIPPED = 8, 6, 4000, 0.5, 0.3
OPTIMIZER = optax.adam(0.05)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def train(method: str, labels: str, steps: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(KL(policy || optimum) in nats, mean of prompts; mean |Delta| of the pairs in nats)."""
    keys = jax.random.split(key, 6)
    reward = jax.random.normal(keys[0], (PROMPTS, RESPONSES))
    reference = 0.5 * jax.random.normal(keys[1], (PROMPTS, RESPONSES))
    log_reference = jax.nn.log_softmax(reference)
    optimum = jax.nn.log_softmax(log_reference + reward / BETA)

    prompt = jax.random.randint(keys[2], (PAIRS,), 0, PROMPTS)
    first = jax.random.randint(keys[3], (PAIRS,), 0, RESPONSES)
    second = (first + jax.random.randint(keys[4], (PAIRS,), 1, RESPONSES)) % RESPONSES
    margin = reward[prompt, first] - reward[prompt, second]
    draw, turn = jax.random.uniform(keys[5], (2, PAIRS))
    wins = margin > 0 if labels == "certain" else draw < jax.nn.sigmoid(margin)
    wins = wins ^ (turn < FLIPPED) if labels == "flipped" else wins
    chosen, rejected = jnp.where(wins, first, second), jnp.where(wins, second, first)

    options = {**METHODS[method].loss, "beta": BETA}
    if "label_smoothing" in options:
        options["label_smoothing"] = FLIPPED

    def pairs(table):
        policy, one = jax.nn.log_softmax(table), jnp.ones(PAIRS)
        rows = (policy[prompt, chosen], policy[prompt, rejected])
        return PairLogProbs(*rows, log_reference[prompt, chosen], log_reference[prompt, rejected], one, one, one)

    def step(carry, _):
        table, moments = carry
        gradient = jax.grad(lambda table: loss(preference_loss(pairs(table), **options)))(table)
        updates, moments = OPTIMIZER.update(gradient, moments)
        return (optax.apply_updates(table, updates), moments), None

    (table, _), _ = jax.lax.scan(step, (reference, OPTIMIZER.init(reference)), length=steps)
    policy, final = jax.nn.log_softmax(table), pairs(table)
    delta = final.chosen - final.reference_chosen - final.rejected + final.reference_rejected
    return (jnp.exp(policy) * (policy - optimum)).sum(axis=1).mean(), jnp.abs(delta).mean()


def run(setting: str, seed: int) -> dict[str, float]:
    """`log_kl`: log of KL(policy || the optimum of Bradley-Terry data) in nats, mean of prompts; `margin`: mean |Delta|
    of the pairs, nats, and `log_margin`, its log with 1e-3 added."""
    method, labels, steps = ("dpo", "clean", "0") if setting == "start" else setting.split(", ")
    kl, margin = train(method, labels, int(steps), jax.random.key(seed))
    return {"log_kl": float(jnp.log(kl)), "margin": float(margin), "log_margin": float(jnp.log(margin + 1e-3))}
