"""`load_source`: from a line in a config to a source of examples.

A source is anything with `len(source)` and `source[i] -> dict`; that is what grain reads and what a
list of dicts already is. Those of this package also have `where(i)`, which says in words where an
example comes from.
"""

import bisect
import glob
import importlib
import inspect
import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from jaxalign.errors import UserError


class Source(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


# kind -> "module:callable"; imported on use, so that a JSONL file needs neither pyarrow nor TFDS
KINDS = {
    "jsonl": "jaxalign.data.files:JsonLines",
    "parquet": "jaxalign.data.files:parquet",
    "saved_dataset": "jaxalign.data.files:saved_dataset",
    "tfds": "jaxalign.data.tfds_source:TfdsSource",
    "arithmetic": "jaxalign.data.arithmetic:Arithmetic",
    "arithmetic_pairs": "jaxalign.data.arithmetic:ArithmeticPairs",
    "harm_pairs": "jaxalign.data.harm_pairs:HarmPairs",
    "boolq": "jaxalign.data.boolq:BoolQ",
    "similarities": "jaxalign.data.similarities:Similarities",
    "view_pairs": "jaxalign.data.view_pairs:ViewPairs",
    "view_groups": "jaxalign.data.view_pairs:ViewGroups",
    "number_words": "jaxalign.data.view_pairs:NumberWords",
    "concept_pairs": "jaxalign.data.concept_world:ConceptPairs",
    "text_graph": "jaxalign.data.text_graphs:TextGraphNodes",
    "drawn_digits": "jaxalign.data.digits:DrawnDigits",
    "digits": "jaxalign.data.digits:ScannedDigits",
    "reasoning_gym": "jaxalign.data.reasoning_gym:ReasoningGym",
}
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def load_source(spec: str | Mapping[str, Any]) -> Source:
    """Opens the source that a string or a mapping describes.

    As a string, with options after "?":
        "data/train.jsonl", "data/*.parquet"        a file, or all that match, in order of name
        "data/my_dataset?split=train"               a folder of `datasets.save_to_disk`
        "tfds:name:1.0.0?split=train&data_dir=/d"   a prepared TFDS data set
        "arithmetic?split=train"                    questions of `jaxalign.data.arithmetic`
        "arithmetic_pairs?split=train"              the same with a right and a wrong answer
        "harm_pairs?split=train"                    human judgements of harm (`jaxalign.data.harm_pairs`)
        "boolq?split=train"                         questions and their passages (`jaxalign.data.boolq`)
        "similarities:lee50"                        judged pairs of texts (`jaxalign.data.similarities`)
        "view_pairs?split=train"                    pairs of vectors (`jaxalign.data.view_pairs`)
        "view_groups?split=train"                   the same with several partners each
        "number_words?split=train"                  pairs of texts: numbers in digits and in words
        "concept_pairs?split=train"                 images, captions and embeddings (`jaxalign.data.concept_world`)
        "text_graph?split=train"                    nodes of a graph and their texts (`jaxalign.data.text_graphs`)
        "drawn_digits?split=train&size=900"         pictures of digits (`jaxalign.data.digits`); "digits": scanned ones
        "reasoning_gym:chain_sum?size=500&seed=1"   a generator of reasoning-gym

    As a mapping: the same keys as keyword arguments, and `kind` (a key of `KINDS`) or `path`, from
    which the kind follows. Two keys belong to every kind: `rename`, a mapping {new name: name in
    the source}, and `fields`, the names that each example must have (see `RequiredFields`).

    Raises UserError: unknown kind or option, missing file, and what the source itself finds wrong.
    """
    options = _parse_string(spec) if isinstance(spec, str) else dict(spec.items())
    rename, fields = options.pop("rename", None), options.pop("fields", None)
    kind = options.pop("kind", None)
    if kind is None:
        kind = _kind_of_path(options.get("path"), spec)
    if kind not in KINDS:
        raise UserError(f"data source kind {kind!r} is not known; choose from {', '.join(sorted(KINDS))}")
    source = _open(kind, options)
    if rename:
        source = Renamed(source, rename)
    return RequiredFields(source, fields) if fields else source


def _parse_string(spec: str) -> dict:
    if pathlib.Path(spec).exists():
        return {"path": spec}
    head, _, query = spec.partition("?")
    options: dict = {}
    for item in filter(None, query.split("&")):
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"data source {spec!r}: option {item!r} is not of the form name=value")
        try:
            options[key] = json.loads(text)  # numbers, true, null, lists
        except ValueError:
            options[key] = text
    scheme, _, name = head.partition(":")
    if scheme in KINDS and not pathlib.Path(head).exists():
        options["kind"] = scheme
        if name:
            options["path" if scheme in ("jsonl", "parquet", "saved_dataset") else "name"] = name
    else:
        options["path"] = head
    return options


