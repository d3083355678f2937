"""Legacy Flax checkpoints (``flax_model.msgpack``, single or sharded), read and written array by array.

What is read has PyTorch's names and axes, what is written those of Hugging Face's Flax classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import msgpack
import numpy as np

from ntkfusion.checkpoints.formats.hf_folder import OutgoingModel, write_config_file
from ntkfusion.checkpoints.formats.msgpack_walk import CHUNKED, Stored, WalkError, walk
from ntkfusion.checkpoints.formats.outgoing import Outgoing
from ntkfusion.checkpoints.formats.safetensors import shard_names, split, write_index
from ntkfusion.checkpoints.formats.statement import CONFIG_KEY, TENSOR_KEY, Statement, function_fields, read_statement
from ntkfusion.checkpoints.formats.tensors import FLOATS, TensorInfo, empty, read_index, read_into, read_json_object
from ntkfusion.errors import CheckpointError
from ntkfusion.utils.digests import as_bytes, canonical
from ntkfusion.utils.parameter_paths import Params

SINGLE = "flax_model.msgpack"

INDEX = "flax_model.msgpack.index.json"

#: What this library notes beside the weights, which have no place for it.
DIGESTS = "flax_model.digests.json"

#: The last word of a Flax name → of PyTorch's; the others stay.
_LAST_WORDS = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


#: Keys of Flax's nested dictionaries → array.
_Arrays: TypeAlias = Mapping[tuple[str, ...], Stored]


@dataclass(frozen=True)
class MsgpackFolder:
    """An opened Flax checkpoint: all headers read, no array yet.

    Attributes:
        source: the checkpoint in the user's words.
        tensors: every tensor by PyTorch's name, with PyTorch's axes.
        stored: where and how each lies in its file, with Flax's axes.
        transposed: tensors whose axes are exchanged.
        statement: what the folder says about itself, if this library wrote it.
        copies: how many equal copies of every array lie in it along a leading axis, which one alone is read of; 0 if
            there is no such axis.
        notes: what was found around the parameters and left out.
    """

    source: str
    tensors: dict[str, TensorInfo]
    stored: dict[str, Stored]
    transposed: frozenset[str]
    statement: Statement
    copies: int = 0
    notes: tuple[str, ...] = ()

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Read tensors one after the other.

        Args:
            names: which; they come out ordered by file and place.

        Yields:
            Name and array, in the dtype that is stored.

        Raises:
            CheckpointError: if a file became unreadable since its headers were read.
        """
        for name in sorted(names, key=lambda name: (self.tensors[name].file, self.stored[name].pieces)):
            try:
                array = _read(self.tensors[name].file, self.stored[name])
            except OSError as error:
                problem = f"{self.tensors[name].file.name} cannot be read: {error.strerror or error}"
                raise CheckpointError(self.source, [problem]) from error
            if self.copies:
                array = self._first_copy(name, array)
            yield name, array.T if name in self.transposed else array

    def _first_copy(self, name: str, array: np.ndarray) -> np.ndarray:
        if not all(np.array_equal(array[0], copy, equal_nan=True) for copy in array[1:]):
            problem = (
                f"{name} is there {self.copies} times along a leading axis, one for every device, and the copies "
                "differ: take their mean, or one of them, before you save"
            )
            raise CheckpointError(self.source, [problem])
        return array[0]


def _read(file: Path, stored: Stored) -> np.ndarray:
    array, filled = empty((sum(length for _, length in stored.pieces),), np.uint8), 0
    with file.open("rb") as opened:
        for start, length in stored.pieces:
            read_into(opened, start, array[filled : filled + length])
            filled += length
    return array.view(FLOATS[stored.dtype]).reshape(stored.shape)


