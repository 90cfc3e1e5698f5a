"""The container format GGUF: metadata and tensors of one file, read through a memory map.

The `gguf` package knows the quantisations and dequantises them. Its own reader builds one array object per vocabulary
entry (2 s for 49k tokens) and meets a truncated file with an error about array shapes; the header is simple enough to
be read here in a fraction of that and checked on the way.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf.quants import dequantize

from jaxalign.errors import UserError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_ROWS_AT_ONCE = 4096  # dequantising makes several temporaries of its input's size


class GgufTensor(NamedTuple):
    """Where one tensor lies; `shape` is in numpy's order, rows first."""

    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    row_bytes: int


class GgufFile:
    """An open GGUF file.

    Attributes:
        metadata: key -> int, float, bool, str or list of these.
        tensors: name -> `GgufTensor`.

    Raises:
        UserError: not a GGUF file, a version or byte order that is not read, one part of a split file, or a file that
            ends before its tensors do.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise UserError(f"the GGUF file {self.path} cannot be opened ({error}); check the path") from error
        if self._map[:4] != b"GGUF":
            raise UserError(f"{self.path} is not a GGUF file: it does not begin with the four letters GGUF")
        self._at = 4
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            raise UserError(f"{self.path} is truncated or damaged in its header; download it again") from error

    def _read_header(self) -> None:
        version = self._scalar("<I")
        if version not in (2, 3):
            raise UserError(
                f"{self.path} is GGUF version {version}; little-endian files of version 2 and 3 are read, "
                "convert the model again with a current llama.cpp"
            )
        num_tensors, num_keys = self._scalar("<Q"), self._scalar("<Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("<I"))
        if self.metadata.get("split.count", 1) > 1:
            raise UserError(
                f"{self.path} is one of {self.metadata['split.count']} parts; join them first with "
                "`llama-gguf-split --merge`"
            )
        self.tensors: dict[str, GgufTensor] = {}
        for _ in range(num_tensors):
            name = self._string()
            shape = tuple(self._scalar("<Q") for _ in range(self._scalar("<I")))[::-1]
            number, offset = self._scalar("<I"), self._scalar("<Q")
            try:
                kind = gguf.GGMLQuantizationType(number)
            except ValueError as error:
                raise UserError(
                    f"{self.path}: tensor {name!r} has the quantisation type {number}, which the installed gguf "
                    "package does not know; upgrade it"
                ) from error
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            self.tensors[name] = GgufTensor(shape, kind, offset, shape[-1] // block * block_bytes)
        alignment = self.metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        self._data = -(-self._at // alignment) * alignment
        for name, tensor in self.tensors.items():
            end = self._data + tensor.offset + math.prod(tensor.shape[:-1]) * tensor.row_bytes
            if end > len(self._map):
                raise UserError(
                    f"{self.path} is truncated: it has {len(self._map)} bytes, but tensor {name!r} ends at byte "
                    f"{end}; download it again"
                )

    def read(self, name: str, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The chosen rows of a tensor (its first axis) as float32; the whole vector for a tensor of one axis."""
        tensor = self.tensors[name]
        raw = np.frombuffer(
            self._map,
            np.uint8,
            count=math.prod(tensor.shape[:-1]) * tensor.row_bytes,
            offset=self._data + tensor.offset,
        )
        if len(tensor.shape) == 1:
            return self._dequantize(name, raw)[rows]
        raw = raw.reshape(*tensor.shape[:-1], tensor.row_bytes)[rows]
        out = np.empty((*raw.shape[:-1], tensor.shape[-1]), np.float32)
        for start in range(0, len(raw), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            out[part] = self._dequantize(name, raw[part])
        return out

    def _dequantize(self, name: str, raw: np.ndarray) -> np.ndarray:
        kind = self.tensors[name].kind
        try:
            return dequantize(np.ascontiguousarray(raw), kind)
        except NotImplementedError as error:
            raise UserError(
                f"{self.path}: tensor {name!r} is quantised as {kind.name}, which the gguf package cannot dequantise; "
                "take another quantisation of the model"
            ) from error

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(code, self._map, self._at)
        self._at += struct.calcsize(code)
        return value

    def _string(self) -> str:
        size = self._scalar("<Q")
        if self._at + size > len(self._map):
            raise struct.error("the file ends inside a string")
        text = self._map[self._at : self._at + size].decode()
        self._at += size
        return text

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise struct.error(f"value type {kind}")
            return self._scalar(_SCALARS[kind])
        inner, count = self._scalar("<I"), self._scalar("<Q")
        if inner not in _SCALARS:
            return [self._value(inner) for _ in range(count)]
        code = f"<{count}{_SCALARS[inner][1]}"
        values = list(struct.unpack_from(code, self._map, self._at))
        self._at += struct.calcsize(code)
        return values
