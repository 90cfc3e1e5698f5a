"""The preference experiment: what it scores, how it starts, and what it refuses."""

import json
import math
import re

import jax
import numpy as np
import pytest

from configs import bco, dpo_smollm, lcpo
from experiments.own_samples import sample_pairs
from experiments.pairs import TRACKED, Collate, Measure, Sums, make_loss, make_score
from experiments.preference import HeldOutPairs, check_start
from experiments.prompt_distributions import weigh_by_prompts
from experiments.setup import build_model
from jaxalign.data.preferences import Preference
from jaxalign.errors import UserError
from jaxalign.models.scoring import completion_log_probs
from jaxalign.objective import metric_means
from jaxalign.rewards.runner import RewardCounts, RewardResult
from jaxalign.training.accumulation import sums, sums_and_extra
from tests.experiments.test_bad_input import fails

TINY, RACO = "configs/dpo_smollm.py:tiny", "configs/raco.py:tiny"
ROWS = [
    Preference([7, 8, 9], ([1, 2], [3, 4, 5, 6]), True, 1.5),
    Preference([7] * 11, ([9], [8, 7]), False, -0.5),
    Preference([5], ([1, 2, 3], [4])),
]


@pytest.fixture(scope="module")
def tiny():
    config = dpo_smollm.get_config("tiny")
    config.model.compute_dtype = "float32"
    config.mesh.data = 1
    config.mesh.fsdp = jax.device_count()
    model = build_model(config)
    # On one device: nothing here is about meshes.
    return config, model, jax.device_put(jax.device_get(model.read()), jax.devices()[0])


def test_sums_are_those_of_each_completion_alone(tiny):
    """Two completions behind one prompt, in a padded batch, against one row for each without any padding."""
    config, model, params = tiny
    collate = Collate(ROWS, labelled=False)
    found = jax.jit(make_score(model.decoder, config.preference))(params, collate(ROWS, 4))
    score = jax.jit(completion_log_probs, static_argnums=0)
    assert found.log_probs.shape == (4, 2)
    np.testing.assert_array_equal(found.lengths, [[2, 4], [1, 2], [3, 1], [0, 0]])
    for i, row in enumerate(ROWS):
        for k, ids in enumerate(row.completion_ids):
            alone = score(
                model.decoder,
                params,
                np.array([row.prompt_ids]),
                np.array([len(row.prompt_ids)]),
                np.array([[ids]]),
                np.ones((1, 1, len(ids))),
            )
            np.testing.assert_allclose(found.log_probs[i, k], alone.log_probs.sum(), rtol=1e-5)


def test_ld_dpo_counts_the_longer_completion_less(tiny):
    config, model, params = tiny
    batch = Collate(ROWS, labelled=False)(ROWS)
    preference = config.preference.copy_and_resolve_references()
    preference.length_desensitisation = 0.0
    short = jax.jit(make_score(model.decoder, preference))(params, batch)
    cut = [
        row._replace(completion_ids=tuple(ids[: min(map(len, row.completion_ids))] for ids in row.completion_ids))
        for row in ROWS
    ]
    wanted = jax.jit(make_score(model.decoder, config.preference))(params, Collate(cut, labelled=False)(cut))
    np.testing.assert_allclose(short.log_probs, wanted.log_probs, rtol=1e-5)


def test_the_third_column_is_label_or_score():
    np.testing.assert_array_equal(Collate(ROWS, labelled=True)(ROWS).side, [1, 0, 1])
    np.testing.assert_array_equal(Collate(ROWS, labelled=False)(ROWS).side, [1.5, -0.5, 0])


def sums_of(*rows):
    return Sums(np.array(rows, np.float32), np.full((len(rows), 2), 4.0, np.float32))


@pytest.mark.parametrize(
    ("word", "value"), [("dpo", math.log(2)), ("ipo", 25.0), ("kto", 0.5), ("nca", 2 * math.log(2))]
)
def test_a_run_starts_at_its_reference(word, value):
    """The loss at margin 0 is known; a policy that is somewhere else stops the run."""
    measure = Measure(dpo_smollm.get_config(f"tiny,{word}"))
    start, side = sums_of([-3, -5], [-20, -7]), np.array([1, 0], np.float32)
    found = measure(start, start.log_probs, side, np.ones(2))
    np.testing.assert_allclose(found.total / found.weight, value, rtol=1e-6)
    check_start(start, start, measure, side)
    elsewhere = start._replace(log_probs=start.log_probs + np.array([[0, 0.1], [0, 0]], np.float32))
    with pytest.raises(UserError, match=r"before the first step the policy is not its reference.*up to 0.1 nats"):
        check_start(elsewhere, start, measure, side)


