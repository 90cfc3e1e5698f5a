"""AFT (arXiv 2309.02144) on made chains of steps: what pushing wrong chains down does to right ones.

A question is five digits x; its chain writes out h_{i+1} = (3 h_i + 7 x_i + 2) mod 10 from h_0 = 0, and its answer is
the last step. A transformer of 2 layers, width 48, is fine-tuned on the chains of 400 questions until it answers half
of 500 others. Every question then gets 4 samples of that model at temperature 1 beside the given chain, equal ones
counted once, and every setting goes on from there for 150 steps with the same batches, measured on 500 more questions:

  start                      not at all
  vft                        the likelihood of the given chains
  rft                        that of all distinct right chains
  none, detached, boundary   vft and AFT's contrast with this constraint
  rrhf, rrhf detached        RRHF, and with AFT's constraint
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign import objective
from jaxalign.decoding.sampler import Sampler, SamplingConfig
from jaxalign.losses.chain_alignment import aft_loss, chain_scores, distinct_chains, rrhf_loss
from jaxalign.models.config import DecoderConfig
from jaxalign.models.decoder import Decoder
from jaxalign.models.scoring import completion_log_probs

DIGITS, TRAINED, TESTED, SAMPLES = 5, 400, 500, 4
STEPS, BATCH, RATE = 150, 24, 1e-3
FIRST_STEPS, LOOK_EVERY, ENOUGH, FIRST_RATE = 600, 20, 0.5, 1e-2  # of the first stage, at most; accuracy that ends it
SEPARATOR = 10
CONTRASTS = ("none", "detached", "boundary")
RRHF = {"rrhf": False, "rrhf detached": True}  # whether the worse chain is a constant
SETTINGS = ("start", "vft", "rft", *CONTRASTS, *RRHF)
BETA = 0.15
MODEL = Decoder(
    DecoderConfig(
        vocab_size=SEPARATOR + 1,
        num_layers=2,
        embed_dim=48,
        mlp_dim=128,
        num_heads=4,
        num_kv_heads=4,
        head_dim=12,
        max_positions=2 * DIGITS + 1,
    ),
    compute_dtype="float32",
    remat="none",
)


class Groups(NamedTuple):
    prompts: jax.Array  # [Q, DIGITS + 1]
    chains: jax.Array  # [Q, N, DIGITS], the given one first
    right: jax.Array  # [Q, N] bool, by the answer alone
    valid: jax.Array  # [Q, N] bool; False for a copy of an earlier chain


def questions(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(prompts [count, DIGITS + 1], chains [count, DIGITS])."""
    x = random.integers(0, 10, (count, DIGITS))
    steps, h = [], np.zeros(count, int)
    for digit in x.T:
        h = (3 * h + 7 * digit + 2) % 10
        steps.append(h)
    return np.c_[x, np.full(count, SEPARATOR)].astype(np.int32), np.stack(steps, 1).astype(np.int32)


@jax.jit
def scores(params, prompts, chains) -> jax.Array:
    """Scores [Q, N] of chains [Q, N, DIGITS]."""
    lengths, mask = jnp.full(len(prompts), DIGITS + 1), jnp.ones(chains.shape)
    return chain_scores(completion_log_probs(MODEL, params, prompts, lengths, chains, mask).log_probs, mask)[0]


@functools.cache
def sampler(temperature: float) -> Sampler:
    return Sampler(MODEL, SamplingConfig(DIGITS, temperature=temperature))


def sampled(params, prompts, temperature: float, samples: int, seed: int) -> np.ndarray:
    """Chains [Q, samples, DIGITS]."""
    lengths = np.full(len(prompts), DIGITS + 1, np.int32)
    found = sampler(temperature).sample(params, prompts, lengths, jax.random.key(seed), samples_per_prompt=samples)
    return np.asarray(found.ids).reshape(len(prompts), samples, DIGITS)


