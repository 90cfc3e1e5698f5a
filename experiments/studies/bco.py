"""BCO on a log-linear policy: what the reward shift and the matching of prompt distributions are good for.

40 prompts with 8 responses each, 6 random features, reward = features . direction, a random reference policy. 6,000
sampled completions get a thumb up with probability sigmoid(reward + shift + mismatch (2 g - 1)), g a visible group of
prompts. Arms are `<loss>` of the first shift and `<loss>, mismatch`:

  bce         no shift
  bco         the shift as a moving average
  bco_udm     and undesirable rows weighed by the density ratio of the prompts, from the logistic fit to their groups
  kto         its anchor is the KL estimated from mismatched completions
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign import objective
from jaxalign.controllers import reward_shift
from jaxalign.diagnostics.classification_bound import bound_report
from jaxalign.losses.preference_unpaired import UnpairedLogProbs, unpaired_loss
from jaxalign.rewards.density_ratio import density_ratio, fit_density_ratio

PROMPTS, RESPONSES, FEATURES, COMPLETIONS, BATCH = 40, 8, 6, 6000, 512
BETA, LEARNING_RATE, STEPS = 0.2, 0.02, 500
ARMS = ("bce", "bco", "bco_udm", "kto")
SETTINGS = (*(f"{arm}, shift" for arm in ARMS[:2]), "kto, shift", *(f"{arm}, mismatch" for arm in ARMS))


class Problem(NamedTuple):
    features: jax.Array  # [prompts, responses, features]
    direction: jax.Array  # [features]: of the reward
    reference: jax.Array  # [prompts, responses] log-probs
    group: jax.Array  # [prompts] 0 or 1
    prompt: jax.Array  # [completions], as the next two
    response: jax.Array
    label: jax.Array

    @property
    def reward(self) -> jax.Array:
        return self.features @ self.direction


def make_problem(seed: int, shift: float, mismatch: float) -> Problem:
    random = np.random.default_rng(seed)
    features = random.normal(size=(PROMPTS, RESPONSES, FEATURES))
    direction = random.normal(size=FEATURES)
    logits = random.normal(size=(PROMPTS, RESPONSES))
    reference = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    group = (np.arange(PROMPTS) % 2).astype(np.float64)
    prompt = random.integers(0, PROMPTS, COMPLETIONS)
    drawn = np.exp(reference[prompt]).cumsum(axis=1) > random.uniform(size=(COMPLETIONS, 1))
    response = drawn.argmax(axis=1)
    score = features[prompt, response] @ direction + shift + mismatch * (2 * group[prompt] - 1)
    label = random.uniform(size=COMPLETIONS) < 1 / (1 + np.exp(-score))
    floats = (jnp.asarray(x, jnp.float32) for x in (features, direction, reference, group))
    return Problem(*floats, jnp.asarray(prompt), jnp.asarray(response), jnp.asarray(label, jnp.float32))


def log_policy(theta: jax.Array, problem: Problem) -> jax.Array:
    """[prompts, responses]: the reference tilted by features . theta."""
    return jax.nn.log_softmax(problem.reference + problem.features @ theta)


def prompt_weights(problem: Problem) -> jax.Array:
    """[completions]: of undesirable ones the density ratio of their prompt's group, of the others 1."""
    embeddings = jax.nn.one_hot(problem.group.astype(int), 2)[problem.prompt]
    good = np.asarray(problem.label) > 0
    fit = fit_density_ratio(embeddings[good], embeddings[~good])
    return jnp.where(good, 1.0, density_ratio(fit, embeddings))


def run(setting: str, seed: int, steps: int = STEPS) -> dict[str, float]:
    """What was learned.

    log_gain: log of the mean reward over the reference's. cosine: with the reward's direction. log_error_term: log of
    the bound's error term, mean over the best and the worst response of each prompt, at the last shift. anchor: mean of
    KTO's z0 over the last 50 steps, nats; 0 in the other arms.
    """
    arm, _, kind = setting.partition(", ")
    problem = make_problem(seed, 2.0 if kind == "shift" else 0.0, 2.0 if kind == "mismatch" else 0.0)
    weights = prompt_weights(problem) if arm == "bco_udm" else jnp.ones(COMPLETIONS)
    mode = "ema" if arm.startswith("bco") else "none"
    optimizer = optax.adam(LEARNING_RATE)
    chosen = jax.random.randint(jax.random.key(seed), (steps, BATCH), 0, COMPLETIONS)

    def step(carry, rows):
        theta, opt_state, tracked = carry
        prompt, response, label = problem.prompt[rows], problem.response[rows], problem.label[rows]
        other = jnp.roll(response, 1)  # another prompt's response, by its number
        ones = jnp.ones(BATCH)

        def loss(theta):
            policy = log_policy(theta, problem)
            sums, references = policy[prompt, response], problem.reference[prompt, response]
            # both classes count the same (BCO's paper); KTO has one mean over all rows
            reduction = "mean" if arm == "kto" else "class-balanced"
            state, shift = reward_shift.update(tracked, BETA * (sums - references), label, ones, mode=mode)
            table = UnpairedLogProbs(
                sums, references, policy[prompt, other], problem.reference[prompt, other], label, ones, ones
            )
            found = unpaired_loss(
                table,
                loss="kto" if arm == "kto" else "bco",
                beta=BETA,
                reward_shift=shift,
                reduction=reduction,
                weights=weights[rows],
            )
            kl = objective.metric_means(found.metrics).get("kl", jnp.zeros(()))
            return objective.loss(found), (state, kl)

        gradient, (tracked, kl) = jax.grad(loss, has_aux=True)(theta)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(theta, updates), opt_state, tracked), kl

    start = jnp.zeros(FEATURES)
    (theta, _, tracked), kls = jax.jit(lambda c: jax.lax.scan(step, c, chosen))(
        (start, optimizer.init(start), reward_shift.init())
    )
    policy, reward = log_policy(theta, problem), problem.reward
    implied = BETA * (policy - problem.reference)
    best, worst = (
        jnp.take_along_axis(implied, pick(reward, axis=1)[:, None], axis=1)[:, 0] for pick in (jnp.argmax, jnp.argmin)
    )
    gain = ((jnp.exp(policy) - jnp.exp(problem.reference)) * reward).sum(axis=1).mean()
    cosine = theta @ problem.direction / (jnp.linalg.norm(theta) * jnp.linalg.norm(problem.direction))
    error = bound_report(best, worst, tracked.shift)["error_term"].mean()
    return {
        "log_gain": float(jnp.log(gain)),
        "cosine": float(cosine),
        "log_error_term": float(jnp.log(error)),
        "anchor": float(kls[-50:].mean()),
    }