def test_held_out_accuracy_counts_ties_half():
    class Scorer:
        def __call__(self, params, rows):
            return params

    for word, expected in (("dpo", [0.5, 1, 0]), ("simpo", [0, 1, 1])):
        held_out = HeldOutPairs(
            ROWS, Scorer(), Measure(dpo_smollm.get_config(f"tiny,{word}")), Collate(ROWS, labelled=False)
        )
        if word == "dpo":
            held_out.set_reference(sums_of([-4, -3], [-9, -8], [-1, -9]))
        policy = sums_of([-4, -3], [-6, -8], [-2, -4])
        np.testing.assert_array_equal(held_out._right(policy), expected)
        assert held_out.metrics(policy)["pairs/accuracy"] == pytest.approx(np.mean(np.array(expected) == 1))


CASES = {
    "an option that a loss does not know": (
        ["--config.loss.label_smoothing=0.1"],
        "configs/dpo_smollm.py:tiny,sppo",
        "loss 'sppo' has no option 'label_smoothing'",
    ),
    "an unknown loss": (["--config.loss.loss=dppo"], TINY, "dppo"),
    "beta": (["--config.loss.beta=0.0"], TINY, "beta=0.0 of loss 'dpo' must be more than 0"),
    "parts": (["--config.train.micro_batches=3"], TINY, "pairs_per_step=16 does not divide"),
    "long prompts": (["--config.data.max_prompt_tokens=3"], TINY, "row 0 has a prompt of .* tokens, more than"),
    "scores": ([], "configs/dpo_smollm.py:tiny,odpo", "has no numbers under 'chosen_score'"),
    "a shift of another loss": (
        ["--config.preference.shift.enabled=True"],
        TINY,
        "config.preference.shift.enabled follows the rewards for the losses bco, bco_pair and mpo",
    ),
    "doubted labels of completions": (
        ["--config.preference.confidence.enabled=True"],
        "configs/dpo_smollm.py:tiny,kto",
        "config.preference.confidence.enabled doubts pairs",
    ),
    "two methods": ([], "configs/dpo_smollm.py:dpo,ipo", "exclude each other"),
    "objectives of another loss": (
        ["--config.preference.objectives.brief=1.0"],
        TINY,
        "objectives wants a loss of several objectives.*start from configs/raco.py",
    ),
    "no objectives": ([], RACO + ",own", "config.preference.objectives is empty"),
    "weights of objectives": (
        ["--config.preference.objectives.brief=0.7"],
        RACO,
        r"objectives \(brief 0.7, correct 0.65\) must be weights of at least 0 whose sum is 1",
    ),
    "a way to combine": (["--config.preference.conflict=pcgrad"], RACO, "'pcgrad' is not known; use one of raco"),
    "a radius": (["--config.preference.radius=1.0"], RACO, r"radius=1.0 of the correction must be in \[0, 1\)"),
    "about one preference": (
        ["--config.preference.gradient=normalised"],
        RACO,
        "gradient is about one preference, and config.preference.objectives names several",
    ),
    "an objective that nobody judges": (
        [
            "--config.preference.objectives.helpful=1.0",
            "--config.samples.per_question=0",
            "--config.data.source=arithmetic_pairs",
        ],
        RACO + ",own",
        "no pair of arithmetic_pairs is judged by the objective 'helpful'.*; judged are correct",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_settings(case, tmp_path, capsys):
    arguments, spec, message = CASES[case]
    found = fails(capsys, tmp_path, *arguments, spec=spec)
    assert re.search(message, found), found
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize("word", ["aot", "cpo", "kto"])
def test_rows_that_interact_are_exact_in_micro_batches(word, tiny):
    """The loss is cut at the sums, so that a sort or a mean over the batch sees all of it."""
    config, model, params = tiny
    config = dpo_smollm.get_config(f"tiny,{word}")
    rows = [*ROWS, ROWS[0]._replace(prompt_ids=[4, 4])]
    batch = Collate(rows, labelled=config.preference.labelled)(rows)
    batch = batch._replace(reference=-np.arange(8, dtype=np.float32).reshape(4, 2))
    loss = make_loss(model.decoder, config.preference, Measure(config))
    whole, parts = jax.jit(lambda *given: [sums(loss, *given, {}, count) for count in (1, 2)])(
        params, batch, jax.random.key(0)
    )
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("recipe", "words"), [(bco, "tiny"), (bco, "tiny,pairs"), (lcpo, "tiny")])
def test_what_a_loss_follows_sees_the_whole_batch_once(recipe, words, tiny):
    """In micro-batches too; the shift is that of the batch itself, reliabilities those from before it."""
    config, model, params = tiny
    config = recipe.get_config(words)
    labelled = config.preference.labelled
    rows = [*ROWS, ROWS[0]._replace(prompt_ids=[4, 4])]
    rows = [row._replace(annotator="ab"[i // 2], weight=1.0 + i) for i, row in enumerate(rows)]
    batch = Collate(rows, labelled=labelled, annotators=("a", "b"))(rows)
    np.testing.assert_array_equal(batch.annotator, [0, 0, 1, 1])
    np.testing.assert_array_equal(batch.weight, [1, 2, 3, 4])
    assert Collate(rows, labelled=labelled)(rows, 5).annotator[0] == -1
    batch = batch._replace(reference=-np.arange(8, dtype=np.float32).reshape(4, 2))
    measure = Measure(config)
    extra = {TRACKED: measure.start(2)}
    loss = make_loss(model.decoder, config.preference, measure)
    whole, parts = jax.jit(lambda *given: [sums_and_extra(loss, *given, count) for count in (1, 2)])(
        params, batch, jax.random.key(0), extra
    )
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    state, means = whole[2][TRACKED], metric_means(whole[0].metrics)
    scored = jax.jit(make_score(model.decoder, config.preference))(params, batch)
    rewards = 0.1 * (scored.log_probs - batch.reference)
    if words == "tiny,pairs":
        np.testing.assert_allclose(state.shift, rewards.mean(), rtol=1e-4)
        apart = rewards - state.shift
        expected = np.log1p(np.exp(-apart[:, 0])) + np.log1p(np.exp(apart[:, 1]))
        np.testing.assert_allclose(whole[0].total / whole[0].weight, expected.mean(), rtol=1e-4)
    elif labelled:
        rewards = rewards[:, 0]
        np.testing.assert_allclose(state.shift, (rewards[batch.side > 0].mean() + rewards[1]) / 2, rtol=1e-4)
        np.testing.assert_allclose(means["reward_shift"], state.shift, rtol=1e-5)
    else:
        np.testing.assert_allclose(means["reliability"], 0.9, rtol=1e-6)
        np.testing.assert_allclose(
            0.9 + (np.asarray(state.reliability).mean() - 0.9) * 10, means["confidence"], rtol=1e-4
        )


def test_undesirable_rows_weigh_by_their_prompts(tiny):
    """Prompts of the undesirable rows alone weigh less than those that both classes have; desirable rows keep 1."""
    _, model, params = tiny
    preference = bco.get_config("tiny,udm").preference
    preference.pairs_per_step = 8
    rows = [Preference([7 + i % 4] * 3, ([1], []), True) for i in range(8)]
    rows += [Preference([7 + i % 4] * 3 if i < 4 else [40 + i] * 9, ([1], []), False) for i in range(12)]
    talk = Talk()
    params = jax.device_put(params, model.shardings)
    weigh_by_prompts(rows, model, params, preference, talk)
    weights = np.array([row.weight for row in rows])
    np.testing.assert_array_equal(weights[:8], 1)
    assert weights[8:12].min() > weights[12:].max() >= 0.5
    assert "4 desirable and 12 undesirable" in talk.text
    same = [row._replace(prompt_ids=[1], weight=1.0) for row in rows]
    weigh_by_prompts(same, model, params, preference, talk)
    assert "fewer than two prompts" in talk.text and all(row.weight == 1 for row in same)


class Talk:
    def print(self, text):
        self.text = text


def test_own_samples_pair_right_with_wrong_ones(tiny, tmp_path):
    """Ids as they were sampled; the better score is chosen; no pair twice."""
    config, model, params = tiny
    config = config.copy_and_resolve_references()
    config.data.source = "arithmetic?split=train&operations=+&template={question}="
    config.samples.update(per_question=6, questions=12, pairs_per_question=2, max_new_tokens=3, questions_at_once=5)

    class Rewards:
        """Likes odd lengths; the second likes length."""

        names = ("odd", "long")

        def __call__(self, prompts, texts, examples):
            scores = np.array([[len(text) % 2, len(text)] for text in texts], np.float32)
            scores[0] = np.nan
            return RewardResult(scores, {name: RewardCounts(1, 0, 0, 0) for name in self.names}, None)

    talk, params = Talk(), jax.device_put(params, model.shardings)
    sample_pairs(config, model, params, Rewards(), tmp_path / "samples.jsonl", talk)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert 0 < len(rows) <= 24
    assert f"{len(rows)} pairs" in talk.text
    assert len({json.dumps((row["prompt"], row["chosen_ids"], row["rejected_ids"])) for row in rows}) == len(rows)
    for row in rows:
        assert (row["chosen_score"], row["rejected_score"]) == (1, 0)
        longer = np.sign(len(row["chosen"]) - len(row["rejected"]))
        assert row["objectives"] == {"correct": 1, "long": longer}
        assert len(row["chosen"]) % 2 == 1 and len(row["rejected"]) % 2 == 0
        assert model.tokenizer.decode(row["chosen_ids"]) == row["chosen"]

    class Equal(Rewards):
        def __call__(self, prompts, texts, examples):
            return super().__call__(prompts, ["x"] * len(texts), examples)

    with pytest.raises(UserError, match="give no pair"):
        sample_pairs(config, model, params, Equal(), tmp_path / "none.jsonl", talk)
    assert not (tmp_path / "none.jsonl").exists()