def accuracy(params, prompts, given) -> float:
    """Share of greedy answers that are right."""
    return float((sampled(params, prompts, 0.0, 1, seed=0)[:, 0, -1] == given[:, -1]).mean())


def groups_of(params, prompts, given, seed: int) -> Groups:
    """The given chains with samples of the model beside them."""
    chains = np.concatenate([given[:, None], sampled(params, prompts, 1.0, SAMPLES, seed)], axis=1)
    right = chains[:, :, -1] == given[:, None, -1]
    return Groups(*map(jnp.asarray, (prompts, chains, right)), distinct_chains(chains, np.ones(chains.shape)))


def loss(setting: str, params, rows: Groups) -> jax.Array:
    found = scores(params, rows.prompts, rows.chains)
    if setting in RRHF:
        return objective.loss(rrhf_loss(found, rows.right, rows.valid, detach_worse=RRHF[setting]))
    contrast = setting in CONTRASTS
    given = jnp.broadcast_to(jnp.arange(found.shape[1]) == 0, found.shape)
    return objective.loss(
        aft_loss(
            found,
            rows.right if contrast else jnp.zeros_like(rows.right),  # without a pair the likelihood is left
            rows.valid,
            imitated=rows.right if setting == "rft" else given,
            constraint=setting if contrast else "none",
            beta=BETA,
        )
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def fitted(setting: str, rate: float, params, state, groups: Groups, batches):
    """(parameters, optimizer state) after a step of Adam on each of the batches [steps, BATCH] of rows of `groups`."""
    optimizer = optax.adam(rate)

    def step(carry, batch):
        params, state = carry
        gradient = jax.grad(functools.partial(loss, setting))(params, jax.tree.map(lambda x: x[batch], groups))
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), batches)[0]


def batches_of(seed: int, steps: int) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (steps, BATCH), 0, TRAINED)


def measured(params, groups: Groups) -> dict[str, float]:
    """Greedy answers that are right, and how the chains of the groups are scored."""
    found = scores(params, groups.prompts, groups.chains)
    means = objective.metric_means(aft_loss(found, groups.right, groups.valid).metrics)
    names = ("score_better", "score_worse", "assessment_accuracy")
    right = accuracy(params, np.asarray(groups.prompts), np.asarray(groups.chains[:, 0]))
    return {"accuracy": right, **{name: float(means[name]) for name in names}}


@functools.lru_cache(maxsize=1)
def start(seed: int, first_steps: int):
    """(the model after the first stage, groups to train on, held-out groups)."""
    random = np.random.default_rng(seed)
    (prompts, given), looked_at, (test_prompts, test_given) = (questions(random, n) for n in (TRAINED, TESTED, TESTED))
    alone = np.ones((TRAINED, 1), bool)
    groups = Groups(*map(jnp.asarray, (prompts, given[:, None], alone, alone)))
    params = jax.jit(MODEL.init)(jax.random.key(seed))
    state = optax.adam(FIRST_RATE).init(params)
    for batches in batches_of(seed, first_steps).reshape(-1, LOOK_EVERY, BATCH):
        params, state = fitted("vft", FIRST_RATE, params, state, groups, batches)
        if accuracy(params, *looked_at) >= ENOUGH:
            break
    return params, groups_of(params, prompts, given, seed), groups_of(params, test_prompts, test_given, seed + 1)


def run(setting: str, seed: int, steps: int = STEPS, first_steps: int = FIRST_STEPS) -> dict[str, float]:
    """On 500 held-out questions: greedy answers that are right (accuracy); of the given chain and of what the model of
    the first stage sampled beside it the mean scores of right and wrong ones (score_better, score_worse; nats per
    token, questions that have both) and the share of pairs whose right one has the higher score
    (assessment_accuracy)."""
    params, trained, tested = start(seed, first_steps)
    if setting != "start":
        state = optax.adam(RATE).init(params)
        params, _ = fitted(setting, RATE, params, state, trained, batches_of(seed + 1000, steps))
    return measured(params, tested)
