"""Folders of safetensors files, single or sharded: headers first, every defect collected, tensors one at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ntkfusion.checkpoints.files import read_json_object
from ntkfusion.checkpoints.tensors import TensorInfo
from ntkfusion.errors import CheckpointError

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
    """

    source: str
    tensors: dict[str, TensorInfo]

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
        for file, members in by_file.items():
            try:
                with safe_open(file, framework="numpy") as opened:
                    for name in members:
                        yield name, opened.get_tensor(name)
            except (SafetensorError, OSError) as error:
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
        infos = _read_header(folder / SINGLE, problems)
    elif (folder / INDEX).exists():
        infos = _read_shards(folder, source, problems)
    else:
        raise CheckpointError(source, [_no_weights(folder)])
    if problems:
        raise CheckpointError(source, problems)
    return SafetensorsFolder(source, {info.name: info for info in infos})


def _read_header(file: Path, problems: list[str]) -> list[TensorInfo]:
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = [(name, opened.get_slice(name)) for name in opened.keys()]  # noqa: SIM118 (it is no mapping)
            return [TensorInfo(name, tuple(part.get_shape()), part.get_dtype(), file) for name, part in slices]
    except (SafetensorError, OSError, ValueError) as error:
        problems.append(_damage(file, error))
        return []


def _read_shards(folder: Path, source: str, problems: list[str]) -> list[TensorInfo]:
    listed = _weight_map(folder, source)
    infos: list[TensorInfo] = []
    unread: set[str] = set()
    for shard in sorted(set(listed.values())):
        before = len(problems)
        # "..", absolute and nested names all contain a separator or are no such file
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            problems.append(f"{INDEX} names the shard {shard!r}; expected a .safetensors file in the same folder")
        elif not (folder / shard).is_file():
            problems.append(f"{shard}, a shard that {INDEX} lists, is missing: download it again")
        else:
            infos += _read_header(folder / shard, problems)
        if len(problems) > before:
            unread.add(shard)
    held = {(info.name, info.file.name) for info in infos}
    problems += [
        f"{name} is listed in {shard}, which does not hold it"
        for name, shard in listed.items()
        if shard not in unread and (name, shard) not in held
    ]
    counts = Counter(info.name for info in infos)
    problems += [f"{name} is in {count} shards, expected one" for name, count in counts.items() if count > 1]
    problems += [f"{name} is in a shard, but {INDEX} does not list it" for name in counts if name not in listed]
    return infos


def _weight_map(folder: Path, source: str) -> dict[str, str]:
    weight_map: Any = read_json_object(folder / INDEX, source).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(source, [f"{INDEX} has no 'weight_map' from tensor names to file names"])
    return weight_map


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
    if any(folder.glob("*.msgpack")):
        return f"it holds Flax msgpack weights only, which this version does not read yet; expected {SINGLE}"
    return f"it holds no weights; expected {SINGLE}, or {INDEX} with its shards. {_CONVERT}"
