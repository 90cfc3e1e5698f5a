"""From logic to losses: a preference structure becomes a loss of pairs."""

import functools
import warnings
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp
from jax.nn import relu, sigmoid, softplus

from jaxalign.losses.aggregation import where_counted
from jaxalign.losses.symbolic.counting import log_weighted_count
from jaxalign.losses.symbolic.structures import Preference, Structure, parse_structure, preference_of
from jaxalign.objective import Objective, safe_divide

Link = Literal["logistic", "squared", "hinge", "perceptron"]
LogProb = Literal["sequence-sum", "sequence-mean"]


def compile_structure(formula: str | Structure | Preference, *, allow_degenerate: bool = False) -> Preference:
    """The tables that a loss is computed from.

    Warns if nothing loses (the loss is 0) or if the same rows win and lose (the loss is constant).

    Raises:
      UserError: a text that is no structure.
      ValueError: nothing wins, so that the loss is infinite, unless `allow_degenerate`; nothing wins and nothing loses;
        no variable is named.
    """
    given = isinstance(formula, Preference)
    preference = formula if isinstance(formula, Preference) else _compiled(formula)
    name = f"the preference over ({', '.join(preference.variables)})" if given else f"'{formula}'"
    if not preference.variables:
        raise ValueError(f"{name} names no prediction, so that there is nothing to train")
    wins, loses = any(preference.winning), any(preference.losing)
    if not wins and not loses:
        raise ValueError(f"nothing wins and nothing loses by {name}: its condition is never true")
    if not wins and not allow_degenerate:
        raise ValueError(f"nothing wins by {name}: the loss is infinite everywhere; weaken the formula")
    if wins and not loses:
        warnings.warn(f"nothing loses by {name}: the loss is 0 and trains nothing", stacklevel=3)
    if preference.winning == preference.losing:
        warnings.warn(f"the same wins and loses by {name}: the loss is constant and trains nothing", stacklevel=3)
    return preference


@functools.lru_cache(maxsize=1024)
def _compiled(formula: str | Structure) -> Preference:
    return preference_of(parse_structure(formula) if isinstance(formula, str) else formula)


def log_ratio(preference: Preference, log_probs: dict[str, jax.Array]) -> jax.Array:
    """rho = log WMC(T) - log WMC(B), of the shape of the log-probs.

    Args:
      preference: static.
      log_probs: an array for each variable, in nats. `chosen'`, a copy, reads what is given for `chosen`.
    """
    arrays = [log_probs[name.rstrip("'")] for name in preference.variables]
    return log_weighted_count(preference.winning, arrays) - log_weighted_count(preference.losing, arrays)


def link_loss(rho: jax.Array, link: Link = "logistic", beta: float = 1.0) -> jax.Array:
    """The loss of a log-ratio, elementwise.

    | link       | loss                      | beta                                         |
    |------------|---------------------------|----------------------------------------------|
    | logistic   | -log sigmoid(beta rho)    | scale; 1 is the semantic loss                |
    | squared    | (rho - 1 / (2 beta))^2    | the target is 1 / (2 beta), as in IPO        |
    | hinge      | max(0, beta - rho)        | the margin that rho is to reach, as in SLiC  |
    | perceptron | max(0, -rho)              | not used                                     |

    Gradient 0 at the kinks.

    Raises:
      ValueError: unknown link, or beta not positive.
    """
    if isinstance(beta, int | float) and not beta > 0:
        raise ValueError(f"beta={beta} must be more than 0")
    match link:
        case "logistic":
            return softplus(-beta * rho)
        case "squared":
            return (rho - 1 / (2 * beta)) ** 2
        case "hinge":
            return relu(beta - rho)
        case "perceptron":
            return relu(-rho)
    raise ValueError(f"unknown link {link!r}; choose one of {get_args(Link)}")


