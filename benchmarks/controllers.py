"""What the controllers of prompts cost in a step: SPO, Prompt-GDRO and Rollout-GDRO, over few and over many questions.

Everything that `experiments.curriculum` does in a step is timed: choosing prompts, planning, weighing and learning. Not
in it is what SPO's drift needs from the model, the log-probs of two completions a prompt. The figure is set against a
GRPO step of SmolLM2-135M as `benchmarks.grpo_step` measures it here, which is given by --step.
"""

import statistics
import time

import numpy as np

from benchmarks import common

ROUNDS = 30


def rollout(config, random, counts):
    """A rollout of random outcomes, as `experiments.rollout` would hand it on."""
    from experiments.groups import Groups
    from experiments.rollout import Rollout

    prompts, width, time_ = len(counts), int(counts.max()), config.rollout.max_new_tokens
    rows = (prompts, width)
    outcomes = np.where(np.arange(width) < counts[:, None], random.integers(0, 2, rows), np.nan).astype(np.float32)
    mask = np.ones((*rows, time_), np.float32)
    batch = Groups(
        np.zeros((prompts, 32), np.int32), np.full(prompts, 32, np.int32), np.zeros(mask.shape, np.int32), mask,
        np.nan_to_num(outcomes), np.zeros(prompts, np.float32), None, None,
    )  # fmt: skip
    return Rollout(batch, {}, [], None, np.arange(prompts), outcomes, np.nan_to_num(outcomes), np.ones(prompts, bool))


class Worker:
    """Scores at once: the model's part is not measured."""

    def score(self, params, prompts, lengths, ids, mask):
        return np.zeros(mask.shape, np.float32)


def seconds(spec: str, questions: int) -> float:
    """Median of a step's controllers."""
    import jax

    from experiments.curriculum import Curriculum
    from jaxalign.training.configuration import load_config

    config = load_config(spec)
    curriculum, random = Curriculum(config, questions), np.random.default_rng(0)
    memory = curriculum.start(np.ones((2, questions, max(curriculum.trials, 1)), np.float32))
    found = []
    for step in range(ROUNDS + 5):
        drawn = None
        began = time.perf_counter()
        indices = curriculum.choose(memory, step)
        if indices is None:
            indices = np.arange(step * config.rollout.prompts_per_step, (step + 1) * config.rollout.prompts_per_step)
            indices = indices % questions
        memory, known, plan = curriculum.plan(memory, indices)
        planned = time.perf_counter()
        counts = np.full(len(indices), config.rollout.group_size) if plan.completions is None else plan.completions
        drawn = rollout(config, random, np.asarray(counts))
        resumed = time.perf_counter()
        memory, _, _ = curriculum.weigh(memory, known, drawn)
        memory, _ = curriculum.learn(memory, known, drawn, None, Worker())
        jax.block_until_ready(memory)
        found.append(planned - began + time.perf_counter() - resumed)
    return statistics.median(found[5:])


def main() -> None:
    parser = common.parser(__doc__, rounds=1)
    parser.add_argument("--step", type=float, default=2.83, help="seconds of a GRPO step here (default %(default)s)")
    arguments = parser.parse_args()
    common.print_machine()
    rows, worst = [], 0.0
    for name, spec in {
        "SPO": "configs/spo.py",
        "Prompt-GDRO": "configs/gdro.py",
        "Rollout-GDRO": "configs/gdro.py:rollout",
    }.items():
        for questions in (1_000, 100_000):
            taken = seconds(spec, questions)
            worst = max(worst, taken)
            rows.append([name, f"{questions:,}", f"{1000 * taken:.1f} ms", f"{100 * taken / arguments.step:.2f} %"])
    common.print_table(("", "questions", "controllers", "of a step"), rows)
    common.print_target("the dearest", 100 * worst / arguments.step, 1, "% of a step")


if __name__ == "__main__":
    main()
