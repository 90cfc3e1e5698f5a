"""What claims are made of: arms, expectations, seeds (`python -m experiments.compare`)."""

import ml_collections


def arm(spec: str, *overrides: str, start: str = "") -> ml_collections.ConfigDict:
    """One side of a comparison: FILE[:ARGUMENT] of experiments.run and overrides like "optimizer.learning_rate=0.1".

    `start` names one of the claim's `starts`, whose model the arm begins with; "": it makes its own beginning.
    """
    return ml_collections.ConfigDict({"config": spec, "overrides": overrides, "start": start})


def study(module: str, setting: str) -> ml_collections.ConfigDict:
    """One side of a comparison made by a study: `run(setting, seed) -> metrics` of a module of experiments/studies."""
    return ml_collections.ConfigDict({"study": module, "setting": setting})


def expectation(
    metric: str, arm: str, direction: str, against: str, by: float = 0.0, *, unsolved_by: str = ""
) -> ml_collections.ConfigDict:
    """What must be seen: the metric of `arm` is "higher" or "lower" than that of `against` by more than `by`.

    With `unsolved_by`, an arm: on the questions alone that score 0 there.
    """
    return ml_collections.ConfigDict(
        {
            "metric": metric,
            "arm": arm,
            "direction": direction,
            "against": against,
            "by": by,
            "unsolved_by": unsolved_by,
        }
    )


def claim(name: str, statement: str, seeds: tuple[int, ...] = (0, 1, 2)) -> ml_collections.ConfigDict:
    """A comparison for experiments.compare; its arms and expectations are added by name."""
    config = ml_collections.ConfigDict()
    config.name = name
    config.statement = statement
    config.seeds = seeds
    config.last_steps = 10  # of a metric that is logged each step, the mean of so many last values is compared
    # Arms too, but run once, with seed 0 unless they override it, and exported: what other arms begin with, so that
    # all of them and all seeds have the same room. (A warm start of their own differs by seed.)
    config.starts = ml_collections.ConfigDict()
    config.arms = ml_collections.ConfigDict()
    config.expectations = ml_collections.ConfigDict()
    return config
