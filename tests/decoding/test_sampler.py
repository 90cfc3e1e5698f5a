"""The sampler on a small exact model: plain reference, exact probabilities, slots, ends, errors."""

import collections
import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxalign.decoding.sampler import Sampler, SamplingConfig, bucket_length, pad_prompts
from jaxalign.errors import UserError

VOCAB = 11
CALLS = collections.Counter()  # how often a program that calls these was traced


@dataclasses.dataclass(frozen=True)
class AverageDecoder:
    """Next logits = last[token] + mean of context[t] over the tokens so far: it needs a cache.

    The cache holds the rows context[t], so a wrong gather, a stale slot or a visible padding token
    changes the result.
    """

    vocab_size: int = VOCAB
    max_positions: int = 64

    @property
    def config(self):
        return types.SimpleNamespace(vocab_size=self.vocab_size, max_positions=self.max_positions)

    def decode_params(self, params):
        CALLS["decode_params"] += 1
        return params

    def prefill(self, weights, tokens, lengths, capacity):
        CALLS["prefill"] += 1
        CALLS["prefilled rows"] += len(tokens)
        seen = weights["context"][tokens]
        cache = [{"seen": jnp.pad(seen, ((0, 0), (0, capacity - tokens.shape[1]), (0, 0)))}]
        last = tokens[jnp.arange(len(tokens)), lengths - 1]
        return weights["last"][last] + self._mean(seen, lengths), cache

    def decode(self, weights, tokens, positions, cache):
        seen = cache[0]["seen"].at[jnp.arange(len(tokens)), positions].set(weights["context"][tokens])
        return weights["last"][tokens] + self._mean(seen, positions + 1), [{"seen": seen}]

    def decode_logits(self, weights, hidden):
        return hidden

    def _mean(self, seen, count):
        visible = jnp.arange(seen.shape[1]) < count[:, None]
        return jnp.where(visible[..., None], seen, 0.0).sum(axis=1) / count[:, None]


def random_params(seed=0, scale=1.5):
    last, context = np.random.default_rng(seed).normal(size=(2, VOCAB, VOCAB)).astype(np.float32)
    return {"last": scale * last, "context": 3 * scale * context}


def countdown_params():
    """Greedy counts down to 0: with stop token 0, the prompt [n] has a completion of n tokens."""
    return {
        "last": 5 * np.eye(VOCAB, dtype=np.float32)[np.maximum(np.arange(VOCAB) - 1, 0)],
        "context": np.zeros((VOCAB, VOCAB), np.float32),
    }


def reference_completion(params, prompt, key, prompt_index, sample_index, sampling):
    """One completion in float64; the vocabulary is one block: only the second number counts."""
    last, context = (
        np.asarray(params["last"], np.float64),
        np.asarray(params["context"], np.float64),
    )
    text, ids, log_probs = list(prompt), [], []
    key = jax.random.fold_in(jax.random.fold_in(key, prompt_index), sample_index)
    for position in range(sampling.max_new_tokens):
        logits = last[text[-1]] + context[text].mean(axis=0)
        scaled = logits / (sampling.temperature or 1.0)
        probabilities = np.exp(scaled - scaled.max())
        probabilities /= probabilities.sum()
        if sampling.temperature == 0:
            token = int(scaled.argmax())
        else:
            keep = np.zeros(VOCAB, bool)
            order = np.argsort(-probabilities)
            keep[order[: int(np.argmax(np.cumsum(probabilities[order]) >= sampling.top_p - 1e-12)) + 1]] = True
            running = np.cumsum(np.where(keep, probabilities, 0.0))
            uniform = float(jax.random.uniform(jax.random.fold_in(key, position), (2,))[1])
            token = int(np.searchsorted(running, uniform * running[-1], side="right"))
        text.append(token)
        ids.append(token)
        log_probs.append(math.log(probabilities[token]))
        if token in sampling.stop_token_ids:
            break
    return ids, log_probs


PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3], [5, 8]]


