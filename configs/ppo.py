"""PPO with a value function (arXiv 1707.06347, as used on language models by arXiv 2203.02155) on short arithmetic.

  python -m experiments.run --config=configs/ppo.py
  python -m experiments.run --config=configs/ppo.py:tiny   0.8 M parameters from nothing

Model, task and what else may follow the colon are those of configs/grpo_qwen.py.

The value function is a linear map of the policy's last hidden states, beginning at 0; its error does not move the
policy (--config.rl.detach_values=False lets it). Advantages are GAE with discount 1 and lambda 0.95 on rewards of
tokens: the verifier's at the last one, minus 0.05 times log pi - log reference at each; they are whitened over the
batch. One pass of 2 updates over each batch (4 passes in InstructGPT). Against the papers: no value model of its own
size, no reward model, no mixing in of pretraining gradients; 16 prompts of 8 completions, although PPO compares no
completions of a prompt.
"""

from configs import defaults, grpo_qwen


def get_config(argument=None):
    words = defaults.arguments(argument, grpo_qwen.WORDS)
    config = grpo_qwen.recipe("ppo", "ppo", words)
    config.rl.batches_per_epoch = 2
    return config
