"""The table of the contract suite: for every method (and some pieces beside it) a small random problem.

A case has two stages, so that the suite can reach in between:

    outputs(params, batch) -> dict      what a model computes: log-probs, entropies, embeddings, ...
    loss(outputs, batch) -> Objective   the method

To add a method, write a builder `(seed, rows, dtype, scorer) -> Case` and name it in `CASES`; for a loss of
token log-probs take `token_case`. Builders return NumPy arrays of the type asked for.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.losses import policy_gradient, supervised
from jaxalign.losses.log_probs import TokenLogProbs, log_probs_from_logits, token_log_probs
from jaxalign.losses.ppo import ppo_loss
from jaxalign.losses.value import value_loss
from jaxalign.methods import METHODS, Method
from jaxalign.objective import Objective
from jaxalign.rewards.advantages import advantages
from tests import (
    contract_cases_adaptation,
    contract_cases_chains,
    contract_cases_embeddings,
    contract_cases_given_answers,
    contract_cases_metric,
    contract_cases_preference,
    contract_cases_symbolic,
)

TIME, VOCABULARY, WIDTH, GROUP = 6, 11, 4, 4


class Case(NamedTuple):
    params: dict[str, np.ndarray]
    batch: dict[str, np.ndarray]  # every array has the rows in front
    outputs: Callable[[Any, Any], dict[str, jax.Array]]
    loss: Callable[[Any, Any], Objective]
    # Which mask of the batch says where an array of `batch` or `outputs` counts; both are [rows, time, ...].
    masked: dict[str, str]
    per_row: tuple[str, ...] = ()  # arrays [rows] that mean nothing for a row without any token
    inputs: tuple[str, ...] = ()  # what the model itself reads: may change where masked, but stays finite
    additive: bool = True  # the objectives of two halves of the rows add up; False where rows interact
    # Single operations are compiled once for all cases of the same shapes together; a case of other shapes and many
    # operations is cheaper as one program.
    as_one_program: bool = False

    def loss_fn(self, params, batch) -> Objective:
        return self.loss(self.outputs(params, batch), batch)


Scorer = Callable[[jax.Array, jax.Array, jax.Array], TokenLogProbs]


def chunked(hidden, head, ids) -> TokenLogProbs:
    """The project's primitive, with blocks that do not divide the vocabulary and several token chunks."""
    return token_log_probs(hidden, head, ids, block=4, num_chunks=3 if ids.shape[-1] % 3 == 0 else 1)


def dense(hidden, head, ids) -> TokenLogProbs:
    return log_probs_from_logits(hidden @ head.T, ids)


