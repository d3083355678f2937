"""Flax msgpack files, written array by array under the names of Hugging Face's Flax classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from ntkfusion.checkpoints.digests import CONFIG_KEY, TENSOR_KEY, as_bytes, canonical, function_fields
from ntkfusion.checkpoints.hf_folder import Plan, write_config_file
from ntkfusion.checkpoints.msgpack_reader import DIGESTS, INDEX, SINGLE
from ntkfusion.checkpoints.msgpack_walk import CHUNKED
from ntkfusion.checkpoints.outgoing import Outgoing
from ntkfusion.checkpoints.safetensors_writer import shard_names, split, write_index

#: Bytes above which an array is written in pieces, as Flax does: a msgpack value has less than 2³² bytes.
CHUNK_SIZE = 2**30


def write_flax(folder: Path, plan: Plan) -> None:
    """Write config.json, Flax msgpack weights, and the digests beside them."""
    write_config_file(folder, plan)
    shards = split(plan.tensors, plan.max_shard_size)
    for name, shard in zip(shard_names(SINGLE, len(shards)), shards, strict=True):
        with (folder / name).open("wb") as file:
            _write_tree(file, _tree(shard))
    write_index(folder / INDEX, SINGLE, shards, {tensor.name: "/".join(flax_path(tensor)) for tensor in plan.tensors})
    noted = {TENSOR_KEY + name: value for name, value in plan.digests.items()}
    noted[CONFIG_KEY] = canonical(function_fields(plan.model.config))
    (folder / DIGESTS).write_text(json.dumps(noted, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def flax_path(tensor: Outgoing) -> tuple[str, ...]:
    """The keys of a tensor in Flax's nested dictionaries."""
    *path, last = tensor.name.split(".")
    return *path, _last_word(tensor) if last == "weight" else last


def _last_word(tensor: Outgoing) -> str:
    if tensor.is_embedding:
        return "embedding"
    return "kernel" if len(tensor.shape) == 2 else "scale"


def _tree(tensors: Sequence[Outgoing]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for tensor in tensors:
        *path, last = flax_path(tensor)
        inner = tree
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = tensor
    return tree


def _write_tree(file: BinaryIO, tree: dict[str, Any]) -> None:
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
