"""Human judgements of harm as preference pairs: the scored responses that the `pyrit` package ships.

Answers of language models to (mostly harmful) requests, each with human scores of its harm in [0, 1]. Two answers to
the same request whose mean scores differ are a pair; the less harmful one is chosen. The files are read where the
installed package keeps them; the package itself is never imported.
"""

import csv
import itertools
import pathlib
from collections import defaultdict

from jaxalign.data.hashing import digest, share
from jaxalign.data.installed import installed_path
from jaxalign.data.rows import Rows
from jaxalign.errors import UserError


class HarmPairs(Rows):
    """A source of {'prompt', 'chosen', 'rejected', 'chosen_score', 'rejected_score', 'category', 'annotator', 'id',
    'objectives': {'harmless': 1}}.

    Scores are minus the harm, so that more is better. All pairs of one request fall on the same side of the split,
    which follows from a hash of (seed, request); `per_prompt` limits how many pairs one request gives (the first ones
    in the order of a hash), as a few requests have dozens of answers.

    Args:
      split: "train", "held_out" or "all".
      held_out: share of requests that are held out.
      seed: of the split and the order.
      per_prompt: at most so many pairs of one request; 0 takes all.
      least_difference: of the two scores, in (0, 1].
      by_annotator: pairs of each annotator's own scores, who is named "file/column"; the same answers may then make
        several pairs, and contradicting ones. (That a column of a file is one person is what its form suggests; the
        package does not say so.) Without it scores are means over annotators, and the annotator is "".
      folder: of the CSV files; by default that of the installed package.

    Raises UserError: no such package, split or share, nothing left.
    """

    def __init__(
        self,
        split: str = "train",
        held_out: float = 0.2,
        seed: int = 0,
        per_prompt: int = 0,
        least_difference: float = 0.0,
        by_annotator: bool = False,
        folder: str | None = None,
    ):
        if split not in ("train", "held_out", "all"):
            raise UserError(f"harm_pairs split {split!r} is not known; choose train, held_out or all")
        if not 0 <= held_out < 1 or per_prompt < 0:
            raise UserError(f"harm_pairs held_out={held_out} must be in [0, 1) and per_prompt={per_prompt} at least 0")
        if folder is None:
            folder = installed_path("harm_pairs", "pyrit==1.1.0", "datasets", "scorer_evals", "harm", size="10 MB")
        answers = _answers(pathlib.Path(folder), by_annotator)
        rows = []
        for (annotator, prompt), found in answers.items():
            side = "held_out" if share(seed, prompt) < held_out else "train"
            if split in (side, "all"):
                pairs = _pairs_of(prompt, found, seed, per_prompt, least_difference)
                rows += [row | {"annotator": annotator} for row in pairs]
        shown = ("prompt", "chosen", "rejected", *(("annotator",) if by_annotator else ()))
        rows.sort(key=lambda row: digest(seed, "\0".join(row[name] for name in shown)))
        if not rows:
            raise UserError(f"harm_pairs has no pair in split {split!r} with least_difference={least_difference}")
        super().__init__((row | {"id": index} for index, row in enumerate(rows)), f"harm_pairs ({split})")


def _answers(folder: pathlib.Path, by_annotator: bool) -> dict[tuple[str, str], dict[str, tuple[float, str]]]:
    """(annotator or "", request) -> answer -> (mean human score of harm, category)."""
    scores: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    category = {}
    for path in sorted(folder.glob("*.csv")):
        if path.name.startswith("mini_"):  # rows of another file again
            continue
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            first = file.readline()
            if not first.startswith("#"):  # some versions have no line of versions
                file.seek(0)
            for row in csv.DictReader(file):
                prompt, answer = (row.get("objective") or "").strip(), (row.get("assistant_response") or "").strip()
                found = [
                    (f"{path.stem}/{name}" if by_annotator else "", float(value))
                    for name, value in row.items()
                    if (name or "").startswith("human_score") and value
                ]
                if prompt and answer and found and (row.get("data_type") or "text") == "text":
                    for annotator, score in found:
                        scores[annotator, prompt][answer].append(score)
                    category.setdefault(prompt, (row.get("harm_category") or "").lower())
    if not scores:
        raise UserError(f"{folder} has no CSV files with the columns objective, assistant_response and human_score")
    return {
        (annotator, prompt): {answer: (sum(found) / len(found), category[prompt]) for answer, found in answers.items()}
        for (annotator, prompt), answers in scores.items()
    }


def _pairs_of(prompt, answers, seed, per_prompt, least_difference) -> list[dict]:
    rows = []
    for (one, (harm, kind)), (other, (other_harm, _)) in itertools.combinations(answers.items(), 2):
        if harm == other_harm or abs(harm - other_harm) < least_difference:
            continue
        better, worse = (one, other) if harm < other_harm else (other, one)
        low, high = sorted((harm, other_harm))
        rows.append(
            {
                "prompt": prompt,
                "chosen": better,
                "rejected": worse,
                "chosen_score": -low,
                "rejected_score": -high,
                "category": kind,
                "objectives": {"harmless": 1},
            }
        )
    rows.sort(key=lambda row: digest(seed, row["chosen"] + "\0" + row["rejected"]))
    return rows[:per_prompt] if per_prompt else rows
