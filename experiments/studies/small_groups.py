"""MC-GRPO (arXiv 2601.22582) against GRPO in small groups, on a table policy with noisy rewards.

32 prompts with 10 arms each, whose mean rewards are uniform in [0, 1]; Gaussian noise of 0.5. Adam with a step of 0.1,
gradients clipped to norm 1, 300 steps. Settings are "<baseline>, <sampled>" or "<baseline>, <sampled> - 1", where the
completion of the smallest |advantage| is left out of the update. "grpo" and "median mad" divide by a spread, "mean" and
"median" do not.

Beside the mean reward of the final policy: how often the advantage of a completion that is trained on has the wrong
sign, for rewards that have nothing to do with the policy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.rewards.advantages import advantages
from jaxalign.rewards.groups import kept_completions
from jaxalign.rewards.median import sign_flip_rate

BASELINES = {
    "grpo": ("group", "group"),
    "mean": ("group", "none"),
    "median": ("median", "none"),
    "median mad": ("median", "mad"),
}
SETTINGS = tuple(
    f"{name}, {size}" for size in ("2", "3 - 1", "4", "5 - 1", "8", "9 - 1") for name in BASELINES
)  # fmt: skip
PROMPTS, ARMS, STEPS, GROUPS = 32, 10, 300, 5_000
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))


def parsed(setting: str) -> tuple[str, str, int, int]:
    """(kind and scale of the advantages, completions sampled, completions left out)."""
    baseline, _, size = setting.partition(", ")
    sampled, _, left_out = size.partition(" - ")
    return *BASELINES[baseline], int(sampled), int(left_out or 0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def train(kind: str, scale: str, group_size: int, leave_out: int, key: jax.Array) -> jax.Array:
    """Mean reward of the final policy, over prompts."""
    means = jax.random.uniform(jax.random.fold_in(key, 0), (PROMPTS, ARMS))

    def step(carry, key):
        table, moments = carry
        choose, noise = jax.random.split(key)
        arms = jax.random.categorical(choose, table[:, None], shape=(PROMPTS, group_size))
        rewards = jnp.take_along_axis(means, arms, axis=1) + 0.5 * jax.random.normal(noise, arms.shape)
        weights = advantages(kind, rewards.reshape(-1), group_size, scale=scale)
        indices, kept = kept_completions(weights, rewards.reshape(-1), group_size, leave_out)
        chosen = jnp.take_along_axis(arms, indices, axis=1)
        weights = jnp.take_along_axis(weights.reshape(arms.shape), indices, axis=1) * kept

        def loss(table):
            log_probs = jnp.take_along_axis(jax.nn.log_softmax(table), chosen, axis=1)
            return -(weights * log_probs).sum() / kept.sum()

        updates, moments = OPTIMIZER.update(jax.grad(loss)(table), moments)
        return (optax.apply_updates(table, updates), moments), None

    table = jnp.zeros((PROMPTS, ARMS))
    keys = jax.random.split(jax.random.fold_in(key, 1), STEPS)
    (table, _), _ = jax.lax.scan(step, (table, OPTIMIZER.init(table)), keys)
    return (jax.nn.softmax(table) * means).sum(axis=1).mean()


@functools.partial(jax.jit, static_argnums=0)
def flips(setting: str, rewards: jax.Array, baseline: float) -> jax.Array:
    """Share of wrong signs against `baseline` among the completions kept of `rewards` [N]."""
    kind, scale, group_size, leave_out = parsed(setting)
    weights = advantages(kind, rewards, group_size, scale=scale)
    indices, kept = kept_completions(weights, rewards, group_size, leave_out)
    taken = (jnp.take_along_axis(x.reshape(-1, group_size), indices, axis=1) for x in (weights, rewards))
    return sign_flip_rate(*taken, baseline, kept)


def run(setting: str, seed: int) -> dict[str, float]:
    """`reward`; `flips` of normal rewards and `flips_heavy` of Student's t with 2 degrees of freedom, both against the
    median of the law; `flips_skewed` against its mean, where a tenth of normal rewards has 3 added."""
    random = np.random.default_rng(seed)
    size = parsed(setting)[2]
    normal, again = random.normal(size=(2, GROUPS * size))
    heavy = random.standard_t(2, size=GROUPS * size)
    skewed = again + 3 * (random.random(GROUPS * size) < 0.1)
    return {
        "reward": float(train(*parsed(setting), jax.random.key(seed))),
        "flips": float(flips(setting, normal, 0.0)),
        "flips_heavy": float(flips(setting, heavy, 0.0)),
        "flips_skewed": float(flips(setting, skewed, 0.3)),
    }