def token_policy(seed: int, rows: int, dtype) -> tuple[dict, dict]:
    """(params, batch) of a linear policy over tokens; one row is empty, the others differ in length."""
    random = np.random.default_rng(seed)
    params = {
        "mix": random.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5,
        "head": random.normal(size=(VOCABULARY, WIDTH)),
    }
    lengths = random.integers(1, TIME + 1, rows)
    lengths[rows // 2] = 0
    lengths[0] = TIME
    batch = {
        "features": random.normal(size=(rows, TIME, WIDTH)),
        "ids": random.integers(0, VOCABULARY, (rows, TIME)).astype(np.int32),
        "mask": np.arange(TIME) < lengths[:, None],
    }
    floats = {key: value.astype(dtype) for key, value in batch.items() if key != "ids"}
    return {key: value.astype(dtype) for key, value in params.items()}, batch | floats


@functools.partial(jax.jit, static_argnums=0)  # compiled once for all cases
def _score(scorer: Scorer, params, features, ids) -> TokenLogProbs:
    return scorer(jnp.tanh(features @ params["mix"]), params["head"], ids)


def score(scorer: Scorer, params, batch) -> dict[str, jax.Array]:
    return _score(scorer, params, batch["features"], batch["ids"])._asdict()


def log_probs_of(params, batch) -> np.ndarray:
    """The same in NumPy, as starting point of old and reference log-probs."""
    logits = np.tanh(batch["features"] @ params["mix"]) @ params["head"].T
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(log_p, batch["ids"][..., None], -1)[..., 0]


def token_case(seed, rows, dtype, scorer, loss, *, noise=0.2, extra=None, per_row=(), keep=("mask",)) -> Case:
    """A case whose loss reads `log_probs`, `entropy` and what `extra(random, batch)` adds to the batch.

    `old_log_probs` differ from the policy's by `noise` and `reference_log_probs` by 0.3 (standard deviations).
    """
    params, batch = token_policy(seed, rows, dtype)
    random = np.random.default_rng(seed + 1)
    start = log_probs_of(params, batch)
    batch["old_log_probs"] = (start + noise * random.normal(size=start.shape)).astype(dtype)
    batch["reference_log_probs"] = (start + 0.3 * random.normal(size=start.shape)).astype(dtype)
    for key, value in (extra(random, batch) if extra else {}).items():
        batch[key] = np.asarray(value).astype(dtype)
    names = [name for name in batch if name not in (*keep, *per_row)] + ["log_probs", "entropy"]
    return Case(
        params,
        batch,
        functools.partial(score, scorer),
        loss,
        masked=dict.fromkeys(names, "mask"),
        per_row=per_row,
        inputs=("features", "ids"),
    )


def sft(method: Method, seed, rows, dtype, scorer) -> Case:
    def loss(outputs, batch):
        return supervised.supervised_loss(outputs["log_probs"], batch["mask"], **method.loss)

    return token_case(seed, rows, dtype, scorer, loss)


def policy_gradient_case(method: Method, seed, rows, dtype, scorer) -> Case:
    """Any method that is a setting of `policy_loss`, on random rewards."""
    options = dict(method.loss)
    if options["aggregation"] == "seq-mean-token-scale":
        options["scale_length"] = float(TIME)

    def loss(outputs, batch):
        arrays = {name: batch[name] for name in ("old_log_probs", "reference_log_probs")}
        return policy_gradient.policy_loss(
            outputs["log_probs"], batch["advantages"], batch["mask"], entropy=outputs["entropy"], **arrays, **options
        )

    def extra(random, batch):
        del batch
        rewards = random.integers(0, 2, rows).astype(dtype)
        rewards[1] = np.nan
        return {"advantages": advantages(rewards=rewards, group_size=GROUP, **method.advantages)}

    noise = 2 * options.get("clip_high", 0.2)
    return token_case(seed, rows, dtype, scorer, loss, noise=noise, extra=extra, per_row=("advantages",))


def every_option(seed, rows, dtype, scorer) -> Case:
    """`policy_loss` with everything switched on and an advantage per token (a PPO recipe)."""

    def loss(outputs, batch):
        return policy_gradient.policy_loss(
            outputs["log_probs"],
            batch["advantages"],
            batch["mask"],
            old_log_probs=batch["old_log_probs"],
            reference_log_probs=batch["reference_log_probs"],
            entropy=outputs["entropy"],
            clip_high=0.28,
            dual_clip=3.0,
            ratio_cap=2.0,
            kl="k2",
            kl_coefficient=0.1,
            kl_value_clamp=10.0,
            entropy_coefficient=0.01,
            log_ratio_clamp=20.0,
            aggregation="token-mean",
        )

    def extra(random, batch):
        return {"advantages": random.normal(size=batch["ids"].shape)}

    return token_case(seed, rows, dtype, scorer, loss, noise=0.5, extra=extra)


def value_regression(seed, rows, dtype, scorer) -> Case:
    """The value loss; the model's log-probs stand for values."""

    def loss(outputs, batch):
        return value_loss(outputs["log_probs"], batch["old_log_probs"], batch["reference_log_probs"], batch["mask"])

    return token_case(seed, rows, dtype, scorer, loss, noise=0.3)


def ppo(method: Method, seed, rows, dtype, scorer) -> Case:
    """The model's log-probs stand for values too."""

    def loss(outputs, batch):
        return ppo_loss(
            outputs["log_probs"],
            outputs["log_probs"],
            batch["advantages"],
            batch["mask"],
            old_values=batch["old_log_probs"],
            returns=batch["returns"],
            old_log_probs=batch["old_log_probs"],
            reference_log_probs=batch["reference_log_probs"],
            entropy=outputs["entropy"],
            kl_coefficient=0.1,
            **method.loss,
        )

    def extra(random, batch):
        return {name: random.normal(size=batch["ids"].shape) for name in ("advantages", "returns")}

    return token_case(seed, rows, dtype, scorer, loss, extra=extra)


Builder = Callable[[int, int, Any, Scorer], Case]

CASES: dict[str, Builder] = {
    "sft": functools.partial(sft, METHODS["sft"]),
    **{
        name: functools.partial(policy_gradient_case, METHODS[name])
        for name in ("reinforce", "rloo", "grpo", "dr_grpo", "gspo", "dapo", "mc_grpo", "spo", "infalign")
        + ("prompt_gdro", "rollout_gdro")
    },
    "ppo": functools.partial(ppo, METHODS["ppo"]),
    # Not methods of the table:
    "policy_loss with every option": every_option,
    "value_loss": value_regression,
    **contract_cases_symbolic.cases(token_case),
    **contract_cases_given_answers.cases(token_case),
    **contract_cases_chains.cases(token_case),
    **contract_cases_preference.cases(token_case),
    **contract_cases_metric.cases(Case, token_policy, chunked),
    **contract_cases_adaptation.cases(Case, token_policy),
    **contract_cases_embeddings.cases(token_case),
}

# Methods whose loss is that of another: how DPO-LW combines gradients is in tests/gradients, what test-time matching
# matches in tests/evaluation/test_group_matching.py.
SAME_LOSS = {"dpo_lw": "raco", "ttm": "siglip"}


@functools.cache
def build(name: str, *, seed: int = 0, rows: int = 16, dtype=np.float32, scorer: Scorer = dense) -> Case:
    return CASES[name](seed, rows, dtype, scorer)
