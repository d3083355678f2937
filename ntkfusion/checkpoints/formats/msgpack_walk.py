"""Where the arrays of a Flax msgpack file lie: a walk over its headers that believes nothing and copies nothing.

Flax writes nested maps whose leaves are extensions of type 1 (arrays) or 3 (NumPy scalars), each of which is a msgpack
array of its own: shape, dtype, bytes. Arrays above a gigabyte are maps with the key ``__msgpack_chunked_array__``.
A training state is read too: its parameters only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

#: Maps within maps, entries in a file, bytes of a key, and axes of an array: beyond these a file is no checkpoint.
MOST_DEPTH, MOST_ENTRIES, MOST_KEY, MOST_AXES = 32, 200_000, 256, 16

CHUNKED = "__msgpack_chunked_array__"

#: NumPy's names → safetensors' names and sizes of an item.
DTYPES = {
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float32": ("F32", 4),
    "float64": ("F64", 8),
    "int8": ("I8", 1),
    "int16": ("I16", 2),
    "int32": ("I32", 4),
    "int64": ("I64", 8),
    "uint8": ("U8", 1),
    "uint16": ("U16", 2),
    "uint32": ("U32", 4),
    "uint64": ("U64", 8),
    "bool": ("BOOL", 1),
}


class WalkError(Exception):
    """The file is no Flax checkpoint; the text says why."""


@dataclass(frozen=True)
class Stored:
    """An array in a file.

    Attributes:
        shape: its shape.
        dtype: how it is stored, in safetensors' words.
        pieces: where its bytes are, in order: start and length.
    """

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Number:
    value: int | bool


@dataclass(frozen=True)
class _Other:
    """A value that no parameter has, such as a text; a training state may hold it beside its parameters."""

    position: int
    tag: int

    @property
    def problem(self) -> str:
        return f"at byte {self.position} is something else than a map or an array (type {self.tag:#04x})"


_Node: TypeAlias = Stored | _Number | _Other | dict[str, Any]

#: Where the parameters of a training state are → keys beside them, one of which makes it one.
_TRAINING_STATES = {"params": {"opt_state", "step"}, "target": {"state"}}

#: Numbers that stand beside the parts of a network in some files.
_COUNTERS = ("step", "global_step", "epoch")


def walk(file: BinaryIO, size: int) -> tuple[dict[tuple[str, ...], Stored], tuple[str, ...]]:
    """The arrays of an opened file.

    Args:
        file: the file, which is read at its headers only.
        size: its length in bytes.

    Returns:
        Path of keys → array; and of a training state (``TrainState`` of Flax) the keys beside its parameters, which
        are left out.

    Raises:
        WalkError: for anything but nested maps of arrays, and for headers that promise more than the file has.
    """
    walker = _Walker(file, size)
    tree = walker.node(0)
    if walker.position != size:
        raise WalkError(f"it ends at byte {walker.position}, but the file has {size}")
    if isinstance(tree, _Other):
        raise WalkError(tree.problem)
    if not isinstance(tree, dict):
        raise WalkError("it holds a single value, expected a map of parameters")
    tree, aside = _parameters(tree)
    arrays: dict[tuple[str, ...], Stored] = {}
    _collect(tree, (), arrays)
    return arrays, aside


def _parameters(tree: dict[str, _Node]) -> tuple[dict[str, _Node], tuple[str, ...]]:
    """The parameters of a training state, and the keys beside them; the tree itself if it is none."""
    for key, others in _TRAINING_STATES.items():
        inner = tree.get(key)
        if isinstance(inner, dict) and others & tree.keys():
            return inner, tuple(name for name in tree if name != key)
    counters = tuple(key for key in _COUNTERS if isinstance(tree.get(key), _Number))
    return {key: node for key, node in tree.items() if key not in counters}, counters


def _collect(tree: dict[str, _Node], path: tuple[str, ...], arrays: dict[tuple[str, ...], Stored]) -> None:
    for key, node in tree.items():
        if isinstance(node, dict):
            _collect(node, (*path, key), arrays)
        elif isinstance(node, Stored):
            arrays[*path, key] = node
        elif isinstance(node, _Other):
            raise WalkError(node.problem)
        else:
            raise WalkError(f"{'/'.join((*path, key))} is a number, expected an array")


class _Walker:
    """A position in the file; every read is checked against its end before it is made."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._entries = file, size, 0
        self.position = 0

    def _check(self, length: int, end: int | None = None) -> None:
        if length > (self._size if end is None else end) - self.position:
            raise WalkError(f"at byte {self.position} it promises {length} bytes more than there are; it is cut off")

    def _read(self, length: int) -> bytes:
        self._check(length)
        self._file.seek(self.position)
        found = self._file.read(length)
        self.position += length
        if len(found) != length:
            raise WalkError("it became shorter while it was read")
        return found

    def _skip(self, length: int) -> int:
        """Step over so many bytes; where they began."""
        self._check(length)
        self.position += length
        return self.position - length

    def _uint(self, length: int) -> int:
        return int.from_bytes(self._read(length), "big")

    def node(self, depth: int) -> _Node:
        """The value at this position."""
        if depth > MOST_DEPTH:
            raise WalkError(f"its maps are nested more than {MOST_DEPTH} deep")
        start = self.position
        tag = self._uint(1)
        if (entries := self._map_length(tag)) is not None:
            return self._map(entries, depth)
        if (length := self._extension_length(tag)) is not None:
            return self._array(length)
        if tag in (0xC2, 0xC3):
            return _Number(tag == 0xC3)
        if (number := self._whole(tag)) is not None:
            return _Number(number)
        other = _Other(start, tag)
        if not self._skip_other(tag, depth):
            raise WalkError(other.problem)
        return other

    def _skip_other(self, tag: int, depth: int) -> bool:
        """Step over the rest of a list, a text, a float, a negative number or nothing; False if it is none of these."""
        fixed = {0xC0: 0, 0xCA: 4, 0xCB: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
        entries = tag - 0x90 if 0x90 <= tag <= 0x9F else self._sized(tag, {0xDC: 2, 0xDD: 4})
        if entries is not None:
            self._check(entries)
            self._count(entries)
            for _ in range(entries):
                self.node(depth + 1)
            return True
        widths = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}
        length = tag - 0xA0 if 0xA0 <= tag <= 0xBF else self._sized(tag, widths)
        length = fixed.get(tag, 0 if tag >= 0xE0 else None) if length is None else length
        if length is not None:
            self._skip(length)
        return length is not None

    def _count(self, entries: int) -> None:
        self._entries += entries
        if self._entries > MOST_ENTRIES:
            raise WalkError(f"it has more than {MOST_ENTRIES} entries")

    def _map_length(self, tag: int) -> int | None:
        if 0x80 <= tag <= 0x8F:
            return tag - 0x80
        return self._sized(tag, {0xDE: 2, 0xDF: 4})

    def _extension_length(self, tag: int) -> int | None:
        if 0xD4 <= tag <= 0xD8:
            return 1 << (tag - 0xD4)
        return self._sized(tag, {0xC7: 1, 0xC8: 2, 0xC9: 4})

    def _whole(self, tag: int) -> int | None:
        return tag if tag <= 0x7F else self._sized(tag, {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8})

    def _sized(self, tag: int, widths: dict[int, int]) -> int | None:
        return self._uint(widths[tag]) if tag in widths else None

    def _map(self, entries: int, depth: int) -> _Node:
        # a key and a value take two bytes at least
        self._check(2 * entries)
        tree: dict[str, _Node] = {}
        for _ in range(entries):
            self._count(1)
            key = self._key()
            if key in tree:
                raise WalkError(f"it has the key {key!r} twice in one map")
            tree[key] = self.node(depth + 1)
        return _unchunked(tree) if CHUNKED in tree else tree

    def _key(self) -> str:
        start = self.position
        text = self._text()
        if text is None or not text:
            raise WalkError(f"at byte {start} is something else than a name")
        return text

    def _text(self) -> str | None:
        tag = self._uint(1)
        length = tag - 0xA0 if 0xA0 <= tag <= 0xBF else self._sized(tag, {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1})
        if length is None or length > MOST_KEY:
            return None
        try:
            return self._read(length).decode()
        except UnicodeDecodeError:
            return None

    def _array(self, length: int) -> Stored:
        """The array in an extension of so many bytes."""
        kind = self._uint(1)
        if kind not in (1, 3):
            raise WalkError(f"at byte {self.position} is an extension of type {kind}, expected an array (type 1)")
        self._check(length)
        end = self.position + length
        if self._uint(1) != 0x93 or self.position > end:
            raise WalkError(f"the array at byte {self.position} does not begin with shape, dtype and bytes")
        shape, name = self._shape(), self._text()
        size = self._sized(self._uint(1), {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4})
        if name not in DTYPES:
            raise WalkError(f"the array before byte {self.position} has the dtype {name!r}")
        dtype, item = DTYPES[name]
        if size is None or size != math.prod(shape) * item or self.position + size != end:
            raise WalkError(f"the array before byte {self.position} has the shape {shape} of {name}, not so many bytes")
        return Stored(shape, dtype, ((self._skip(size), size),))

    def _shape(self) -> tuple[int, ...]:
        tag = self._uint(1)
        axes = tag - 0x90 if 0x90 <= tag <= 0x9F else self._sized(tag, {0xDC: 2, 0xDD: 4})
        if axes is None or axes > MOST_AXES:
            raise WalkError(f"the array before byte {self.position} has no shape of at most {MOST_AXES} axes")
        sizes = [self._whole(self._uint(1)) for _ in range(axes)]
        if any(size is None for size in sizes):
            raise WalkError(f"the array before byte {self.position} has a shape that is not of whole numbers")
        return tuple(size for size in sizes if size is not None)


