"""What recipes of language models with checkable answers start from: reinforcement learning and fine-tuning."""

import ml_collections

from configs.defaults.common import base, options_of
from jaxalign.controllers import prompt_gdro, rollout_gdro
from jaxalign.controllers.policy_drift import retention
from jaxalign.controllers.prompt_sampling import sampling_probabilities
from jaxalign.losses.chain_alignment import aft_loss, pro_loss, rrhf_loss
from jaxalign.losses.dypo import dypo_loss
from jaxalign.losses.grao import grao_loss
from jaxalign.losses.policy_gradient import policy_loss
from jaxalign.losses.ppo import ppo_loss
from jaxalign.losses.supervised import supervised_loss
from jaxalign.methods import get_method
from jaxalign.rewards.advantages import ADVANTAGES
from jaxalign.rewards.gae import gae
from jaxalign.rewards.inference_aware import transform


def questions() -> ml_collections.ConfigDict:
    """Where prompts come from. A source is what `jaxalign.data.sources.load_source` reads."""
    config = ml_collections.ConfigDict()
    # "arithmetic?split=train", "reasoning_gym:chain_sum?split=train", "tfds:name?split=train", a .jsonl or .parquet
    # file (or a pattern of them), or a folder of `datasets.save_to_disk`
    config.source = "arithmetic?split=train"
    config.held_out = "arithmetic?split=held_out"  # the same forms, never trained on; "": no evaluation
    config.prompt_field = "prompt"
    config.answer_fields = ()  # answers of which one joins each group, where an objective learns from given ones
    config.chat = True  # the prompt as a user message in the model's chat template; False: as it stands
    config.system_prompt = ""  # "": what the template itself does without one
    config.template_options = ml_collections.ConfigDict({"enable_thinking": False})  # variables of the chat template
    config.max_prompt_tokens = 64  # a longer prompt is an error
    return config


def reward() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.names = ("last_integer",)  # built-in verifiers, or "module:function" of your own; the first is the verifier
    config.weights = (1.0,)
    config.options = ml_collections.ConfigDict()  # by reward: --config.reward.options.last_number="{'tolerance': 0.1}"
    config.time_limit = 5.0  # seconds for one call of a function of your own
    return config


def evaluation(*budgets: int) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.max_questions = 256
    config.max_new_tokens = budgets  # one decode of the largest gives the solve rate at each
    config.samples = 0  # completions of each question at temperature 1, of the largest budget, for pass@k; 0: none
    config.pass_at = (1, 4)  # the numbers k, at most `samples`
    config.slots = 64  # rows decoded at once; 0: all
    return config


def packing() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.completion_field = "answer"
    config.row_length = 128  # tokens of a packed row
    config.rows_per_step = 8
    config.too_long = "error"  # error | drop (counted)
    return config


LOSSES = {
    function.__name__: function
    for function in (policy_loss, grao_loss, dypo_loss, aft_loss, rrhf_loss, pro_loss, ppo_loss)
}


def prompts() -> ml_collections.ConfigDict:
    """What is remembered of each prompt of the data set, and what follows from it; all off."""
    config = ml_collections.ConfigDict()
    config.outcome = "mean"  # mean | any (one right completion is enough) of a group's first reward
    config.window = 0  # outcomes of each prompt that its difficulty is read from; 0: all
    config.trials = 0  # completions of every prompt before training, for a baseline that knows something
    config.baseline = False  # rewards are measured against the success rate of their prompt; needs group_size = 1
    config.forgetting = options_of(retention, {})  # of the success rate, by how far the policy has moved
    config.sampling = options_of(sampling_probabilities, {})  # uncertain prompts come more often
    config.sampling.enabled = False
    config.edges = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # success rates between the difficulty classes
    config.hysteresis = 0.03  # beyond an edge before a prompt changes its class
    config.weighting = options_of(prompt_gdro.update, {})  # hard classes weigh more
    config.weighting.enabled = False
    config.weighting.signal = "error"  # error (1 - mean outcome) | surrogate (minus the mean advantage)
    config.allocation = options_of(rollout_gdro.arm_log_probs, {})  # completions are dealt out by class
    config.allocation.enabled = False
    config.allocation.least = 2  # completions of a prompt
    config.allocation.most = 12  # their mean is rollout.group_size, exactly
    config.allocation.utility = "variance_proxy"  # variance_proxy | minus_loss | plus_loss
    config.allocation.price_step = 0.05
    return config


