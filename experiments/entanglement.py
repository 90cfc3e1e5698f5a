"""The gradients of pairs while a preference experiment trains: `config.diagnostics` (see jaxalign.diagnostics).

A report is about the same pairs each time, the first ones of the training data, and about what is trained: all weights,
or the leaves of an adapter. Sensitivities are those of the run's own loss.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from experiments.pairs import TRACKED, Collate, Measure, PairBatch, Sums, make_score
from jaxalign.data.preferences import Preference
from jaxalign.diagnostics.entanglement import entanglement, pair_and_batch_products, pair_metrics
from jaxalign.diagnostics.token_gradients import token_cosines, token_products
from jaxalign.losses.aggregation import masked
from jaxalign.models.lora import attach
from jaxalign.models.scoring import completion_log_probs
from jaxalign.objective import metric_means
from jaxalign.placement import under_mesh
from jaxalign.training.mesh import gather, replicated
from jaxalign.training.state import TrainState


def make_report(score, measure: Measure, attached):
    """report(params, base, reference's weights, state of the loss, PairBatch) -> means by name.

    Reference and state are None where the loss has none. attached: (params, base) -> weights.
    """

    def report(params, base, reference, state, batch: PairBatch):
        def one(weights):
            return jax.lax.map(
                lambda row: jax.tree.map(lambda leaf: leaf[0], score(weights, jax.tree.map(lambda x: x[None], row))),
                batch,
            )

        def log_probs(params, rows):
            return score(attached(params, base), rows).log_probs

        sums = one(attached(params, base))
        references = None if reference is None else one(reference).log_probs
        mask = jnp.all(sums.lengths > 0, axis=-1).astype(jnp.float32)

        def total(log_probs):
            found = Sums(log_probs, sums.lengths)
            return measure(found, references, batch.side, mask, state=state, annotator=batch.annotator).total

        sensitivities = jax.grad(total)(sums.log_probs) * jnp.array([-1.0, 1.0])
        pairs, whole = pair_and_batch_products(log_probs, params, batch, sensitivities / jnp.maximum(mask.sum(), 1))
        metrics = pair_metrics(pairs, entanglement(pairs, sensitivities[:, 0], sensitivities[:, 1]), mask)
        metrics |= {f"batch_{name}": (value, 1.0) for name, value in entanglement(whole)._asdict().items()}
        for side, name in enumerate(("chosen", "rejected")):
            metrics[f"sensitivity_{name}"] = masked(sensitivities[:, side], mask).sum(), mask.sum()
            metrics[f"log_prob_{name}"] = masked(sums.log_probs[:, side], mask).sum(), mask.sum()
        return metric_means(jax.tree.map(jnp.asarray, metrics))

    return report


class EntanglementMonitor:
    """Reports on some pairs of a run, and heat maps of their tokens."""

    def __init__(self, config, model, policy, measure: Measure, collate: Collate, rows: Sequence[Preference]):
        self._options, self._steps = config.diagnostics, config.train.steps
        self._model, self._policy = model, policy
        self._rows = list(rows[: self._options.pairs])
        batch = collate(self._rows)
        self._batch = jax.device_put(batch, replicated(model.mesh))

        def attached(params, base):
            return params if policy.adapter is None else attach(base, params, policy.adapter)

        width = min(self._options.heat_map_tokens, batch.mask.shape[-1])

        def cosines(params, base, row: PairBatch):
            def log_probs(params):
                scored = completion_log_probs(model.decoder, attached(params, base), *row[:4])
                return masked(scored.log_probs, row.mask)[0, :, :width].reshape(-1)

            return token_cosines(token_products(log_probs, params))[:width, width:]

        self._report = jax.jit(make_report(make_score(model.decoder, config.preference), measure, attached))
        self._cosines = jax.jit(cosines)

    def due(self, step: int) -> bool:
        """Whether there is a report before step number `step`, counted from 0."""
        return step % self._options.every == 0 or step == self._steps - 1

    def metrics(self, state: TrainState, reference) -> dict[str, float]:
        with under_mesh(self._model.mesh):
            found = gather(
                self._report(state.params, self._policy.base, reference, state.extra.get(TRACKED), self._batch)
            )
        return {f"entanglement/{name}": float(value) for name, value in found.items()}

    def heat_maps(self, params) -> list[dict]:
        """For `report.write_heat_maps`: cosines between the tokens of both completions of the first pairs."""
        maps = []
        for number, row in enumerate(self._rows[: self._options.heat_maps]):
            alone = jax.tree.map(lambda leaf, number=number: leaf[number : number + 1], self._batch)
            with under_mesh(self._model.mesh):
                values = gather(self._cosines(params, self._policy.base, alone))
            chosen, rejected = (
                [self._model.tokenizer.decode([token]) for token in ids[: self._options.heat_map_tokens]]
                for ids in row.completion_ids
            )
            maps.append(
                {
                    "title": f"pair {number + 1}",
                    "rows": chosen,
                    "columns": rejected,
                    "values": values[: len(chosen), : len(rejected)].tolist(),
                }
            )
        return maps