def symbolic_loss(
    *,
    formula: str | Structure | Preference,
    mask: jax.Array,
    link: Link = "logistic",
    beta: float = 1.0,
    log_prob: LogProb = "sequence-sum",
    shift: jax.Array | float = 0.0,
    likelihood_weight: float = 0.0,
    allow_degenerate: bool = False,
    chosen_length: jax.Array | None = None,
    rejected_length: jax.Array | None = None,
    **log_probs: jax.Array | None,
) -> Objective:
    """The loss that a formula stands for, a mean over the pairs that count.

    With T and B the worlds that win and lose by the formula (`preference_of`) and p_i the probability of prediction i:

      WMC(F) = sum over the rows of F of prod_{i true} p_i prod_{i false} (1 - p_i)
      rho = log WMC(T) - log WMC(B) + shift
      loss = f(rho, beta) - likelihood_weight log p(chosen),   f the link, see `link_loss`

    Every array is [B] and given by its name: `symbolic_loss(formula="...", **pairs._asdict())` takes the pairs of the
    preference losses. Arrays that the formula does not name have no effect. Gradient flows into the log-probs it names,
    except those whose name begins with `reference`. What stands at mask 0 has no effect.

    Args:
      formula: `P given C also A` (see `structures`), or what such a text was made into. Static under jit.
      mask: [B], 1 = the pair counts; a weight >= 0.
      link, beta: see `link_loss`.
      log_prob: "sequence-sum": p is the probability of the completion, and 1 - p is 1 for all but the shortest.
        "sequence-mean": log-probs are divided by the length of the completion first, so that p is the geometric mean
        over its tokens (ORPO and whatever else has a 1 - p in its ratio). Needs the lengths, and variables whose names
        end in `chosen` or `rejected`.
      shift: [B] or a number, constant, added to rho: R-DPO's length term, ODPO's offset, SimPO's margin (over beta).
      likelihood_weight: of the negative log-likelihood of the chosen completion, a sum or mean as `log_prob` says.
      allow_degenerate: see `compile_structure`.
      chosen_length, rejected_length: [B] tokens; pairs with an empty completion have weight 0.
      log_probs: [B] each, in nats, at most 0: `chosen`, `rejected`, `reference_chosen`, `reference_rejected`, others.

    Returns:
      An Objective of weight sum(mask). Metrics, means over pairs: margin (beta rho), accuracy (rho > 0), satisfaction
      (sigmoid(rho), which without a shift is WMC(T) / (WMC(T) + WMC(B))), log_prob_chosen and log_prob_rejected (as
      given) where given, positive_log_prob (share of pairs of which one is above 0, which is no log-probability).

    Raises:
      UserError: the formula cannot be read.
      ValueError: a variable or a length without its array, a degenerate formula, options out of range, or a log-prob
        above 0.001 outside jit.

    arXiv 2412.17696. Deviations: the paper's predictions M_w, M_l, Ref_w and Ref_l are named as the arrays are; shift
    and the likelihood term stand outside its semantics.
    """
    if log_prob not in get_args(LogProb):
        raise ValueError(f"unknown log_prob {log_prob!r}; choose one of {get_args(LogProb)}")
    preference = compile_structure(formula, allow_degenerate=allow_degenerate)
    used = {name.rstrip("'") for name in preference.variables} | ({"chosen"} if likelihood_weight else set())
    used |= {"chosen", "rejected"} & {name for name, x in log_probs.items() if x is not None}
    lengths = {"chosen": chosen_length, "rejected": rejected_length}
    given = {name: jnp.asarray(x) for name, x in log_probs.items() if x is not None and name in used}
    missing = sorted(used - set(given))
    if missing:
        raise ValueError(
            f"the loss reads '{missing[0]}', of which no log-probs are given; given are {', '.join(given) or 'none'}"
        )
    mask = jnp.asarray(mask)
    chex.assert_rank([mask, *given.values()], 1)
    chex.assert_equal_shape([mask, *given.values(), *(x for x in lengths.values() if x is not None)])

    dtype = jnp.promote_types(jnp.float32, jnp.result_type(*given.values()))
    mask = mask.astype(dtype)
    for length in lengths.values():
        mask = mask if length is None else mask * (length > 0)
    arrays = {name: where_counted(x, mask, dtype) for name, x in given.items()}
    arrays |= {name: jax.lax.stop_gradient(x) for name, x in arrays.items() if name.startswith("reference")}
    positive = functools.reduce(jnp.logical_or, [x > 1e-3 for x in arrays.values()])
    if not isinstance(positive, jax.core.Tracer) and bool(positive.any()):
        name = next(name for name, x in arrays.items() if bool((x > 1e-3).any()))
        raise ValueError(f"'{name}' has a log-prob of {float(arrays[name].max()):.4g}, and none can be above 0")
    read = arrays
    if log_prob == "sequence-mean":
        read = {name: safe_divide(x, _length_of(name, lengths).astype(dtype)) for name, x in arrays.items()}

    rho = log_ratio(preference, read) + jax.lax.stop_gradient(where_counted(jnp.asarray(shift), mask, dtype))
    per_pair = link_loss(rho, link, beta)
    if likelihood_weight:
        per_pair = per_pair - likelihood_weight * read["chosen"]
    means = {
        "margin": beta * rho,
        "accuracy": rho > 0,
        "satisfaction": sigmoid(rho),
        **{f"log_prob_{name}": arrays[name] for name in ("chosen", "rejected") if name in arrays},
        "positive_log_prob": positive,
    }
    weight = mask.sum()
    constants = {name: jax.lax.stop_gradient(x).astype(dtype) for name, x in means.items()}
    metrics = {name: (_weighted_sum(x, mask), weight) for name, x in constants.items()}
    return Objective(_weighted_sum(per_pair, mask), weight, metrics)


def _length_of(name: str, lengths: dict[str, jax.Array | None]) -> jax.Array:
    for completion, length in lengths.items():
        if name.endswith(completion):
            if length is None:
                raise ValueError(f"log_prob='sequence-mean' needs {completion}_length, because '{name}' is read")
            return length
    raise ValueError(
        f"log_prob='sequence-mean' divides '{name}' by a length, and its name does not end in chosen or rejected"
    )


def _weighted_sum(x: jax.Array, mask: jax.Array) -> jax.Array:
    return (mask * jnp.where(mask > 0, x, 0)).sum()
