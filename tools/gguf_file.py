"""Bounded reader of GGUF version 3 files: metadata, tensor table and float32 values.

Reads from memory. Every count, length and offset is checked against the bytes that are there
before it is used: a hostile file costs memory in proportion to its size and a GgufError. Only the
tensor types that the converters of this folder need are known: F32, F16, Q4_1 and Q8_0.
"""

import dataclasses
import math
import struct
from typing import Any

import numpy as np

MAX_METADATA_ENTRIES = 4096
MAX_TENSORS = 65536
MAX_KEY_BYTES = 1024
MAX_STRING_BYTES = 1 << 20
MAX_ARRAY_ITEMS = 1 << 20
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16

_DEFAULT_ALIGNMENT = 32
_BOOL, _STRING, _ARRAY = 7, 8, 9
# Metadata value type -> little-endian numpy type.
_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", _BOOL: "<u1",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


class GgufError(ValueError):
    """The bytes are not a GGUF file that this reader accepts; the message says what is wrong."""


@dataclasses.dataclass(frozen=True)
class TensorType:
    """A block format: `block_values` values stored in `block_bytes` bytes."""

    name: str
    block_values: int
    block_bytes: int


F32 = TensorType("F32", 1, 4)
F16 = TensorType("F16", 1, 2)
Q4_1 = TensorType("Q4_1", 32, 20)
Q8_0 = TensorType("Q8_0", 32, 34)
TENSOR_TYPES = {0: F32, 1: F16, 3: Q4_1, 8: Q8_0}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `shape` is row-major, the contiguous dimension last (numpy's order)."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int  # bytes from the start of the file
    num_bytes: int

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] // self.type.block_values * self.type.block_bytes