def open_msgpack(folder: Path, source: str | None = None) -> MsgpackFolder:
    """Walk through ``flax_model.msgpack``, or the shards that ``flax_model.msgpack.index.json`` lists.

    Args:
        folder: the checkpoint; a single file wins over an index.
        source: how the user called it; by default the folder.

    Returns:
        The opened checkpoint.

    Raises:
        CheckpointError: with everything that is wrong with the files.
    """
    source = str(folder) if source is None else source
    problems: list[str] = []
    notes: list[str] = []
    if (folder / SINGLE).exists():
        arrays_of = {SINGLE: _walked(folder / SINGLE, problems, notes)}
    else:
        weight_map, shards = read_index(folder, INDEX, ".msgpack", source, problems)
        arrays_of = {shard: _walked(folder / shard, problems, notes) for shard in shards}
        problems += [] if problems else _disagreements(weight_map, arrays_of)
    copies = _copies(arrays_of)
    if copies:
        notes.append(f"every array is there {copies} times along a leading axis, as jax_utils.replicate makes it")
    opened = _named(folder, source, arrays_of, problems, copies)
    if problems:
        raise CheckpointError(source, problems)
    return dataclasses.replace(opened, notes=tuple(dict.fromkeys(notes)))


def _copies(arrays_of: Mapping[str, _Arrays]) -> int:
    """The length of an axis in front of those that the arrays of a network have; 0 if they have none."""
    arrays = [(path[-1], array.shape) for held in arrays_of.values() for path, array in held.items()]
    vectors = [shape for last, shape in arrays if last in ("bias", "scale")]
    lengths = {shape[0] if shape else 0 for _, shape in arrays}
    return lengths.pop() if vectors and all(len(shape) == 2 for shape in vectors) and len(lengths) == 1 else 0


def _walked(file: Path, problems: list[str], notes: list[str]) -> dict[tuple[str, ...], Stored]:
    try:
        with file.open("rb") as opened:
            arrays, aside = walk(opened, file.stat().st_size)
    except WalkError as error:
        problems.append(f"{file.name} is no Flax checkpoint, or damaged: {error}; download it again")
    except OSError as error:
        problems.append(f"{file.name} cannot be read: {error.strerror}")
    else:
        if aside:
            notes.append(f"it is a training state; beside the parameters it holds {', '.join(aside)}")
        # some savers put everything under one key
        return {path[1:] if path[0] == "params" and len(path) > 1 else path: array for path, array in arrays.items()}
    return {}


def _disagreements(weight_map: Mapping[str, str], arrays_of: Mapping[str, _Arrays]) -> list[str]:
    held = {(_joined(path), shard) for shard, arrays in arrays_of.items() for path in arrays}
    listed = {(name.removeprefix("params/"), shard) for name, shard in weight_map.items()}
    missing = [f"{name} is listed in {shard}, which does not hold it" for name, shard in sorted(listed - held)]
    return missing + [f"{name} is in {shard}, but {INDEX} does not say so" for name, shard in sorted(held - listed)]


def _joined(path: tuple[str, ...]) -> str:
    return "/".join(path)


def _named(
    folder: Path, source: str, arrays_of: Mapping[str, _Arrays], problems: list[str], copies: int
) -> MsgpackFolder:
    tensors: dict[str, TensorInfo] = {}
    stored: dict[str, Stored] = {}
    transposed: set[str] = set()
    for file, arrays in arrays_of.items():
        for path, array in arrays.items():
            name = ".".join((*path[:-1], _LAST_WORDS.get(path[-1], path[-1])))
            if name in tensors:
                problems.append(f"{_joined(path)} is there twice, or under two names of one tensor ({name})")
            shape = array.shape[1:] if copies else array.shape
            turned = path[-1] == "kernel" and len(shape) == 2
            tensors[name] = TensorInfo(name, shape[::-1] if turned else shape, array.dtype, folder / file)
            stored[name] = array
            transposed |= {name} if turned else set()
    statement = _statement(folder, source, tensors, problems)
    return MsgpackFolder(source, tensors, stored, frozenset(transposed), statement, copies)


