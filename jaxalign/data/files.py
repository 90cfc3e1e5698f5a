"""Examples from files: JSON Lines, Parquet, and the folders that `datasets.save_to_disk` writes.

Each class is a source: `len(source)`, `source[i] -> dict`, and `source.where(i)`, which says in words where example i
comes from, for error messages.
"""

import json
import pathlib

import numpy as np

from jaxalign.errors import UserError


class JsonLines:
    """One JSON object per line, UTF-8; blank lines are skipped.

    Every line is parsed once when the source is opened, so that a broken line is an error before
    training and not in the middle of it. Only the byte offset of each example is kept; reading
    opens the file anew, which makes the source safe to use from threads and to send to other
    processes.

    Args:
        path: of the file.
        on_broken: "error", or "skip" for leaving lines out that are not JSON objects; what was wrong
            with them is then in `broken`, one message each.

    Raises UserError: no such file, no example in it, or a line that is not a JSON object (file and
    line are named).
    """

    def __init__(self, path: str | pathlib.Path, on_broken: str = "error"):
        if on_broken not in ("error", "skip"):
            raise UserError(f"on_broken={on_broken!r} of {path} is not known; use error or skip")
        self.path = pathlib.Path(path)
        self.broken: list[str] = []
        offsets, lines = [], []
        try:
            with open(self.path, "rb") as file:
                offset = 0
                for number, line in enumerate(file, start=1):
                    if line.strip(b"\xef\xbb\xbf \t\r\n"):
                        try:
                            self._parse(line, number)
                        except UserError as error:
                            if on_broken == "error":
                                raise
                            self.broken.append(str(error))
                        else:
                            offsets.append(offset)
                            lines.append(number)
                    offset += len(line)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
        if not offsets:
            raise UserError(f"{self.path} has no examples: expected one JSON object per line")
        self._offsets = np.asarray(offsets, np.int64)
        self._lines = np.asarray(lines, np.int64)

    def _parse(self, line: bytes, number: int) -> dict:
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:  # broken JSON and broken UTF-8 alike
            raise UserError(f"{self.path}:{number} is not valid JSON ({error}); fix or remove the line") from error
        if not isinstance(value, dict):
            raise UserError(
                f"{self.path}:{number} holds a JSON {type(value).__name__}; each line "
                'must be an object such as {"prompt": "...", "answer": "..."}'
            )
        return value

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> dict:
        with open(self.path, "rb") as file:
            file.seek(int(self._offsets[index]))
            return self._parse(file.readline(), int(self._lines[index]))

    def where(self, index: int) -> str:
        return f"{self.path}:{self._lines[index]}"


class ArrowRows:
    """Rows of an Arrow table; access to one costs a binary search, however many chunks it has."""

    def __init__(self, table, name: str):
        if not table.num_rows:
            raise UserError(f"{name} has no rows")
        self.name = name
        self._batches = table.to_batches()
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]  # negative indices, IndexError
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[chunk]
        return batch.slice(index - int(self._ends[chunk]) + batch.num_rows, 1).to_pylist()[0]

    def where(self, index: int) -> str:
        return f"{self.name} row {index}"


def parquet(path: str | pathlib.Path) -> ArrowRows:
    """A Parquet file, decoded into memory: its compressed columns cannot be read row by row.

    Raises UserError if the file is missing or is not Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        # ParquetFile and not read_table: the latter reads "key=value" folder names as columns.
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UserError(f"cannot read {path} as Parquet: {_first_line(error)}") from error
    return ArrowRows(table, str(path))


def saved_dataset(path: str | pathlib.Path, split: str | None = None) -> ArrowRows:
    """A folder written by `save_to_disk` of Hugging Face `datasets`, read by memory mapping.

    Args:
        path: folder of one dataset (`state.json`) or of several splits (`dataset_dict.json`).
        split: which split; needed where there is more than one.

    Raises UserError: not such a folder, unknown or missing split, damaged files.
    """
    import pyarrow

    folder = pathlib.Path(path)
    if (folder / "dataset_dict.json").is_file():
        splits = _read_json(folder / "dataset_dict.json").get("splits", [])
        if split is None and len(splits) == 1:
            split = splits[0]
        if split not in splits:
            raise UserError(f"{folder} has the splits {', '.join(splits)}; choose one by split=..., not {split!r}")
        folder = folder / split
    elif split is not None:
        raise UserError(f"{folder} is a single dataset without splits; leave split={split!r} out")
    if not (folder / "state.json").is_file():
        raise UserError(f"{folder} has no state.json, so it was not written by datasets' save_to_disk")
    state = _read_json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise UserError(f"{folder} stores a selection of rows; call flatten_indices() before save_to_disk")
    tables = []
    for entry in state.get("_data_files", []):
        file = folder / entry["filename"]
        try:
            tables.append(_read_arrow(file))
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise UserError(f"cannot read {file}: {_first_line(error)}") from error
    if not tables:
        raise UserError(f"{folder} names no data files in its state.json")
    return ArrowRows(pyarrow.concat_tables(tables), str(folder))


def _read_arrow(path: pathlib.Path):
    """`datasets` writes the stream form; the file form is accepted too."""
    import pyarrow

    mapped = pyarrow.memory_map(str(path))
    try:
        return pyarrow.ipc.open_stream(mapped).read_all()
    except pyarrow.ArrowInvalid:
        mapped.seek(0)
        return pyarrow.ipc.open_file(mapped).read_all()


def _read_json(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
