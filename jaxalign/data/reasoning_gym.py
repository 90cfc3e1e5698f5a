"""Any generator of the `reasoning-gym` package as a source, and its own scoring as a reward.

The package is imported when a source or a score is asked for (it takes seconds).
"""

import functools
import hashlib
import re
import warnings

from jaxalign.errors import UserError

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGym:
    """A source of {'prompt': str, 'answer': str, 'id': int, 'entry': dict}.

    `entry` is what the scorer wants.

    Without a split, examples are generated when they are read. With one, all `size` items are
    generated at once, repeated questions are dropped, and a hash of the question's text says on
    which side it falls: the two splits share no question whatever their seeds and sizes. (Questions
    that say the same in other words may still fall apart.)

    Args:
        name: of the generator, e.g. "chain_sum".
        size: how many items are generated.
        seed: of the generator.
        split: None, "train" or "held_out".
        held_out: share of the held-out split.
        **options: the generator's own options.

    Raises UserError: reasoning-gym is missing, unknown generator or option, empty split.
    """

    def __init__(
        self,
        name: str,
        size: int = 1000,
        seed: int = 0,
        split: str | None = None,
        held_out: float = 0.2,
        **options,
    ):
        if split not in (None, "train", "held_out"):
            raise UserError(f"reasoning_gym split {split!r} is not known; choose train or held_out, or leave it out")
        try:
            self._data = _package().create_dataset(name, size=size, seed=seed, **options)
        except (ValueError, TypeError, AssertionError) as error:
            raise UserError(f"reasoning_gym:{name} cannot be made: {error}") from error
        self.name = name
        self._indices = range(size) if split is None else self._side(split, held_out, size)
        if not len(self._indices):
            raise UserError(f"reasoning_gym:{name} split {split!r} is empty; size={size} is too small")

    def _side(self, split: str, held_out: float, size: int) -> list[int]:
        seen, kept = set(), []
        for index in range(size):
            question = self._data[index]["question"]
            digest = hashlib.sha256(" ".join(question.split()).encode()).digest()
            if digest not in seen:
                seen.add(digest)
                is_held_out = int.from_bytes(digest[:8]) < held_out * 2**64
                if is_held_out == (split == "held_out"):
                    kept.append(index)
        return kept

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:
        number = self._indices[index]
        entry = self._data[number]
        answer = "" if entry["answer"] is None else str(entry["answer"])
        # Several generators share one scorer of their module; the entry remembers whose it is.
        entry = {**entry, "metadata": {**entry["metadata"], "source_dataset": self.name}}
        return {"prompt": entry["question"], "answer": answer, "id": number, "entry": entry}

    def where(self, index: int) -> str:
        return f"reasoning_gym:{self.name} row {index}"


def score(prompt: str, completion: str, example: dict) -> float:
    """The generator's own score of a completion, usually in [0, 1].

    As a reward it is named `jaxalign.data.reasoning_gym:score`.

    What is scored is the last `<answer>...</answer>` of the completion, or else the whole
    completion without the white space around it. An answer that the scorer cannot parse (some raise
    on text that is no number) is worth 0.
    """
    del prompt
    entry = example["entry"]
    answers = _TAGGED.findall(completion)
    answer = (answers[-1] if answers else completion).strip()
    try:
        return float(_scorer(entry["metadata"]["source_dataset"])(answer=answer, entry=entry))
    except (ValueError, TypeError, ArithmeticError, LookupError, SyntaxError):
        return 0.0


@functools.cache
def _scorer(name: str):
    return _package().get_score_answer_fn(name)


def _package():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # from a dependency's source, at its first compilation
            import reasoning_gym
    except ImportError as error:
        raise UserError(f"the reasoning_gym source needs the package reasoning-gym (pip install): {error}") from error
    return reasoning_gym