def _statement(folder: Path, source: str, tensors: Iterable[str], problems: list[str]) -> Statement:
    if problems or not (folder / DIGESTS).exists():
        return Statement()
    noted = read_json_object(folder / DIGESTS, source)
    if not noted or not all(isinstance(value, str) for value in noted.values()):
        problems.append(f"{DIGESTS} holds something else than ntkfusion notes in it; restore it, or delete it")
        return Statement()
    return read_statement(noted, [*tensors], DIGESTS, problems)


#: Bytes above which an array is written in pieces, as Flax does: a msgpack value has less than 2³² bytes.
CHUNK_SIZE = 2**30


def write_flax(folder: Path, outgoing: OutgoingModel) -> None:
    """Write config.json, Flax msgpack weights, and the digests beside them."""
    write_config_file(folder, outgoing)
    shards = split(outgoing.tensors, outgoing.max_shard_size)
    for name, shard in zip(shard_names(SINGLE, len(shards)), shards, strict=True):
        with (folder / name).open("wb") as file:
            _write_tree(file, _tree(shard))
    write_index(
        folder / INDEX, SINGLE, shards, {tensor.name: "/".join(flax_path(tensor)) for tensor in outgoing.tensors}
    )
    noted = {TENSOR_KEY + name: value for name, value in outgoing.digests.items()}
    noted[CONFIG_KEY] = canonical(function_fields(outgoing.model.config))
    (folder / DIGESTS).write_text(json.dumps(noted, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def flax_path(tensor: Outgoing) -> tuple[str, ...]:
    """The keys of a tensor in Flax's nested dictionaries."""
    *path, last = tensor.name.split(".")
    return *path, _last_word(tensor) if last == "weight" else last


def _last_word(tensor: Outgoing) -> str:
    if tensor.is_embedding:
        return "embedding"
    return "kernel" if len(tensor.shape) == 2 else "scale"


def _tree(tensors: Sequence[Outgoing]) -> Params:
    tree: Params = {}
    for tensor in tensors:
        *path, last = flax_path(tensor)
        inner = tree
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = tensor
    return tree


def _write_tree(file: BinaryIO, tree: Params) -> None:
    packer = msgpack.Packer()
    file.write(packer.pack_map_header(len(tree)))
    for key, value in tree.items():
        file.write(packer.pack(key))
        if isinstance(value, dict):
            _write_tree(file, value)
        else:
            _write_tensor(file, value)


def _write_tensor(file: BinaryIO, tensor: Outgoing) -> None:
    stored = tensor.stored()
    array = np.ascontiguousarray(stored.T) if flax_path(tensor)[-1] == "kernel" else stored
    if array.nbytes <= CHUNK_SIZE:
        _write_array(file, array)
        return
    packer, flat = msgpack.Packer(), array.reshape(-1)
    chunks = [*_chunks(flat)]
    file.write(packer.pack_map_header(3) + packer.pack(CHUNKED) + packer.pack(True))
    file.write(packer.pack("shape") + packer.pack({str(i): size for i, size in enumerate(array.shape)}))
    file.write(packer.pack("chunks") + packer.pack_map_header(len(chunks)))
    for index, chunk in enumerate(chunks):
        file.write(packer.pack(str(index)))
        _write_array(file, chunk)


def _chunks(flat: np.ndarray) -> Iterator[np.ndarray]:
    step = CHUNK_SIZE // flat.itemsize
    return (flat[start : start + step] for start in range(0, flat.size, step))


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    """An extension of type 1 that holds shape, dtype and bytes."""
    packer = msgpack.Packer()
    head = packer.pack_array_header(3) + packer.pack(list(array.shape)) + packer.pack(array.dtype.name)
    head += _binary_header(array.nbytes)
    file.write(_extension_header(len(head) + array.nbytes) + head)
    file.write(as_bytes(array))


def _binary_header(length: int) -> bytes:
    return b"\xc6" + length.to_bytes(4, "big")


def _extension_header(length: int) -> bytes:
    return b"\xc9" + length.to_bytes(4, "big") + b"\x01"