class _Cursor:
    """Reads forward through the bytes; a read past the end is a GgufError."""

    def __init__(self, data: memoryview):
        self._data = data
        self.position = 0

    def take(self, num_bytes: int, what: str) -> memoryview:
        if num_bytes > len(self._data) - self.position:
            raise GgufError(f"the file ends inside {what}; fetch it again")
        start = self.position
        self.position += num_bytes
        return self._data[start : self.position]

    def u32(self, what: str) -> int:
        return struct.unpack("<I", self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return struct.unpack("<Q", self.take(8, what))[0]

    def string(self, max_bytes: int, what: str) -> str:
        num_bytes = self.u64(what)
        if num_bytes > max_bytes:
            raise GgufError(f"{what} is {num_bytes} bytes long; at most {max_bytes} are accepted")
        try:
            return str(self.take(num_bytes, what), "utf-8")
        except UnicodeDecodeError as error:
            raise GgufError(f"{what} is not UTF-8 ({error.reason})") from error


class GgufFile:
    """Metadata and tensor table of a GGUF file held in `data`, which it keeps a view of.

    metadata  key -> int, float, bool, str or a list of one of these
    tensors   name -> TensorInfo, in file order; the ranges lie in the file and do not overlap
    """

    def __init__(self, data: bytes):
        self._data = memoryview(data)
        cursor = _Cursor(self._data)
        if bytes(cursor.take(4, "the magic number")) != b"GGUF":
            raise GgufError("this is not a GGUF file: it does not start with GGUF")
        version = cursor.u32("the version")
        if version != 3:
            raise GgufError(f"the GGUF version is {version}; only 3 (little-endian) is read")
        num_tensors = _bounded(cursor.u64("the tensor count"), MAX_TENSORS, "tensors")
        num_entries = _bounded(
            cursor.u64("the metadata count"), MAX_METADATA_ENTRIES, "metadata entries"
        )
        self.metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = cursor.string(MAX_KEY_BYTES, "a metadata key")
            if key in self.metadata:
                raise GgufError(f"the metadata key {key!r} occurs twice")
            self.metadata[key] = _read_value(cursor, f"the metadata value {key!r}")
        self.tensors = self._read_tensor_table(cursor, num_tensors)

    def rows(self, name: str) -> np.ndarray:
        """The stored bytes of tensor `name` as uint8 [num_rows, row_bytes], without a copy."""
        info = self.tensors[name]
        stored = self._data[info.offset : info.offset + info.num_bytes]
        return np.frombuffer(stored, np.uint8).reshape(info.num_rows, info.row_bytes)

    def _read_tensor_table(self, cursor: _Cursor, num_tensors: int) -> dict[str, TensorInfo]:
        entries = [_read_tensor_entry(cursor) for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment not in [
            1 << shift for shift in range(3, MAX_ALIGNMENT.bit_length())
        ]:
            raise GgufError(
                f"general.alignment is {alignment!r}; it must be a power of two "
                f"from 8 to {MAX_ALIGNMENT}"
            )
        data_start = -(-cursor.position // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for entry in entries:
            if entry.name in tensors:
                raise GgufError(f"the tensor {entry.name!r} occurs twice")
            if entry.offset % alignment:
                raise GgufError(f"the tensor {entry.name!r} is not aligned to {alignment} bytes")
            info = dataclasses.replace(entry, offset=data_start + entry.offset)
            if info.offset + info.num_bytes > len(self._data):
                raise GgufError(f"the file ends inside the tensor {info.name!r}; fetch it again")
            tensors[info.name] = info
        _refuse_overlap(tensors)
        return tensors


def dequantize(rows: np.ndarray, tensor_type: TensorType) -> np.ndarray:
    """Values of stored rows, computed in float32 with one rounding per operation.

    rows     uint8 [rows, row_bytes] as GgufFile.rows gives them
    returns  float32 [rows, row_bytes / block_bytes * block_values]
    """
    num_rows, row_bytes = rows.shape
    blocks = np.ascontiguousarray(rows).reshape(-1, tensor_type.block_bytes)
    if tensor_type is F32:
        values = blocks.view("<f4")
    elif tensor_type is F16:
        values = blocks.view("<f2")
    elif tensor_type is Q8_0:
        # float16 scale, then 32 int8: value = scale * code.
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        values = scale * blocks[:, 2:].view(np.int8).astype(np.float32)
    else:
        # float16 scale, float16 minimum, then 16 bytes: value i is in the low half of byte i,
        # value i + 16 in the high half. value = scale * code + minimum; the product is exact.
        scale = blocks[:, 0:2].copy().view("<f2").astype(np.float32)
        minimum = blocks[:, 2:4].copy().view("<f2").astype(np.float32)
        packed = blocks[:, 4:]
        codes = np.concatenate([packed & 0x0F, packed >> 4], axis=1).astype(np.float32)
        values = scale * codes + minimum
    num_columns = row_bytes // tensor_type.block_bytes * tensor_type.block_values
    return values.astype(np.float32).reshape(num_rows, num_columns)


def _bounded(count: int, limit: int, what: str) -> int:
    if count > limit:
        raise GgufError(f"the header announces {count} {what}; at most {limit} are accepted")
    return count


def _read_value(cursor: _Cursor, what: str) -> Any:
    value_type = cursor.u32(what)
    if value_type == _STRING:
        return cursor.string(MAX_STRING_BYTES, what)
    if value_type != _ARRAY:
        return _read_numbers(cursor, value_type, 1, what)[0]
    item_type = cursor.u32(what)
    num_items = cursor.u64(what)
    if num_items > MAX_ARRAY_ITEMS:
        raise GgufError(f"{what} has {num_items} items; at most {MAX_ARRAY_ITEMS} are accepted")
    if item_type == _STRING:
        return [cursor.string(MAX_STRING_BYTES, what) for _ in range(num_items)]
    return _read_numbers(cursor, item_type, num_items, what)


def _read_numbers(cursor: _Cursor, value_type: int, num_items: int, what: str) -> list:
    if value_type not in _NUMBERS:
        raise GgufError(f"{what} has the type {value_type}, which is not read")
    dtype = np.dtype(_NUMBERS[value_type])
    items = np.frombuffer(cursor.take(num_items * dtype.itemsize, what), dtype)
    if value_type != _BOOL:
        return items.tolist()
    if (items > 1).any():
        raise GgufError(f"{what} holds a truth value that is neither 0 nor 1")
    return [bool(item) for item in items]


def _read_tensor_entry(cursor: _Cursor) -> TensorInfo:
    """One entry of the tensor table, its offset still relative to the start of the data."""
    name = cursor.string(MAX_KEY_BYTES, "a tensor name")
    what = f"the entry of the tensor {name!r}"
    num_dimensions = cursor.u32(what)
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise GgufError(f"{what} has {num_dimensions} dimensions; 1 to {MAX_DIMENSIONS} are read")
    shape = tuple(cursor.u64(what) for _ in range(num_dimensions))[::-1]
    type_id = cursor.u32(what)
    offset = cursor.u64(what)
    if type_id not in TENSOR_TYPES:
        known = ", ".join(known.name for known in TENSOR_TYPES.values())
        raise GgufError(f"{what} has the GGML type {type_id}; only {known} are read")
    tensor_type = TENSOR_TYPES[type_id]
    if 0 in shape or shape[-1] % tensor_type.block_values:
        raise GgufError(f"{what} has the shape {shape}, which {tensor_type.name} cannot store")
    num_bytes = math.prod(shape) // tensor_type.block_values * tensor_type.block_bytes
    return TensorInfo(name, shape, tensor_type, offset, num_bytes)


def _refuse_overlap(tensors: dict[str, TensorInfo]) -> None:
    ordered = sorted(tensors.values(), key=lambda info: info.offset)
    for before, after in zip(ordered, ordered[1:]):
        if before.offset + before.num_bytes > after.offset:
            raise GgufError(f"the tensors {before.name!r} and {after.name!r} overlap")
