"""Gradient entanglement (arXiv 2410.13828) in a transformer of two layers: pairs that differ in one token, then agree.

A prompt holds more tokens of one kind than of another, and the first token of a completion names that kind (chosen) or
the other one (rejected). Behind it both go on with the same suffix. The model has learned completions whose name is
wrong in 40 % of the rows.

Settings: the length of the suffix, none (0 tokens), short (4), long (14), or longer_rejected (14, and 6 more on the
rejected side), under DPO; "<length>_normalised" under DPO with normalised gradients. Those of one seed and suffix start
from the same weights, which have never seen the 6 tokens more.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.diagnostics.entanglement import CASES, entanglement, pair_and_batch_products, pair_gradients
from jaxalign.gradients.pair_normalisation import joined_halves, normalised_halves, normalised_pair_gradient
from jaxalign.losses.preference import PairLogProbs, preference_loss
from jaxalign.models.config import DecoderConfig
from jaxalign.models.decoder import Decoder
from jaxalign.models.scoring import completion_log_probs
from jaxalign.training.accumulation import CoupledLoss, sums

LENGTHS = {"none": 0, "short": 4, "long": 14, "longer_rejected": 14}
SETTINGS = (*LENGTHS, *(f"{name}_normalised" for name in LENGTHS))

PROMPT, TAIL = 6, 6
WIDTH = 1 + 14 + TAIL
STEP_NORM = 0.02
DECODER = Decoder(
    DecoderConfig(
        vocab_size=40, num_layers=2, embed_dim=32, mlp_dim=64, num_heads=2, num_kv_heads=2, head_dim=16,
        max_positions=32,
    ),
    compute_dtype="float32",
    remat="none",
    attention="xla",
)  # fmt: skip


class Rows(NamedTuple):
    prompts: np.ndarray  # [B, PROMPT]: ids 2 .. 9 are of one kind, 10 .. 17 of the other
    completions: np.ndarray  # [B, 2, WIDTH]: the kind (id 0 or 1), then ids 18 .. 39
    mask: np.ndarray  # [B, 2, WIDTH]


def draw(random, rows: int, length: int, tail: np.ndarray | float, wrong: float = 0.0) -> Rows:
    """Pairs of `length` shared tokens; `tail` [2]: the probability of six more, for each side."""
    kind = random.integers(0, 2, rows)
    majority = random.integers(4, PROMPT + 1, rows)
    of_kind = random.permuted(np.arange(PROMPT)[None] < majority[:, None], axis=1)
    prompts = 2 + 8 * np.where(of_kind, kind[:, None], 1 - kind[:, None]) + random.integers(0, 8, (rows, PROMPT))
    named = np.where(random.random(rows) < wrong, 1 - kind, kind)
    suffix = np.broadcast_to(18 + np.arange(WIDTH - 1) % 22, (rows, WIDTH - 1))
    suffix = np.where(random.random(suffix.shape) < 0.25, random.integers(18, 40, suffix.shape), suffix)
    completions = np.stack([np.c_[name, suffix] for name in (named, 1 - named)], axis=1)
    lengths = 1 + length + TAIL * (random.random((rows, 2)) < tail)
    return Rows(prompts, completions, (np.arange(WIDTH) < lengths[..., None]).astype(np.float32))


def log_probs(params, rows: Rows) -> jax.Array:
    lengths = jnp.full(rows.prompts.shape[:1], PROMPT)
    scored = completion_log_probs(DECODER, params, rows.prompts, lengths, rows.completions, rows.mask)
    return (scored.log_probs * rows.mask).sum(-1)


@jax.jit
def _train(params, batches: Rows):
    """Supervised steps on the first completions, by Adam."""
    optimizer = optax.adam(3e-3)

    def step(carry, rows):
        params, state = carry

        def loss(params):
            return -(log_probs(params, rows)[:, 0]).sum() / rows.mask[:, 0].sum()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]


def _moved(params, gradient):
    """One step down of norm STEP_NORM."""
    scale = STEP_NORM / (optax.tree.norm(gradient) + 1e-12)
    return jax.tree.map(lambda p, g: p - scale * g, params, gradient)


@jax.jit
def _single_steps(params, pairs: Rows):
    """Of each pair: its report, and changes [B, 2] of its log-probs by a step of d_w = d_l, and by a normalised one."""
    products, _ = pair_and_batch_products(log_probs, params, pairs, jnp.ones((len(pairs.prompts), 2)))

    def one(row):
        alone = jax.tree.map(lambda leaf: leaf[None], row)
        chosen, rejected = pair_gradients(log_probs, params, alone, jnp.ones((1, 2)))
        before = log_probs(params, alone)[0]
        plain = jax.tree.map(jnp.subtract, rejected, chosen)
        return tuple(
            log_probs(_moved(params, gradient), alone)[0] - before
            for gradient in (plain, normalised_pair_gradient(chosen, rejected))
        )

    return entanglement(products), *jax.lax.map(one, pairs)


@functools.partial(jax.jit, static_argnums=2)
def _preference_steps(params, batches: Rows, normalised: bool):
    """DPO, a step of norm STEP_NORM a batch."""

    def objective(found, batch, key, extra):
        del key, extra
        found = joined_halves(found) if normalised else found
        (chosen, rejected), (first, second) = found.T, batch["reference"].T
        counts = batch["rows"].mask.sum(-1)
        pairs = PairLogProbs(chosen, rejected, first, second, counts[:, 0], counts[:, 1], jnp.ones_like(chosen))
        return preference_loss(pairs, loss="dpo")

    loss_fn = CoupledLoss(
        lambda params, batch, key, extra: log_probs(params, batch["rows"]),
        objective,
        combine=normalised_halves if normalised else None,
        copies=2 if normalised else 1,
    )

    def step(current, rows):
        batch = {"rows": rows, "reference": log_probs(params, rows)}
        _, gradient = sums(loss_fn, current, batch, jax.random.key(0), {})
        return _moved(current, gradient), None

    return jax.lax.scan(step, params, batches)[0]


@functools.lru_cache(maxsize=len(LENGTHS))
def _start(length: int, seed: int, training: int):
    random = np.random.default_rng((seed, length))
    drawn = [draw(random, 32, length, 0.0, wrong=0.4) for _ in range(training)]
    return _train(DECODER.init(jax.random.key(seed)), jax.tree.map(lambda *leaves: np.stack(leaves), *drawn))


def run(setting: str, seed: int, *, steps: int = 60, training: int = 400, pairs: int = 24) -> dict[str, float]:
    """Cosines and cases of pairs, whether single steps do what is foretold, and held-out changes (nats) of training.

    steps: of DPO. training: supervised steps before. pairs: looked at one by one.
    """
    name = setting.removesuffix("_normalised")
    params = _start(LENGTHS[name], seed, training)
    random = np.random.default_rng((seed, 1, LENGTHS[name]))
    tail = np.array([0.0, 1.0]) if name == "longer_rejected" else 0.0
    looked_at = draw(random, pairs, LENGTHS[name], tail)
    report, plain, normalised = jax.device_get(_single_steps(params, looked_at))
    foretold = np.stack([report.delta_chosen, report.delta_rejected], axis=1)
    drawn = [draw(random, 32, LENGTHS[name], tail) for _ in range(steps)]
    trained = _preference_steps(
        params, jax.tree.map(lambda *leaves: np.stack(leaves), *drawn), setting.endswith("_normalised")
    )
    held_out = draw(random, 64, LENGTHS[name], tail)
    change = np.asarray(log_probs(trained, held_out) - log_probs(params, held_out)).mean(0)
    return {
        "cosine": float(report.cosine.mean()),
        **{case: float((report.case == code).mean()) for code, case in enumerate(CASES)},
        "signs_foretold": float((np.sign(foretold) == np.sign(plain)).mean()),
        "normalised_ideal": float(((normalised[:, 0] >= 0) & (normalised[:, 1] <= 0)).mean()),
        "chosen_change": float(change[0]),
        "rejected_change": float(change[1]),
        "margin_change": float(change[0] - change[1]),
    }