@pytest.mark.parametrize(
    ("sampling", "slots"),
    [
        (SamplingConfig(9, temperature=0.8, stop_token_ids=(0, 7)), None),
        (SamplingConfig(9, temperature=0.8, stop_token_ids=(0, 7)), 5),
        (SamplingConfig(9, temperature=1.5, top_p=0.8, stop_token_ids=(2,)), 3),
        (SamplingConfig(9, temperature=0.0, stop_token_ids=(7,)), 2),
        (SamplingConfig(1, temperature=1.0, stop_token_ids=(7,)), 2),
    ],
)
def test_equals_a_plain_reference(sampling, slots):
    params, key = random_params(), jax.random.key(3)
    prompts, lengths = pad_prompts(PROMPTS, multiple=8)
    prompts[np.arange(8) >= lengths[:, None]] = 10  # whatever the padding is, it is not seen
    done = Sampler(AverageDecoder(), sampling, slots=slots).sample(
        params, prompts, lengths, key, samples_per_prompt=3, weight_version=17
    )
    assert done.ids.shape == (12, sampling.max_new_tokens) and done.ids.dtype == jnp.int32
    assert done.mask.dtype == bool and done.log_probs.dtype == jnp.float32
    assert done.weight_version == 17 and done.temperature == (sampling.temperature or 1.0)
    ended = 0
    for row in range(12):
        ids, log_probs = reference_completion(params, PROMPTS[row // 3], key, row // 3, row % 3, sampling)
        rest = [0] * (sampling.max_new_tokens - len(ids))
        assert done.ids[row].tolist() == ids + rest
        assert done.lengths[row] == len(ids)
        assert done.mask[row].tolist() == [True] * len(ids) + [False] * len(rest)
        np.testing.assert_allclose(done.log_probs[row], log_probs + rest, atol=1e-5)
        stopped = ids[-1] in sampling.stop_token_ids
        assert bool(done.truncated[row]) == (not stopped)
        ended += stopped and len(ids) < sampling.max_new_tokens
    assert 0 < ended < 12 or sampling.max_new_tokens == 1 or sampling.temperature == 0


@pytest.mark.parametrize("slots", [None, 500])
def test_two_tokens_follow_their_joint_distribution(slots):
    """Chi-square of 4,000 completions of two tokens against the exact product of conditionals."""
    params, prompt, count = random_params(1, scale=0.5), [4, 2], 4000
    sampler = Sampler(AverageDecoder(), SamplingConfig(2, temperature=0.7), slots=slots)
    done = sampler.sample(params, *pad_prompts([prompt]), jax.random.key(0), samples_per_prompt=count)

    def probabilities(text):
        last, context = (
            np.asarray(params["last"], np.float64),
            np.asarray(params["context"], np.float64),
        )
        weights = np.exp((last[text[-1]] + context[text].mean(axis=0)) / 0.7)
        return weights / weights.sum()

    first = probabilities(prompt)
    joint = np.array([first[token] * probabilities([*prompt, token]) for token in range(VOCAB)]).ravel()
    counts = np.bincount(np.asarray(done.ids[:, 0] * VOCAB + done.ids[:, 1]), minlength=VOCAB**2)
    rare = joint * count < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(joint[~rare], joint[rare].sum()) * count
    assert len(observed) > 20
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_refilled_slots_change_nothing():
    params, prompts = random_params(scale=0.4), pad_prompts(PROMPTS)
    sampling = SamplingConfig(12, stop_token_ids=(0, 7))
    results = [
        Sampler(AverageDecoder(), sampling, slots=slots).sample(
            params, *prompts, jax.random.key(5), samples_per_prompt=5
        )
        for slots in (None, 7, 1)
    ]
    assert len(set(np.asarray(results[0].lengths).tolist())) > 4
    for other in results[1:]:
        for name in ("ids", "mask", "lengths", "truncated"):
            np.testing.assert_array_equal(getattr(other, name), getattr(results[0], name), err_msg=name)
        np.testing.assert_allclose(other.log_probs, results[0].log_probs, atol=1e-6)


def test_a_completion_does_not_depend_on_its_batch():
    """The same prompts in another order, in parts and behind another padding: equal completions."""
    params, key = random_params(scale=0.4), jax.random.key(8)
    sampler = Sampler(AverageDecoder(), SamplingConfig(12, stop_token_ids=(0,)), slots=4)
    whole = sampler.sample(params, *pad_prompts(PROMPTS), key, samples_per_prompt=3)
    for part in ([2], [3, 1, 0]):
        done = sampler.sample(
            params,
            *pad_prompts([PROMPTS[i] for i in part], 32),
            key,
            samples_per_prompt=3,
            prompt_indices=part,
        )
        rows = np.concatenate([np.arange(3 * i, 3 * i + 3) for i in part])
        np.testing.assert_array_equal(done.ids, whole.ids[rows])
        np.testing.assert_array_equal(done.lengths, whole.lengths[rows])
    ids = np.asarray(whole.ids)
    assert len({tuple(row) for row in ids}) >= 8  # samples of one prompt differ from each other
    again = sampler.sample(params, *pad_prompts(PROMPTS), jax.random.key(9), samples_per_prompt=3)
    assert (np.asarray(again.ids) != ids).any(axis=1).sum() >= 10  # and so does another key


def test_refilling_keeps_the_slots_busy():
    """Lengths from 2 to 16, 64 completions: with 8 slots at least 85 % of row-steps are of use."""

    @dataclasses.dataclass(frozen=True)
    class Countdown(AverageDecoder):
        vocab_size: int = 17

    table = 5 * np.eye(17, dtype=np.float32)[np.maximum(np.arange(17) - 1, 0)]
    params = {"last": table, "context": np.zeros((17, 17), np.float32)}
    wanted = np.random.default_rng(0).integers(2, 17, 64)
    sampling = SamplingConfig(16, temperature=0.0, stop_token_ids=(0,))
    prompts = pad_prompts([[n] for n in wanted])
    refilled = Sampler(Countdown(), sampling, slots=8).sample(params, *prompts, jax.random.key(0))
    together = Sampler(Countdown(), sampling).sample(params, *prompts, jax.random.key(0))
    for done, slots in ((refilled, 8), (together, 64)):
        np.testing.assert_array_equal(done.lengths, wanted)
        assert not done.truncated.any()
        expected = (wanted - 1).sum() / (slots * int(done.decode_steps))  # first tokens come from the prefill
        assert float(done.useful_fraction) == pytest.approx(expected)
    assert float(refilled.useful_fraction) >= 0.85
    assert float(together.useful_fraction) < 0.6
    assert together.decode_steps == wanted.max() - 1  # no pass follows the last token


def test_slots_of_equal_lengths_waste_nothing():
    sampling = SamplingConfig(5, temperature=0.0)
    done = Sampler(AverageDecoder(), sampling, slots=3).sample(
        random_params(), *pad_prompts(PROMPTS), jax.random.key(0), samples_per_prompt=3
    )
    assert done.decode_steps == 4 * 4 and done.useful_fraction == 1.0


def test_completions_that_end_at_once_take_no_step():
    sampling = SamplingConfig(8, temperature=0.0, stop_token_ids=(0,))
    prompts = pad_prompts([[1], [4], [1], [1], [3], [1]])
    for slots in (None, 1, 2):
        done = Sampler(AverageDecoder(), sampling, slots=slots).sample(countdown_params(), *prompts, jax.random.key(0))
        assert done.lengths.tolist() == [1, 4, 1, 1, 3, 1]
        assert done.ids[1].tolist() == [3, 2, 1, 0, 0, 0, 0, 0] and done.mask[1].sum() == 4
    assert (
        Sampler(AverageDecoder(), sampling, slots=2)
        .sample(countdown_params(), *prompts, jax.random.key(0))
        .decode_steps
        == 3
    )  # the two others run side by side
    none = Sampler(AverageDecoder(), sampling).sample(countdown_params(), *pad_prompts([[1]]), jax.random.key(0))
    assert none.decode_steps == 0 and none.useful_fraction == 1.0


def test_stop_strings_end_a_completion_with_the_token_that_completes_them():
    """The countdown 9, 8, ... spells text; "llo w" spreads over three tokens."""
    pieces = [b"!", b"d", b"orl", b" w", b"o", b"ell", b"H", b"", b"> ", b"", b"?"]
    tokenizer = types.SimpleNamespace(token_bytes=lambda: pieces)

    def lengths(*strings, slots=2, **settings):
        sampling = SamplingConfig(10, temperature=0.0, stop_strings=strings, **settings)
        sampler = Sampler(AverageDecoder(), sampling, slots=slots, tokenizer=tokenizer)
        done = sampler.sample(countdown_params(), *pad_prompts([[9], [6], [2], [10]]), jax.random.key(0))
        return done.lengths.tolist(), done.truncated.tolist()

    # "> Hello world!" from 9; "ello world!" from 6; "d!!!" from 2; "> Hello" from 10
    for slots in (None, 2):
        assert lengths("llo w", slots=slots) == ([6, 3, 10, 7], [False, False, True, False])
    assert lengths("d!", "Hel") == ([4, 6, 2, 5], [False] * 4)
    assert lengths("d!", "Hel", stop_token_ids=(4,)) == ([4, 2, 2, 5], [False] * 4)
    assert lengths("hello") == ([10] * 4, [True] * 4)


def test_one_program_per_bucket_and_one_prefill_per_prompt():
    decoder = AverageDecoder(max_positions=63)  # differs from other tests, hence not compiled yet
    sampling = SamplingConfig(4)
    CALLS.clear()
    for lengths in ([3, 9], [16, 1], [5, 5], [17, 2], [30, 32]):
        prompts = pad_prompts([[1] * length for length in lengths], multiple=16)
        Sampler(decoder, sampling, slots=5).sample(random_params(), *prompts, jax.random.key(0), samples_per_prompt=4)
        Sampler(decoder, sampling, slots=5).sample(random_params(2), *prompts, jax.random.key(1), samples_per_prompt=4)
    assert CALLS["prefill"] == CALLS["decode_params"] == 2  # widths 16 and 32
    assert CALLS["prefilled rows"] == 4  # two prompts each, not eight completions


def test_bucket_length_and_padding():
    assert [bucket_length([n, 1], 16) for n in (1, 15, 16, 17, 33)] == [16, 16, 16, 32, 48]
    assert bucket_length(np.array([7, 3]), multiple=1) == 7
    prompts, lengths = pad_prompts([[5, 6], [7]], multiple=4)
    assert prompts.tolist() == [[5, 6, 0, 0], [7, 0, 0, 0]] and lengths.tolist() == [2, 1]


def test_bad_prompts_are_named():
    sampler = Sampler(AverageDecoder(max_positions=20), SamplingConfig(8))
    key, params = jax.random.key(0), random_params()
    with pytest.raises(UserError, match="prompt 1 is empty"):
        sampler.sample(params, *pad_prompts([[1], []]), key)
    with pytest.raises(UserError, match="no prompts"):
        sampler.sample(params, np.zeros((0, 4), np.int32), np.zeros((0,), np.int32), key)
    with pytest.raises(
        UserError,
        match=r"13 tokens and max_new_tokens is 8, together 21.*max_positions is 20; shorten",
    ):
        sampler.sample(params, *pad_prompts([[1], [1] * 13]), key)
    sampler.sample(params, *pad_prompts([[1], [1] * 12]), key)  # 20 fit, though the bucket is wider
    with pytest.raises(UserError, match="prompt 0 has 5 tokens by its length, but a row holds 4"):
        sampler.sample(params, np.ones((1, 4), np.int32), np.array([5]), key)
    with pytest.raises(UserError, match="samples_per_prompt=0"):
        sampler.sample(params, *pad_prompts([[1]]), key, samples_per_prompt=0)


def test_bad_settings_are_named():
    with pytest.raises(UserError, match="slots=0"):
        Sampler(AverageDecoder(), SamplingConfig(8), slots=0)
    with pytest.raises(UserError, match=r"stop_token_ids contains 11.*11 tokens"):
        Sampler(AverageDecoder(), SamplingConfig(8, stop_token_ids=(11,)))
    with pytest.raises(UserError, match="tokenizer"):
        Sampler(AverageDecoder(), SamplingConfig(8, stop_strings=("x",)))
    with pytest.raises(UserError, match="'abc' is one string"):
        SamplingConfig(8, stop_strings="abc")
    for name, value in (
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.5),
    ):
        with pytest.raises(UserError, match=f"{name}="):
            SamplingConfig(**{"max_new_tokens": 8, name: value})
    assert SamplingConfig(8, stop_token_ids=[1, 2]) == SamplingConfig(8, stop_token_ids=(1, 2))
