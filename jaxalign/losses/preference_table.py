"""The table of preference losses: for each its function of a pair's sums, its options and what it needs.

A row is a margin under a link wherever the loss is one (`_factored`). The formulas are written out in
`jaxalign.losses.preference.preference_loss`, which checks the options and sums over the batch.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu, sigmoid, softplus

from jaxalign.losses import preference_links as links
from jaxalign.objective import safe_divide

Options = Mapping[str, Any]


class Terms(NamedTuple):
    """Sums of log-probs (nats) and lengths (tokens) of B pairs, 0 where a pair does not count."""

    chosen: jax.Array
    rejected: jax.Array
    reference_chosen: jax.Array
    reference_rejected: jax.Array
    chosen_length: jax.Array
    rejected_length: jax.Array
    offset: jax.Array | None
    counts: jax.Array  # bool

    @property
    def log_ratio_chosen(self) -> jax.Array:
        return self.chosen - self.reference_chosen

    @property
    def log_ratio_rejected(self) -> jax.Array:
        return self.rejected - self.reference_rejected

    @property
    def mean_chosen(self) -> jax.Array:
        return safe_divide(self.chosen, self.chosen_length)

    @property
    def mean_rejected(self) -> jax.Array:
        return safe_divide(self.rejected, self.rejected_length)

    def rewards(self, kind: str) -> tuple[jax.Array, jax.Array]:
        """Implicit rewards without their beta."""
        match kind:
            case "log_ratio":
                return self.log_ratio_chosen, self.log_ratio_rejected
            case "mean_log_prob":
                return self.mean_chosen, self.mean_rejected
        return self.chosen, self.rejected


class PairLoss(NamedTuple):
    function: Callable[[Terms, Options], jax.Array]  # [B], per pair, or per rank
    reward: Literal["log_ratio", "log_prob", "mean_log_prob"]  # what its implicit reward is, up to beta
    options: Options  # those it knows, with their defaults
    uses_lengths: bool = False
    by_rank: bool = False  # the terms belong to ranks of the batch, not to pairs
    likelihood_weight: float = 0.0  # default of the likelihood term

    @property
    def needs_reference(self) -> bool:
        return self.reward == "log_ratio"


Margin = Callable[[Terms, Options], jax.Array]
Link = Callable[[jax.Array, Options], jax.Array]


def _factored(margin: Margin, link: Link) -> Callable[[Terms, Options], jax.Array]:
    return lambda t, o: link(margin(t, o), o)


# Margins. Those of reference losses hold the divergence of f-DPO.


def _scores(t: Terms, o: Options) -> tuple[jax.Array, jax.Array]:
    chosen, rejected = t.rewards("log_ratio")
    divergence, alpha = o.get("divergence", "reverse_kl"), o.get("divergence_alpha", 0.5)
    return links.divergence_score(chosen, divergence, alpha), links.divergence_score(rejected, divergence, alpha)


def _delta(t: Terms, o: Options) -> jax.Array:
    chosen, rejected = _scores(t, o)
    return chosen - rejected


def _mean_delta(t: Terms, o: Options) -> jax.Array:
    chosen, rejected = _scores(t, o)
    return safe_divide(chosen, t.chosen_length) - safe_divide(rejected, t.rejected_length)


def _log_ratio(t: Terms, o: Options) -> jax.Array:
    return o["beta"] * _delta(t, o)


def _mean_log_ratio(t: Terms, o: Options) -> jax.Array:
    return o["beta"] * _mean_delta(t, o)


def _with_offset(t: Terms, o: Options) -> jax.Array:
    assert t.offset is not None
    return _log_ratio(t, o) - t.offset


def _with_length(t: Terms, o: Options) -> jax.Array:
    return _log_ratio(t, o) + o["length_penalty"] * (t.chosen_length - t.rejected_length)


def _with_penalty(t: Terms, o: Options) -> jax.Array:
    # relu of what starts at exactly 0: training begins on the kink, where its gradient is 0 by convention
    return o["beta"] * (_delta(t, o) - o["chosen_penalty"] * relu(-t.log_ratio_chosen))


def _log_prob(t: Terms, o: Options) -> jax.Array:
    return o["beta"] * (t.chosen - t.rejected)


def _mean_log_prob(t: Terms, o: Options) -> jax.Array:
    power = o.get("power", 0.0)
    chosen, rejected = (links.power_reward(m, power) for m in t.rewards("mean_log_prob"))
    return o["beta"] * (chosen - rejected) - o["target_margin"]


def _log_odds(t: Terms, o: Options) -> jax.Array:
    del o
    return links.log_odds(t.mean_chosen) - links.log_odds(t.mean_rejected)


def _sorted(x: jax.Array, counts: jax.Array) -> jax.Array:
    """Ascending over the pairs that count, which come first; 0 behind them."""
    return jnp.where(-jnp.sort(-counts.astype(jnp.int32)) > 0, jnp.sort(jnp.where(counts, x, jnp.inf)), 0)


def _rank_paired(t: Terms, o: Options) -> jax.Array:
    policy = _sorted(t.chosen - t.rejected, t.counts)
    return o["beta"] * (policy - _sorted(t.reference_chosen - t.reference_rejected, t.counts))


def _rank_unpaired(t: Terms, o: Options) -> jax.Array:
    chosen, rejected = t.rewards("log_ratio")
    return o["beta"] * (_sorted(chosen, t.counts) - _sorted(rejected, t.counts))


# Links with their options.


def _logistic(z: jax.Array, o: Options) -> jax.Array:
    return links.logistic(z, o.get("label_smoothing", 0.0))


def _squared_to_target(delta: jax.Array, o: Options) -> jax.Array:
    return links.squared(delta, 1 / (2 * o["beta"]))


def _without_options(link: Callable[[jax.Array], jax.Array]) -> Link:
    return lambda z, o: link(z)


# Losses that are no function of one margin.


def _nca(t: Terms, o: Options) -> jax.Array:
    chosen, rejected = (o["beta"] * a for a in t.rewards("log_ratio"))
    return softplus(-chosen) + (softplus(chosen) + softplus(rejected)) / 2


def _bco_pair(t: Terms, o: Options) -> jax.Array:
    chosen, rejected = (o["beta"] * a for a in t.rewards("log_ratio"))
    shift = jax.lax.stop_gradient(jnp.asarray(o["reward_shift"], chosen.dtype))
    return softplus(shift - chosen) + softplus(rejected - shift)


def _sppo(t: Terms, o: Options) -> jax.Array:
    target = 1 / (2 * o["beta"])
    return (t.log_ratio_chosen - target) ** 2 + (t.log_ratio_rejected + target) ** 2


def _apo_zero(t: Terms, o: Options) -> jax.Array:
    return sigmoid(-o["beta"] * t.log_ratio_chosen) + sigmoid(o["beta"] * t.log_ratio_rejected)


def _apo_down(t: Terms, o: Options) -> jax.Array:
    return sigmoid(o["beta"] * t.log_ratio_chosen) + sigmoid(-_log_ratio(t, o))


def _mpo(t: Terms, o: Options) -> jax.Array:
    return 0.8 * _logistic(_log_ratio(t, o), o) + 0.2 * _bco_pair(t, o)


def _slic(t: Terms, o: Options) -> jax.Array:
    return links.hinge(t.chosen - t.rejected, o["target_margin"])


def _rrhf(t: Terms, o: Options) -> jax.Array:
    del o
    return links.hinge(t.mean_chosen - t.mean_rejected, 0.0)


def _orpo(t: Terms, o: Options) -> jax.Array:
    return o["beta"] * softplus(-_log_odds(t, o))


_BETA = {"beta": 0.1}
_SMOOTHED = {"beta": 0.1, "label_smoothing": 0.0}
_DIVERGENCE = {"divergence": "reverse_kl", "divergence_alpha": 0.5}


def _reference(function: Callable[[Terms, Options], jax.Array], options: Options, **more: Any) -> PairLoss:
    return PairLoss(function, "log_ratio", options, **more)


PREFERENCE_LOSSES: dict[str, PairLoss] = {
    "dpo": _reference(_factored(_log_ratio, _logistic), _SMOOTHED | _DIVERGENCE),
    "robust_dpo": _reference(
        _factored(_log_ratio, lambda z, o: links.robust_logistic(z, o["label_smoothing"])),
        {"beta": 0.1, "label_smoothing": 0.1} | _DIVERGENCE,
    ),
    "dpo_norm": _reference(_factored(_mean_log_ratio, _logistic), _SMOOTHED | _DIVERGENCE, uses_lengths=True),
    "hinge": _reference(_factored(_log_ratio, _without_options(links.hinge)), _BETA | _DIVERGENCE),
    "ipo": _reference(_factored(_delta, _squared_to_target), _BETA | _DIVERGENCE),
    "ipo_norm": _reference(_factored(_mean_delta, _squared_to_target), _BETA | _DIVERGENCE, uses_lengths=True),
    "exo": _reference(
        _factored(_log_ratio, lambda z, o: links.exo(z, o["label_smoothing"])),
        {"beta": 0.1, "label_smoothing": 1e-3} | _DIVERGENCE,
    ),
    "discopop": _reference(
        _factored(_log_ratio, lambda z, o: links.discopop(z, o["temperature"])),
        {"beta": 0.05, "temperature": 0.05} | _DIVERGENCE,
    ),
    "exponential": _reference(_factored(_log_ratio, _without_options(links.exponential)), _BETA),
    "squared": _reference(_factored(_log_ratio, _without_options(links.squared)), _BETA),
    "truncated_quadratic": _reference(_factored(_log_ratio, _without_options(links.truncated_quadratic)), _BETA),
    "savage": _reference(_factored(_log_ratio, _without_options(links.savage)), _BETA),
    "odpo": _reference(_factored(_with_offset, _logistic), _BETA),
    "rdpo": _reference(_factored(_with_length, _logistic), {"beta": 0.1, "length_penalty": 0.01}, uses_lengths=True),
    "dpop": _reference(_factored(_with_penalty, _logistic), {"beta": 0.3, "chosen_penalty": 50.0}),
    "nca": _reference(_nca, _BETA),
    "bco_pair": _reference(_bco_pair, {"beta": 0.1, "reward_shift": 0.0}),
    "sppo": _reference(_sppo, {"beta": 1e-3}),
    "apo_zero": _reference(_apo_zero, _BETA),
    "apo_down": _reference(_apo_down, _BETA),
    "aot": _reference(_factored(_rank_paired, _logistic), _SMOOTHED, by_rank=True),
    "aot_unpaired": _reference(_factored(_rank_unpaired, _logistic), _SMOOTHED, by_rank=True),
    "mpo": _reference(_mpo, {"beta": 0.1, "label_smoothing": 0.0, "reward_shift": 0.0}, likelihood_weight=1.0),
    "cpo": PairLoss(_factored(_log_prob, _logistic), "log_prob", _SMOOTHED, likelihood_weight=1.0),
    "slic": PairLoss(_slic, "log_prob", {"target_margin": 1.0}, likelihood_weight=0.1),
    "simpo": PairLoss(
        _factored(_mean_log_prob, _logistic),
        "mean_log_prob",
        {"beta": 2.0, "target_margin": 0.5, "label_smoothing": 0.0},
        uses_lengths=True,
    ),
    "alphapo": PairLoss(
        _factored(_mean_log_prob, _logistic),
        "mean_log_prob",
        {"beta": 2.0, "target_margin": 0.5, "power": 0.25, "label_smoothing": 0.0},
        uses_lengths=True,
    ),
    "rrhf": PairLoss(_rrhf, "mean_log_prob", {}, uses_lengths=True, likelihood_weight=1.0),
    "orpo": PairLoss(_orpo, "mean_log_prob", _BETA, uses_lengths=True, likelihood_weight=1.0),
}
