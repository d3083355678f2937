"""Safetensors files, written tensor by tensor: nothing is copied as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ntkfusion.checkpoints.digests import TENSOR_KEY, as_bytes
from ntkfusion.checkpoints.outgoing import Outgoing
from ntkfusion.checkpoints.safetensors_reader import INDEX, SINGLE


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
        own = {TENSOR_KEY + tensor.name: digests[tensor.name] for tensor in shard}
        write_safetensors(folder / name, shard, {**metadata, **own})
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
