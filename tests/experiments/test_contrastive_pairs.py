"""The study of paired towers, a few steps of it."""

from experiments.studies import contrastive_pairs


def test_a_few_steps_are_better_than_chance():
    """In two passes over micro-batches, 30 steps find 20 times as many pairs as chance does."""
    found = contrastive_pairs.run("pooled micro-batches", seed=0, steps=30)
    assert 0.02 < found["recall"] <= 1 and found["loss"] > 0
