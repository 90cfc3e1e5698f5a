"""SPO (arXiv 2509.13232) against GRPO and REINFORCE at equal numbers of completions, on prompts that share features.

256 prompts with 16 Gaussian features and 8 actions, of which the one that a hidden linear map likes best is right. A
fixed bias, uniform in [-5, 1], on the right action of each prompt spreads their difficulty. The policy is a shared
linear map plus a table by prompt; 300 plain gradient steps on 128 completions each. Settings:

  grpo       16 prompts with 8 completions
  reinforce  128 prompts, the batch mean as baseline
  uniform    SPO whose prompts are drawn uniformly
  spo        SPO
  constant   SPO that forgets at a constant rate (0.96) in place of by drift
"""

import functools

import jax
import jax.numpy as jnp

from jaxalign.controllers import policy_drift, prompt_statistics
from jaxalign.controllers.policy_drift import drift, retention
from jaxalign.controllers.prompt_sampling import sample_prompts, sampling_probabilities
from jaxalign.controllers.prompt_statistics import success_rate
from jaxalign.rewards.advantages import batch_mean_advantages, group_advantages

SETTINGS = ("grpo", "reinforce", "uniform", "spo", "constant")
PROMPTS, FEATURES, ACTIONS, BATCH, STEPS, STEP_SIZE = 256, 16, 8, 128, 300, 0.3


def problem(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(features [prompts, FEATURES], right action [prompts], bias on it [prompts])."""
    features, hidden, bias = jax.random.split(key, 3)
    x = jax.random.normal(features, (PROMPTS, FEATURES))
    right = (x @ jax.random.normal(hidden, (FEATURES, ACTIONS))).argmax(axis=1)
    return x, right, jax.random.uniform(bias, (PROMPTS,), minval=-5, maxval=1)


@functools.partial(jax.jit, static_argnums=0)
def train(method: str, key: jax.Array) -> jax.Array:
    """[4]: final success, share of groups without signal, variance of raw advantages, squared error of the tracker."""
    x, right, bias = problem(jax.random.fold_in(key, 0))

    def log_policy(params, prompts):
        logits = x[prompts] @ params["map"] + params["table"][prompts]
        return jax.nn.log_softmax(logits + bias[prompts, None] * jax.nn.one_hot(right[prompts], ACTIONS))

    def log_probs(params, prompts, actions):
        return jnp.take_along_axis(log_policy(params, prompts), actions[:, None], axis=1)

    def success(params):
        return jnp.exp(log_probs(params, jnp.arange(PROMPTS), right))[:, 0]

    def step(carry, key):
        params, statistics, last = carry
        choose, act = jax.random.split(key)
        if method == "grpo":
            prompts = jnp.repeat(jax.random.permutation(choose, PROMPTS)[: BATCH // 8], 8)
        else:
            weighted = method in ("spo", "constant")
            probabilities = sampling_probabilities(statistics) if weighted else jnp.full(PROMPTS, 1 / PROMPTS)
            prompts = sample_prompts(choose, probabilities, BATCH)
        actions = jax.random.categorical(act, log_policy(params, prompts))
        rewards = (actions == right[prompts]).astype(jnp.float32)
        raw = rewards
        if method == "grpo":
            advantages = group_advantages(rewards, 8)
        else:
            raw = rewards if method == "reinforce" else rewards - success_rate(statistics)[prompts]
            advantages = batch_mean_advantages(raw, 1, whiten=True)

        def loss(params):
            return -(advantages[:, None] * log_probs(params, prompts, actions)).mean()

        params = jax.tree.map(lambda p, g: p - STEP_SIZE * g, params, jax.grad(loss)(params))
        if method != "grpo":
            then = last.log_probs[prompts]
            moved = drift(then, log_probs(params, prompts, last.ids[prompts, 0]), last.lengths[prompts, None] > 0)
            kept = 0.96 if method == "constant" else retention(moved)
            statistics, _ = prompt_statistics.update(statistics, prompts, rewards, kept)
            now = log_probs(params, prompts, actions)
            last, _ = policy_drift.update(last, prompts, actions[:, None], jnp.ones(BATCH, jnp.int32), now)
        silent = (advantages.reshape(-1, 8) == 0).all(axis=1).mean()
        error = ((success_rate(statistics) - success(params)) ** 2).mean()
        return (params, statistics, last), (silent, raw.var(), error)

    params = {"map": jnp.zeros((FEATURES, ACTIONS)), "table": jnp.zeros((PROMPTS, ACTIONS))}
    trials = jax.random.bernoulli(jax.random.fold_in(key, 2), success(params), (8, PROMPTS)).sum(axis=0)
    carry = (params, prompt_statistics.from_trials(trials, 8), policy_drift.init(PROMPTS, 1))
    keys = jax.random.split(jax.random.fold_in(key, 1), STEPS)
    (params, *_), history = jax.lax.scan(step, carry, keys)
    return jnp.stack([success(params).mean(), *(x.mean() for x in history)])


def run(setting: str, seed: int) -> dict[str, float]:
    """`success` at the end; means over all steps of the others: `silent`, the share of eights of the batch (the groups
    of GRPO) whose advantages are all 0, `log_variance` of the advantages before they are standardised, and `log_error`
    of the tracked success rate against the true one (squared; nothing is tracked with grpo)."""
    success, silent, variance, error = train(setting, jax.random.key(seed))
    values = {"success": success, "silent": silent, "log_variance": jnp.log(variance), "log_error": jnp.log(error)}
    return {name: float(value) for name, value in values.items()}