def _kind_of_path(path: str | None, spec) -> str:
    if path is None:
        raise UserError(f"data source {spec!r} needs a path or a kind ({', '.join(sorted(KINDS))})")
    suffix = pathlib.Path(path).suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if pathlib.Path(path).is_dir():
        return "saved_dataset"
    if not pathlib.Path(path).exists():
        raise UserError(
            f"data source {str(path)!r} does not exist, and is no kind of source ({', '.join(sorted(KINDS))})"
        )
    raise UserError(
        f"data source {str(path)!r}: its suffix does not tell its kind; use .jsonl or .parquet, or name the kind"
    )


def _open(kind: str, options: dict) -> Source:
    module, _, name = KINDS[kind].partition(":")
    opener = getattr(importlib.import_module(module), name)
    parameters = inspect.signature(opener).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for key in options:
        if key not in parameters and not open_ended:
            known = ", ".join(parameters) or "none"
            raise UserError(f"data source of kind {kind!r} has no option {key!r}; it has {known}")
    for key, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if required and key not in options:
            raise UserError(f"data source of kind {kind!r} needs the option {key!r}")
    path = options.get("path")
    if path is not None and glob.has_magic(str(path)) and not pathlib.Path(path).exists():
        paths = sorted(glob.glob(str(path), recursive=True))
        if not paths:
            raise UserError(f"data source {str(path)!r}: no file matches")
        return Concatenated([opener(**{**options, "path": one}) for one in paths])
    return opener(**options)


def where(source: Source, index: int) -> str:
    """Where example `index` comes from, in words, for any source."""
    return source.where(index) if hasattr(source, "where") else f"example {index}"


class Concatenated:
    """Several sources one after the other."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = list(sources)
        self._ends = list(itertools.accumulate(len(source) for source in self._sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, index: int) -> tuple[Source, int]:
        index = range(len(self))[index]
        part = bisect.bisect_right(self._ends, index)
        return self._sources[part], index - (self._ends[part - 1] if part else 0)

    def __getitem__(self, index: int) -> dict:
        source, local = self._locate(index)
        return source[local]

    def where(self, index: int) -> str:
        return where(*self._locate(index))

    @property
    def broken(self) -> list[str]:
        return [message for source in self._sources for message in getattr(source, "broken", [])]


class Renamed:
    """A source with fields renamed: `names` maps new names to old ones. Other fields are kept."""

    def __init__(self, source: Source, names: Mapping[str, str]):
        self._source, self._names = source, dict(names.items())

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        example = self._source[index]
        for old in self._names.values():
            if old not in example:
                raise _missing(self._source, index, example, old)
        old_names = set(self._names.values())
        kept = {key: value for key, value in example.items() if key not in old_names}
        return kept | {new: example[old] for new, old in self._names.items()}

    def where(self, index: int) -> str:
        return where(self._source, index)


class RequiredFields:
    """A source each of whose examples is known to have the given fields, none of them null.

    The first `checked_rows` examples are read at once, so that a wrong column name is found before
    a model is loaded; every later one when it is used.

    Args:
        source: the source to watch.
        fields: names, or a mapping from name to type, e.g. {"prompt": str}.
        checked_rows: how many examples are read at construction.

    Raises UserError naming the file (or source), the row and the field.
    """

    def __init__(
        self,
        source: Source,
        fields: Mapping[str, type | None] | Iterable[str],
        checked_rows: int = 10_000,
    ):
        self._source = source
        self._fields = dict(fields.items()) if hasattr(fields, "items") else dict.fromkeys(fields)
        for index in range(min(len(source), checked_rows)):
            self[index]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        example = self._source[index]
        for field, kind in self._fields.items():
            value = example.get(field)
            if value is None:
                raise _missing(self._source, index, example, field)
            if kind is not None and not isinstance(value, kind):
                raise UserError(
                    f"{where(self._source, index)}: field {field!r} is a {type(value).__name__}, "
                    f"expected {getattr(kind, '__name__', kind)}"
                )
        return example

    def where(self, index: int) -> str:
        return where(self._source, index)


def _missing(source: Source, index: int, example: Mapping, field: str) -> UserError:
    state = "is null" if field in example else "is missing"
    present = ", ".join(map(str, example)) or "no fields"
    return UserError(
        f"{where(source, index)}: field {field!r} {state}; the example has {present} "
        "(the source's rename option maps other names)"
    )
