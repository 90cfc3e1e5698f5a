"""Test-time matching (configs/ttm.py) in a world where order matters little.

Settings: raw (nothing is learned), simple (SimpleMatch), and the schedules of the threshold decay, constant, rising.
Those of one seed start from the same towers and groups.
"""

import functools

from configs import ttm
from experiments import matching

SETTINGS = ("raw", "simple", "decay", "constant", "rising")


@functools.lru_cache(maxsize=1)
def _start(seed: int, training: int):
    """(groups, towers, their first parameters)."""
    config = ttm.get_config()
    config.seed, config.source.steps = seed, training
    groups = matching.load_groups(config.data.groups, config)
    towers = matching.make_towers(config, groups)
    return groups, towers, matching.pretrain(towers, config, matching.load_pairs(config.data.pairs, config))


def run(setting: str, seed: int, *, steps: int | None = None, training: int = 150) -> dict[str, float]:
    """GroupScore and GroupMatch at the end, and GroupMatch minus GroupScore.

    steps: iterations, in place of the config's. training: steps of the towers on pairs.
    """
    config = ttm.get_config(setting if setting in ttm.SCHEDULES else None)
    config.seed = seed
    groups, towers, params = _start(seed, training)
    adaptation = matching.Matching(config, towers, groups)
    iterations = 0 if setting == "raw" else steps or config.train.steps
    state = adaptation.begin(params)
    for iteration in range(iterations):
        state, _ = adaptation.advance(state, iteration)
    scores = {name: float(values.mean()) for name, values in adaptation.scores(state.params).items()}
    return {
        "group_score": scores["group"],
        "group_match": scores["group_match"],
        "match_minus_score": scores["group_match"] - scores["group"],
    }
