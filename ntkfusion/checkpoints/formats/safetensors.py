"""Folders of safetensors files, single or sharded: read headers first, every defect collected, and written.

Tensors are read and written one at a time: nothing is copied as a whole.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ntkfusion.checkpoints.formats.outgoing import Outgoing
from ntkfusion.checkpoints.formats.statement import TENSOR_KEY, Statement, joined, read_statement
from ntkfusion.checkpoints.formats.tensors import FLOATS, TensorInfo, empty, read_index, read_into
from ntkfusion.errors import CheckpointError
from ntkfusion.utils.digests import as_bytes

SINGLE = "model.safetensors"

INDEX = "model.safetensors.index.json"

_CONVERT = (
    "Convert them once, where you trust them: transformers.AutoModel.from_pretrained(folder)"
    ".save_pretrained(out, safe_serialization=True)"
)


@dataclass(frozen=True)
class SafetensorsFolder:
    """An opened checkpoint: all headers read, no tensor yet.

    Attributes:
        source: the checkpoint in the user's words.
        tensors: every tensor by name.
        starts: where each begins in its file.
        statement: what the files say about themselves, if this library wrote them.
    """

    source: str
    tensors: dict[str, TensorInfo]
    starts: dict[str, int]
    statement: Statement

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Read tensors one after the other.

        Args:
            names: which; they come out ordered by file.

        Yields:
            Name and array, in the dtype that is stored.

        Raises:
            CheckpointError: if a file became unreadable since its header was read.
        """
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.tensors[name].file, []).append(name)
        # read, not mapped: the pages of a mapped file stay resident, and one cut short meanwhile kills the process
        for file, members in by_file.items():
            try:
                with file.open("rb") as opened:
                    for name in sorted(members, key=lambda name: self.starts[name]):
                        yield name, _read_array(opened, self.starts[name], self.tensors[name])
            except OSError as error:
                raise CheckpointError(self.source, [_damage(file, error)]) from error


def open_safetensors(folder: Path, source: str | None = None) -> SafetensorsFolder:
    """Read the headers of ``model.safetensors``, or of the shards that ``model.safetensors.index.json`` lists.

    Args:
        folder: the checkpoint; a single file wins over an index, as in transformers.
        source: how the user called it; by default the folder.

    Returns:
        The opened checkpoint.

    Raises:
        CheckpointError: with everything that is wrong with the files: none there, damaged, missing shards, shards
            outside of the folder, tensors that index and shards disagree about.
    """
    source = str(folder) if source is None else source
    problems: list[str] = []
    if (folder / SINGLE).exists():
        headers = [_read_header(folder / SINGLE, problems)]
    elif (folder / INDEX).exists():
        headers = _read_shards(folder, source, problems)
    else:
        raise CheckpointError(source, [_no_weights(folder)])
    statement = joined({header.file.name: header.statement for header in headers}, problems)
    if problems:
        raise CheckpointError(source, problems)
    infos = {info.name: info for header in headers for info in header.infos}
    return SafetensorsFolder(source, infos, {k: v for header in headers for k, v in header.starts.items()}, statement)


def open_file(file: Path, source: str) -> SafetensorsFolder:
    """Read the header of one file, whatever its name.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    problems: list[str] = []
    header = _read_header(file, problems)
    if problems:
        raise CheckpointError(source, problems)
    return SafetensorsFolder(source, {info.name: info for info in header.infos}, header.starts, header.statement)


def _read_array(opened: BufferedReader, start: int, info: TensorInfo) -> np.ndarray:
    array = empty((math.prod(info.shape) * np.dtype(FLOATS[info.dtype]).itemsize,), np.uint8)
    read_into(opened, start, array)
    return array.view(FLOATS[info.dtype]).reshape(info.shape)


@dataclass(frozen=True)
class _Header:
    file: Path
    infos: list[TensorInfo]
    starts: dict[str, int]
    statement: Statement


def _read_header(file: Path, problems: list[str]) -> _Header:
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = [(name, opened.get_slice(name)) for name in opened.keys()]  # noqa: SIM118 (it is no mapping)
            infos = [TensorInfo(name, tuple(part.get_shape()), part.get_dtype(), file) for name, part in slices]
            metadata = opened.metadata() or {}
        starts = _starts(file)
        statement = read_statement(metadata, [info.name for info in infos], file.name, problems)
        return _Header(file, infos, {info.name: starts[info.name] for info in infos}, statement)
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        problems.append(_damage(file, error))
        return _Header(file, [], {}, Statement())


def _starts(file: Path) -> dict[str, int]:
    """Where each tensor begins in a file that safetensors has found sound."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    return {name: 8 + length + value["data_offsets"][0] for name, value in header.items() if name != "__metadata__"}


