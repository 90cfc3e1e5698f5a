"""Preference pairs of a model's own samples on checkable questions, ranked by the verifier."""

import json
import os
from pathlib import Path

import jax
import numpy as np

from experiments.questions import PROMPT_BUCKET, Questions, completion_texts, score_completions
from experiments.session import Session
from experiments.setup import Model
from jaxalign.decoding.sampler import Sampler, SamplingConfig, pad_prompts
from jaxalign.errors import UserError
from jaxalign.rewards.runner import RewardRunner
from jaxalign.training.mesh import all_processes, gather


def sample_pairs(config, model: Model, params, rewards: RewardRunner, path: Path, session: Session) -> None:
    """Writes pairs as JSON lines of ids and texts to `path`, all at once when they are complete.

    All processes of a run take part; the first one writes.

    The questions are those of `config.data.source`. Of each the best and the worst completion by the first reward are a
    pair, then the next of both ends, up to `config.samples.pairs_per_question` different ones; completions of equal
    reward, and those that could not be scored, are none. As objectives a pair is judged by "correct", the first reward,
    and by every other reward under its name.

    Raises UserError: not a single pair.
    """
    options = config.samples
    questions = Questions(config.data.source, model.tokenizer, config.data, "source")
    count = min(options.questions or len(questions), len(questions))
    sampling = SamplingConfig(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        stop_token_ids=tuple(model.tokenizer.eos_ids),
    )
    sampler = Sampler(model.decoder, sampling, slots=options.slots or None, mesh=model.mesh)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    judges = ("correct", *rewards.names[1:])
    lines, solved = [], []
    session.print(f"  sampling {options.per_question} completions of each of {count} questions ...")
    for start in range(0, count, options.questions_at_once):
        batch = [questions[index] for index in range(start, min(start + options.questions_at_once, count))]
        prompts, lengths = pad_prompts([question["prompt_ids"] for question in batch], PROMPT_BUCKET)
        found = sampler.sample(
            params, prompts, lengths, jax.random.fold_in(key, start), samples_per_prompt=options.per_question
        )
        found = gather(found)
        texts = completion_texts(model.tokenizer, found.ids, found.lengths)
        repeated = [question for question in batch for _ in range(options.per_question)]
        each = score_completions(rewards, texts, repeated).rewards
        scores = each[:, 0]
        solved.append(np.nan_to_num(scores))
        for number, question in enumerate(batch):
            own = range(number * options.per_question, (number + 1) * options.per_question)
            ranked = sorted((row for row in own if not np.isnan(scores[row])), key=lambda row: -scores[row])
            seen: list[list] = []
            for best, worst in zip(ranked, reversed(ranked), strict=True):
                ids = [found.ids[row][: found.lengths[row]].tolist() for row in (best, worst)]
                if scores[best] > scores[worst] and ids not in seen and len(seen) < options.pairs_per_question:
                    seen.append(ids)
                    signs = np.nan_to_num(np.sign(each[best] - each[worst])).astype(int).tolist()
                    lines.append(
                        {
                            "prompt": question["prompt"],
                            "chosen": texts[best],
                            "rejected": texts[worst],
                            "chosen_score": float(scores[best]),
                            "rejected_score": float(scores[worst]),
                            "objectives": dict(zip(judges, signs, strict=True)),
                            "prompt_ids": question["prompt_ids"],
                            "chosen_ids": ids[0],
                            "rejected_ids": ids[1],
                        }
                    )
    rate = float(np.concatenate(solved).mean())
    if not lines:
        raise UserError(
            f"the model's own samples on {config.data.source} give no pair: the completions of each of {count} "
            f"questions all have the same reward (mean {rate:.3g}); take other questions or raise "
            "config.samples.per_question"
        )
    if jax.process_index() == 0:
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        os.replace(partial, path)
    all_processes(np.zeros(()))  # nobody reads before it is written
    session.print(f"  own samples: mean reward {rate:.3f}, {len(lines)} pairs in {path}")
