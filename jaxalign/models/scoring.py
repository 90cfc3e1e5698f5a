"""Log-probs of completions under a decoder: the one road from token ids to what losses take."""

import jax

from jaxalign.losses.log_probs import TokenLogProbs, token_log_probs
from jaxalign.models.decoder import Decoder
from jaxalign.models.rows import completion_rows, gather_predictors, separate
from jaxalign.models.value_head import head_values


def predicting_states(decoder: Decoder, params, prompts, prompt_lengths, completions, mask, *, share_prompt=True):
    """Hidden states [rows, ..., T, D] that predict the completion tokens, [P, K, T] of them in all."""
    arguments = (prompts, prompt_lengths, completions, mask)
    rows = completion_rows(*(arguments if share_prompt else separate(*arguments)))
    hidden = decoder.hidden(params, rows.tokens, rows.positions, rows.segments, rows.parents)
    return gather_predictors(hidden, rows.predictors)


def log_probs_of_states(decoder: Decoder, params, hidden, completions, *, temperature=1.0) -> TokenLogProbs:
    """What `completion_log_probs` gives, from `predicting_states`."""
    scored = token_log_probs(
        hidden,
        decoder.head(params),
        completions.reshape(hidden.shape[:-1]),
        temperature=temperature,
        compute_dtype=decoder.compute_dtype,
    )
    return jax.tree.map(lambda a: a.reshape(completions.shape), scored)


def completion_log_probs(
    decoder: Decoder, params, prompts, prompt_lengths, completions, mask, *, temperature=1.0, share_prompt=True
) -> TokenLogProbs:
    """Natural-log probabilities (nats) and entropies [P, K, T] of completion tokens, float32.

    Args:
      prompts: [P, S] right-padded ids of `prompt_lengths` [P] tokens.
      completions, mask: [P, K, T]; what stands where the mask is 0 is meaningless and must be masked by the caller.
      temperature: divides the logits; the temperature that the completions were sampled at.
      share_prompt: one row per prompt with all K completions behind it, else one row per completion. Equal values;
        sharing costs less while K T is short against what attention over the longer row costs.
    """
    hidden = predicting_states(decoder, params, prompts, prompt_lengths, completions, mask, share_prompt=share_prompt)
    return log_probs_of_states(decoder, params, hidden, completions, temperature=temperature)


def completion_values(decoder: Decoder, params, prompts, prompt_lengths, completions, mask, share_prompt=True):
    """[P, K, T] values by the head among the parameters (`models.value_head`), before each completion token."""
    hidden = predicting_states(decoder, params, prompts, prompt_lengths, completions, mask, share_prompt=share_prompt)
    return head_values(params, hidden, detached=True).reshape(completions.shape)


def frozen_copy(decoder: Decoder, params, *, exact: bool = False):
    """A copy for scoring only, a reference policy: kernels and tables in the compute dtype (half the bytes).

    `exact` keeps the embedding table as it is. Products read kernels in the compute dtype anyway, so that log-probs are
    then those of `params` bit for bit, where a rounded table moves them by some hundredths of a nat.
    """
    small = ("kernel",) if exact else ("kernel", "embedding")

    def copy(path, leaf):
        cast = path[-1].key in small
        return leaf.astype(decoder.compute_dtype) if cast else leaf + 0  # + 0: never an alias of a donated buffer

    return jax.jit(lambda tree: jax.tree_util.tree_map_with_path(copy, tree))(params)
