"""Similarities that people gave to pairs of texts, from the files that the `gensim` package ships.

| name       | pairs                                                          | scale | paper                        |
|------------|----------------------------------------------------------------|-------|------------------------------|
| lee50      | 1,225 pairs of 50 short news texts                             | 0-1   | Lee, Pincombe, Welsh (2005)  |
| simlex999  | 999 pairs of words, similar rather than related                | 0-10  | Hill et al., arXiv 1408.3456 |
| wordsim353 | 353 pairs of words, similar or related                         | 0-10  | Finkelstein et al. (2001)    |
"""

import itertools
import pathlib

from jaxalign.data.installed import installed_path
from jaxalign.data.rows import Rows
from jaxalign.errors import UserError

_WORDS = {"simlex999": "simlex999.txt", "wordsim353": "wordsim353.tsv"}
SETS = ("lee50", *_WORDS)


class Similarities(Rows):
    """A source of {'first', 'second', 'score', 'id'}: two texts and how similar people found them.

    Args:
      name: one of `SETS`.
      folder: of the files; by default that of the installed package.

    Raises UserError: no such name, package or file, a line of another form.
    """

    def __init__(self, name: str, folder: str | None = None):
        if name not in SETS:
            raise UserError(f"similarities name {name!r} is not known; choose one of {', '.join(SETS)}")
        if folder is None:
            place = installed_path("similarities", "gensim==4.4.0", "test", "test_data", size="28 MB")
        else:
            place = pathlib.Path(folder)
        rows = _lee50(place) if name == "lee50" else _words(place / _WORDS[name])
        columns = ("first", "second", "score")
        rows = (dict(zip(columns, row, strict=True)) | {"id": index} for index, row in enumerate(rows))
        super().__init__(rows, f"similarities ({name})")


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _words(path: pathlib.Path) -> list[tuple[str, str, float]]:
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        if line.startswith("#"):
            continue
        try:
            first, second, similarity = line.split("\t")
            rows.append((first, second, float(similarity)))
        except ValueError as error:
            raise UserError(f"{path}:{number}: {line[:60]!r} is not two words and a number between tabs") from error
    return rows


def _lee50(folder: pathlib.Path) -> list[tuple[str, str, float]]:
    """Every pair of texts once, from the square table of mean judgements."""
    texts, path = _lines(folder / "lee.cor"), folder / "similarities0-1.txt"
    try:
        table = [[float(value) for value in line.split("\t")] for line in _lines(path)]
    except ValueError as error:
        raise UserError(f"{path} is not a table of numbers between tabs: {error}") from error
    if [len(row) for row in table] != [len(texts)] * len(texts):
        raise UserError(f"{path} has no square table of the {len(texts)} texts of {folder / 'lee.cor'}")
    return [(texts[i], texts[j], table[i][j]) for i, j in itertools.combinations(range(len(texts)), 2)]
