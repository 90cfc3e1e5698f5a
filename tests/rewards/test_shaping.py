import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.rewards.shaping import overlong_penalty


def test_overlong_penalty_has_three_pieces():
    """Free up to 15, then one quarter for every token of the buffer of 4... and -1 from 20 on."""
    lengths = np.array([0, 15, 16, 17, 18, 19, 20, 21, 1000])
    expected = []
    for n in lengths:
        if n <= 20 - 4:
            expected.append(0.0)
        elif n <= 20:
            expected.append((16 - n) / 4)
        else:
            expected.append(-1.0)
    np.testing.assert_allclose(overlong_penalty(lengths, 20, 4), expected)
    with pytest.raises(UserError, match="buffer of 21 tokens"):
        overlong_penalty(lengths, 20, 21)
