import dataclasses

import pytest

from jaxalign.errors import UserError
from jaxalign.models.config import NAMED, named


def test_named_sizes_and_numbers_of_ones_own():
    assert named("qwen3_8b") == NAMED["qwen3_8b"]
    small = named("gemma3_1b?num_layers=2&embed_dim=64")
    assert small == dataclasses.replace(NAMED["gemma3_1b"], num_layers=2, embed_dim=64)


@pytest.mark.parametrize(
    "item", ["layers=1", "num_layers", "num_layers=0", "num_layers=two", "rope_theta=10", "num_layers=-1"]
)
def test_what_is_no_number_of_a_decoder_is_named(item):
    with pytest.raises(
        UserError, match=f"'{item}' is not of the form name=number, with a name of vocab_size, num_layers"
    ):
        named(f"tiny_qwen3?{item}")


def test_heads_that_do_not_divide_are_named():
    with pytest.raises(UserError, match="num_kv_heads=2 does not divide num_heads=3"):
        named("tiny_qwen3?num_heads=3")


def test_an_unknown_size_is_named():
    with pytest.raises(UserError, match="'huge'; known are qwen3_0_6b"):
        named("huge?num_layers=1")
