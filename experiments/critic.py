"""PPO's value function in a run: values of sampled completions, and what advantages and returns come of them."""

from typing import NamedTuple

import jax
import numpy as np

from experiments.setup import Model
from jaxalign.models.scoring import completion_values
from jaxalign.placement import under_mesh
from jaxalign.rewards.gae import gae, token_rewards
from jaxalign.rewards.statistics import whiten
from jaxalign.training.mesh import gather, spread


class Targets(NamedTuple):
    """[P, G, T] each, on the host."""

    advantages: np.ndarray  # whitened over the tokens of the batch
    values: np.ndarray  # at the time of sampling
    returns: np.ndarray


class Critic:
    """Turns the rewards of completions into advantages of tokens (`rl.advantages`: discount, trace_decay)."""

    def __init__(self, config, model: Model):
        self._config, self._mesh = config, model.mesh
        share = config.rl.share_prompt
        options = {name: config.rl.advantages[name] for name in ("discount", "trace_decay")}

        def targets(rewards, log_probs, reference, mask, values, *, coefficient):
            per_token = token_rewards(rewards, log_probs, reference, mask, coefficient)
            advantages, returns = gae(per_token, values, mask, **options)
            return whiten(advantages, mask), returns

        self._targets = jax.jit(targets, static_argnames="coefficient")
        self._values = jax.jit(lambda params, *arrays: completion_values(model.decoder, params, *arrays, share))

    def __call__(self, params, scored, rewards, log_probs, reference_log_probs) -> Targets:
        """
        Args:
          scored: prompts, prompt_lengths, completions and mask of P groups, as host arrays.
          rewards: [P, G] of whole completions; NaN = not scorable, and then the completion is masked by the caller.
          log_probs, reference_log_probs: [P, G, T] of the tokens; the KL between them (k1, times
            config.reward.kl_coefficient) is taken off token by token. No reference: no such term.
        """
        with under_mesh(self._mesh):
            values = gather(self._values(params, *spread(scored, self._mesh, fill=True)))[: len(scored[0])]
        coefficient = self._config.reward.kl_coefficient if reference_log_probs is not None else 0.0
        reference = log_probs if reference_log_probs is None else reference_log_probs
        flat = [np.asarray(x).reshape(-1, x.shape[-1]) for x in (log_probs, reference, scored[3], values)]
        advantages, returns = self._targets(np.asarray(rewards).reshape(-1), *flat, coefficient=coefficient)
        return Targets(*(np.asarray(x).reshape(values.shape) for x in (advantages, values, returns)))