def rl(name: str, method: str = "grpo", *, steps: int) -> ml_collections.ConfigDict:
    """Group-relative policy-gradient training on questions with a checkable answer, with the settings of a method."""
    config = base(name, "rl", steps)
    config.data = questions()

    config.rollout = ml_collections.ConfigDict()
    config.rollout.prompts_per_step = 8
    config.rollout.group_size = 8  # completions per prompt, G
    config.rollout.max_new_tokens = 12
    config.rollout.temperature = 1.0
    config.rollout.top_k = 0  # 0: off
    config.rollout.top_p = 1.0
    config.rollout.min_p = 0.0
    config.rollout.stop_strings = ()
    # Batches of prompts drawn at most in a step until groups whose rewards differ fill it (dynamic sampling); others
    # are left out of the loss. 1: every group is kept.
    config.rollout.max_draws = 1
    config.rollout.slots = 0  # rows decoded at once, refilled as they finish; 0: all

    row = get_method(method)
    config.reward = reward()
    config.reward.combine = "sum"  # sum | normalise_each: normalise every reward within its group first
    config.reward.kl_coefficient = float(row.kl_in_reward)  # of the summed k1 to the reference, taken off the reward

    config.reward.overlong_buffer = 0  # tokens before max_new_tokens over which a penalty grows to -1; 0: none
    # Rewards as quantiles of those of this many completions of each prompt by the first weights, transformed for what
    # decodes the policy; 0: off.
    config.reward.reference_completions = 0
    config.reward.transform = options_of(transform, {})

    config.rl = ml_collections.ConfigDict()
    config.rl.objective = row.pieces[0].rpartition(":")[2]  # the loss of which config.rl.loss are the options
    config.rl.epochs = 1  # passes over each batch of completions
    config.rl.batches_per_epoch = 1  # optimizer updates per pass
    config.rl.old_log_probs = "rollout"  # rollout | scored: of what sampled, with more than one update per batch
    config.rl.report_kl_prompts = 4  # prompts a step whose completions are also scored by the first weights; 0: none
    # Leaves groups of equal rewards out of the update wherever that changes nothing (no KL or entropy term in the loss,
    # one batch per epoch): the same gradient for less work.
    config.rl.drop_silent_groups = True
    config.rl.share_prompt = True  # completions of a group share one row behind their prompt (equal, and cheaper)
    config.rl.mask_truncated = False  # completions cut off by max_new_tokens count nothing in the loss
    config.rl.advantages = ml_collections.ConfigDict({"kind": row.advantages["kind"]})
    options = {key: value for key, value in row.advantages.items() if key != "kind"}
    config.rl.advantages.update(options_of({**ADVANTAGES, "gae": gae}[row.advantages["kind"]], options))
    config.rl.detach_values = True  # the value function's error does not move the policy (objective "ppo_loss")
    config.rl.leave_out = row.leave_out  # completions of each group, those of smallest |advantage|, not trained on
    config.rl.loss = options_of(LOSSES[config.rl.objective], row.loss)
    config.prompts = prompts()

    config.evaluation = evaluation(12, 64)

    config.warm_start = packing()  # supervised steps before RL, for untrained weights
    config.warm_start.steps = 0
    config.warm_start.learning_rate = 1e-3
    return config


def sft(name: str, *, steps: int) -> ml_collections.ConfigDict:
    """Supervised fine-tuning on (prompt, completion) pairs; the loss counts completion tokens only."""
    config = base(name, "sft", steps)
    config.data = questions()
    config.packing = packing()
    config.reward = reward()  # scores the held-out completions
    config.loss = options_of(supervised_loss, get_method("sft").loss)
    config.evaluation = evaluation(12)
    return config
