"""Many texts at a time: their order, their cuts, few compilations."""

import numpy as np
import pytest

from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import UserError
from jaxalign.models import sentences
from jaxalign.models.sentences import cut_tokens, embed_texts, token_rows
from tests.models.test_encoders import word_pieces
from tests.models.tiny_encoders import random_params, text_encoder

TEXTS = ["a", "b c d", "", "a b d a b d a b d", "d a", "bc", "b", "d d d d d d d d d d d d d d"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(word_pieces(32), pad_id=0)


def test_a_cut_text_keeps_its_end(tokenizer):
    assert cut_tokens(tokenizer, ["a b d", "bc"], None) == [[2, 4, 5, 7, 3], [2, 5, 6, 3]]
    assert cut_tokens(tokenizer, ["a b d", "bc"], 4) == [[2, 4, 5, 3], [2, 5, 6, 3]]


def test_rows():
    rows = token_rows([[4, 5, 6], [], [7]], pad_id=9)
    np.testing.assert_array_equal(rows["tokens"], [[4, 5, 6], [9, 9, 9], [7, 9, 9]])
    np.testing.assert_array_equal(rows["lengths"], [3, 0, 1])
    assert token_rows([[4]], 5)["tokens"].shape == (1, 5)
    with pytest.raises(ValueError, match="a row of 2 tokens does not fit 1"):
        token_rows([[4, 5]], 1)


def test_batches_by_length_give_every_text_its_own_embedding(tokenizer):
    encoder = text_encoder()
    params = random_params(encoder)
    before = sentences._embed._cache_size()
    options = dict(max_length=12, batch_tokens=18, lengths=(3, 6))
    found = embed_texts(encoder, params, tokenizer, TEXTS, **options)
    # Rows of 3: 6 at a time, of which there are 3 (filled up to 4); of 6: 3 at a time; of 12: one at a time.
    assert sentences._embed._cache_size() - before == 3
    for text, one in zip(TEXTS, found, strict=True):
        alone = sentences._embed(encoder, params, token_rows(cut_tokens(tokenizer, [text], 12), 12))
        np.testing.assert_allclose(one, alone[0], atol=1e-5, err_msg=text)
    assert embed_texts(encoder, params, tokenizer, [], **options).shape == (0, 16)


def test_wrong_values_are_refused(tokenizer):
    encoder = text_encoder()
    with pytest.raises(UserError, match=r"text 1 has 5 tokens, more than 4; give max_length to cut it"):
        embed_texts(encoder, None, tokenizer, ["a", "a b d"], lengths=(2, 4))
    with pytest.raises(UserError, match=r"came without tokenizer.json"):
        embed_texts(encoder, None, None, ["a"])
