"""LCPO on linear Bradley-Terry preferences with labels that annotators flip at their own rates.

12 features, a true direction of length 3, 3,000 labelled pairs and 2,000 clean test pairs. The policy's log-ratio of a
pair is features . theta. Settings are `<arm>, <annotators>`; arms are a base loss as it is ("dpo", "ipo", "simpo"),
"smoothed" (dpo with label smoothing 0.1) and a base under label confidence ("dpo lcpo", ...).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign import objective
from jaxalign.controllers import label_confidence
from jaxalign.losses.preference import PairLogProbs, preference_loss
from jaxalign.losses.preference_confidence import confidence_loss, implied_margin

FEATURES, LENGTH, PAIRS, TEST_PAIRS = 12, 3.0, 3000, 2000
BATCH, LEARNING_RATE, STEPS = 256, 0.03, 800
RELIABILITY = {"three": (0.95, 0.75, 0.55), "one": (0.8,), "bad": (0.6,)}
BASES = {
    "dpo": {"loss": "dpo", "beta": 1.0},
    "smoothed": {"loss": "dpo", "beta": 1.0, "label_smoothing": 0.1},
    "ipo": {"loss": "ipo", "beta": 1.0},
    "simpo": {"loss": "simpo", "beta": 1.0, "target_margin": 0.5},
}
ARMS = ("dpo", "smoothed", "dpo lcpo", "ipo", "ipo lcpo", "simpo", "simpo lcpo")
SETTINGS = (
    *(f"{arm}, three" for arm in ARMS),
    *(f"{arm}, one" for arm in ("dpo", "smoothed", "dpo lcpo")),
    *(f"{arm}, bad" for arm in ("dpo", "dpo lcpo")),
)


def pairs_of(margins: jax.Array) -> PairLogProbs:
    """Pairs of one-token completions whose log-ratios differ by `margins`."""
    zero, one = jnp.zeros_like(margins), jnp.ones_like(margins)
    return PairLogProbs(margins, zero, zero, zero, one, one, one)


def run(setting: str, seed: int, steps: int = STEPS) -> dict[str, float]:
    """What was learned.

    accuracy: on clean test pairs. log_kl: log of the KL (nats) from the true preferences to the belief sigmoid(z).
    reliability_error: mean distance of the reliabilities found (0.9 where none is looked for) from the true ones.
    """
    arm, _, annotators = setting.partition(", ")
    base, _, doubted = arm.partition(" ")
    options, true = BASES[base], np.array(RELIABILITY[annotators])
    random = np.random.default_rng(seed)
    direction = random.normal(size=FEATURES)
    direction *= LENGTH / np.linalg.norm(direction)
    features, test = (random.normal(size=(size, FEATURES)) for size in (PAIRS, TEST_PAIRS))
    annotator = random.integers(0, len(true), PAIRS)
    wins = random.uniform(size=PAIRS) < 1 / (1 + np.exp(-features @ direction))
    right = random.uniform(size=PAIRS) < true[annotator]
    # the row shows the labelled winner first
    features = jnp.asarray(features * np.where(wins == right, 1, -1)[:, None], jnp.float32)
    annotator, test = jnp.asarray(annotator), jnp.asarray(test, jnp.float32)
    optimizer = optax.adam(LEARNING_RATE)
    chosen = jax.random.randint(jax.random.key(seed), (steps, BATCH), 0, PAIRS)
    margin = functools.partial(implied_margin, **options)

    def step(carry, rows):
        theta, opt_state, state = carry

        def loss(theta):
            pairs = pairs_of(features[rows] @ theta)
            if doubted:
                return objective.loss(confidence_loss(pairs, state, annotator[rows], **options))
            return objective.loss(preference_loss(pairs, **options))

        gradient = jax.grad(loss)(theta)
        confidences, _ = label_confidence.confidence(margin(pairs_of(features[rows] @ theta)), state, annotator[rows])
        updates, opt_state = optimizer.update(gradient, opt_state)
        if doubted:
            state, _ = label_confidence.update(state, confidences, annotator[rows], jnp.ones(BATCH))
        return (optax.apply_updates(theta, updates), opt_state, state), None

    start = jnp.zeros(FEATURES)
    first = (start, optimizer.init(start), label_confidence.init(len(true)))
    (theta, _, state), _ = jax.jit(lambda c: jax.lax.scan(step, c, chosen))(first)
    truth, belief = test @ jnp.asarray(direction, jnp.float32), margin(pairs_of(test @ theta))
    p = jax.nn.sigmoid(truth)
    ls = jax.nn.log_sigmoid
    kl = (p * (ls(truth) - ls(belief)) + (1 - p) * (ls(-truth) - ls(-belief))).mean()
    found = np.asarray(state.reliability)
    return {
        "accuracy": float(((test @ theta > 0) == (truth > 0)).mean()),
        "log_kl": float(jnp.log(kl)),
        "reliability_error": float(np.abs(found - true).mean()),
        **{f"reliability_{number}": float(value) for number, value in enumerate(found)},
    }
