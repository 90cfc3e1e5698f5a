"""Weights of undesirable rows that make their prompts look like those of the desirable ones (BCO, first version).

Prompts are told apart by the mean of the reference's final hidden states. The reference stays as it is, so that a
resumed run finds the same weights again.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.questions import PROMPT_BUCKET, padded
from experiments.setup import Model
from jaxalign.data.preferences import Preference
from jaxalign.decoding.sampler import bucket_length
from jaxalign.rewards.density_ratio import density_ratio, fit_density_ratio
from jaxalign.training.mesh import gather, spread


def prompt_embeddings(model: Model, params, prompts: list[tuple[int, ...]], size: int) -> np.ndarray:
    """[N, D] means of the final hidden states of prompts, `size` at a time, float32."""
    width = bucket_length([len(ids) for ids in prompts], PROMPT_BUCKET)

    @jax.jit
    def embed(params, tokens, lengths):
        positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
        counts = positions < lengths[:, None]
        hidden = model.decoder.hidden(params, tokens, positions, counts.astype(jnp.int32))
        kept = jnp.where(counts[..., None], hidden.astype(jnp.float32), 0)
        return kept.sum(axis=1) / lengths[:, None]

    found = []
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        filled = [*part, *[prompts[0]] * (size - len(part))]
        found.append(gather(embed(params, *spread(padded(filled, width), model.mesh))))
    return np.concatenate(found)[: len(prompts)]


def weigh_by_prompts(rows: list[Preference], model: Model, reference, preference, session) -> None:
    """Gives each undesirable row of `rows` the density ratio of its prompt as its weight; desirable ones keep 1.

    The classifier is fitted to the first `preference.density_ratio.prompts` different prompts of each class.
    """
    options = dict(preference.density_ratio)
    limit, l2, _ = options.pop("prompts"), options.pop("l2"), options.pop("enabled")
    classes = [
        list(dict.fromkeys(tuple(row.prompt_ids) for row in rows if row.label == label))[:limit]
        for label in (True, False)
    ]
    if min(map(len, classes)) < 2:
        session.print("  warning: fewer than two prompts of a class; config.preference.density_ratio changes nothing")
        return
    weighed = list(dict.fromkeys(tuple(row.prompt_ids) for row in rows if not row.label))
    prompts = list(dict.fromkeys([*classes[0], *weighed]))
    found = dict(zip(prompts, prompt_embeddings(model, reference, prompts, preference.pairs_per_step), strict=True))
    good, bad = (np.stack([found[ids] for ids in kind]) for kind in classes)
    fit = fit_density_ratio(good, bad, l2=l2)
    ratios = np.asarray(density_ratio(fit, np.stack([found[ids] for ids in weighed]), **options))
    weights = dict(zip(weighed, ratios.tolist(), strict=True))
    for number, row in enumerate(rows):
        if not row.label:
            rows[number] = row._replace(weight=weights[tuple(row.prompt_ids)])
    session.print(
        f"  undesirable rows weigh {ratios.min():.2f} to {ratios.max():.2f}: the density ratio of their prompts, from "
        f"{len(good)} desirable and {len(bad)} undesirable ones"
    )