def _read_shards(folder: Path, source: str, problems: list[str]) -> list[_Header]:
    listed, shards = read_index(folder, INDEX, ".safetensors", source, problems)
    headers = []
    unread = {*listed.values()} - {*shards}
    for shard in shards:
        before = len(problems)
        headers.append(_read_header(folder / shard, problems))
        unread |= {shard} if len(problems) > before else set()
    infos = [info for header in headers for info in header.infos]
    held = {(info.name, info.file.name) for info in infos}
    problems += [
        f"{name} is listed in {shard}, which does not hold it"
        for name, shard in listed.items()
        if shard not in unread and (name, shard) not in held
    ]
    counts = Counter(info.name for info in infos)
    problems += [f"{name} is in {count} shards, expected one" for name, count in counts.items() if count > 1]
    problems += [f"{name} is in a shard, but {INDEX} does not list it" for name in counts if name not in listed]
    return headers


def _damage(file: Path, error: Exception) -> str:
    """One sentence about a file that safetensors refuses."""
    try:
        with file.open("rb") as opened:
            start = opened.read(64)
        if b"git-lfs" in start:
            return f"{file.name} is a Git LFS pointer, not the weights: run `git lfs pull` in the folder"
        size, expected = file.stat().st_size, _declared_size(file)
    except OSError as failure:
        return f"{file.name} cannot be read: {failure.strerror}"
    found = f"{size} bytes" if expected is None or expected == size else f"{size} bytes, its header declares {expected}"
    return f"{file.name} is damaged or incomplete ({found}; {error}): download it again"


def _declared_size(file: Path) -> int | None:
    """How long the file should be by its own header; None if not even the header is whole."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, file.stat().st_size)))
        return 8 + length + max(value["data_offsets"][1] for name, value in header.items() if name != "__metadata__")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _no_weights(folder: Path) -> str:
    pickles = sorted(file.name for suffix in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(suffix))
    if pickles:
        return f"it holds torch pickles only ({', '.join(pickles)}), never opened since they can run code. {_CONVERT}"
    return f"it holds no weights; expected {SINGLE}, or {INDEX} with its shards, or Flax weights. {_CONVERT}"


def write_safetensors(file: Path, tensors: Sequence[Outgoing], metadata: Mapping[str, str]) -> None:
    """Write one file.

    Args:
        file: the file.
        tensors: what it will hold.
        metadata: text beside them.
    """
    # larger items first: then every tensor lies at a multiple of its item's size
    ordered = sorted(tensors, key=lambda tensor: (-tensor.num_bytes // max(tensor.array.size, 1), tensor.name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.num_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            opened.write(as_bytes(tensor.stored()))


def write_sharded(
    folder: Path, tensors: Sequence[Outgoing], digests: Mapping[str, str], metadata: Mapping[str, str], max_size: int
) -> None:
    """Write ``model.safetensors``, or shards with an index if that would be too large.

    Args:
        folder: where to.
        tensors: what to write.
        digests: tensor → its digest, which goes into the metadata of its file.
        metadata: text for every file.
        max_size: bytes of tensors in one file; a single tensor may be larger.
    """
    shards = split(tensors, max_size)
    for name, shard in zip(shard_names(SINGLE, len(shards)), shards, strict=True):
        noted = {TENSOR_KEY + tensor.name: digests[tensor.name] for tensor in shard}
        write_safetensors(folder / name, shard, {**metadata, **noted})
    write_index(folder / INDEX, SINGLE, shards, {tensor.name: tensor.name for tensor in tensors})


def split(tensors: Sequence[Outgoing], max_size: int) -> list[list[Outgoing]]:
    """The tensors in groups of at most `max_size` bytes, or of one tensor that is larger."""
    groups: list[list[Outgoing]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.num_bytes > max_size:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.num_bytes
    return groups


def shard_names(single: str, number: int) -> list[str]:
    """The files of so many groups, as Hugging Face names them."""
    stem, _, suffix = single.rpartition(".")
    if number == 1:
        return [single]
    return [f"{stem}-{index + 1:05}-of-{number:05}.{suffix}" for index in range(number)]


def write_index(file: Path, single: str, shards: Sequence[Sequence[Outgoing]], names: Mapping[str, str]) -> None:
    """Write which tensor is in which shard; nothing if there is only one.

    Args:
        file: the index.
        single: the file's name if there was one.
        shards: the tensors of each shard.
        names: tensor → its name in the index.
    """
    if len(shards) == 1:
        return
    files = zip(shard_names(single, len(shards)), shards, strict=True)
    weight_map = {names[tensor.name]: name for name, shard in files for tensor in shard}
    total = sum(tensor.num_bytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