def _unchunked(tree: dict[str, _Node]) -> Stored:
    """The array that Flax has cut into flat pieces."""
    shape = _in_order(tree.get("shape"), lambda node: isinstance(node, _Number))
    chunks = _in_order(tree.get("chunks"), lambda node: isinstance(node, Stored) and len(node.shape) == 1)
    if tree.keys() != {CHUNKED, "shape", "chunks"} or shape is None or not chunks:
        raise WalkError(f"a map with {CHUNKED!r} lacks its shape or its chunks")
    sizes = tuple(int(node.value) for node in shape if isinstance(node, _Number))
    stored = [node for node in chunks if isinstance(node, Stored)]
    if len({node.dtype for node in stored}) > 1 or sum(node.shape[0] for node in stored) != math.prod(sizes):
        raise WalkError("the chunks of an array do not add up to its shape")
    return Stored(sizes, stored[0].dtype, tuple(piece for node in stored for piece in node.pieces))


def _in_order(node: _Node | None, fits: Callable[[_Node], bool]) -> list[_Node] | None:
    """The values of a map with the keys 0, 1, 2, ..., if they are what is expected."""
    if not isinstance(node, dict) or node.keys() != {str(index) for index in range(len(node))}:
        return None
    values = [node[str(index)] for index in range(len(node))]
    return values if all(map(fits, values)) else None
