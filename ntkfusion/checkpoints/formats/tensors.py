"""What all readers of weight files share: tensors by name, their numbers, and the JSON files beside them.

A `TensorSource` is what every kind of weight file looks like to the audit. Below it the numbers of one tensor (read,
converted, searched for NaN), and JSON files, an index of shards among them, with errors that name the file.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from ntkfusion.checkpoints.formats.statement import Statement
from ntkfusion.errors import CheckpointError

#: Floats that are read, by safetensors' names. (Importing ml_dtypes also tells safetensors what bfloat16 is in numpy.)
FLOATS = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor.

    Attributes:
        name: its name.
        shape: its shape.
        dtype: how it is stored, in safetensors' words: ``F32``, ``BF16``, ``I64``, ...
        file: the file it is in.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path


@runtime_checkable
class TensorSource(Protocol):
    """An opened checkpoint: all headers read, no tensor yet."""

    @property
    def source(self) -> str:
        """The checkpoint in the user's words."""
        ...

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by PyTorch's name, with PyTorch's axes."""
        ...

    @property
    def statement(self) -> Statement:
        """What the files say about themselves; empty unless this library wrote them."""
        ...

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Read tensors one after the other, in the dtype that is stored.

        Raises:
            CheckpointError: if a tensor cannot be read.
        """
        ...


#: Bytes from which an array has pages of its own.
_LARGE = 2**16


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array to be filled, in pages of its own if it is large.

    Such pages go back to the system with the array; what the heap gets back it keeps, a seventh of a model of 1.3 GB.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < _LARGE:
        return np.empty(shape, dtype)
    return np.frombuffer(mmap.mmap(-1, size), np.uint8).view(dtype).reshape(shape)


def read_into(file: BufferedReader, start: int, array: np.ndarray) -> None:
    """Fill a contiguous array of bytes from a file.

    Raises:
        OSError: if the file ends before that.
    """
    file.seek(start)
    if file.readinto(array.data) != array.nbytes:
        raise OSError("it became shorter while it was read")


def converted(stored: np.ndarray, dtype: str, *, transposed: bool = False) -> np.ndarray:
    """An array in another dtype, and with its axes exchanged if that is wanted; itself if there is nothing to do."""
    turned = stored.T if transposed else stored
    if turned.dtype == dtype and turned.flags.c_contiguous:
        return turned
    array = empty(turned.shape, dtype)
    # float64 beyond the range of float32 becomes Inf, which the audit then reports
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(array, turned, casting="unsafe")
    return array


def value_problems(name: str, array: np.ndarray) -> list[str]:
    """How many entries are NaN or infinite, if any."""
    finite = np.isfinite(array)
    if finite.all():
        return []
    nan = int(np.isnan(array).sum())
    return [f"{name} holds {nan} NaN and {array.size - int(finite.sum()) - nan} infinite of {array.size} values"]


def lost_share(before: np.ndarray, after: np.ndarray) -> float:
    """The share of the numbers of an array that became 0 in another dtype, of those that were not; 0 if none was."""
    if before.dtype == after.dtype or after.dtype.itemsize > before.dtype.itemsize:  # a wider float loses none
        return 0.0
    nonzero = int(np.count_nonzero(before != 0))
    return 1 - int(np.count_nonzero(after != 0)) / nonzero if nonzero else 0.0


def underflow_problems(name: str, stored: np.ndarray, array: np.ndarray) -> list[str]:
    """Whether all of a matrix became 0 in the dtype that it was read in."""
    if stored.ndim < 2 or lost_share(stored, array) < 1:
        return []
    largest = float(np.abs(stored).max())
    return [f"{name} holds numbers up to {largest:.2g}, which are all 0 in {array.dtype.name}; load it in float64"]


def read_json_object(path: Path, source: str) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Args:
        path: the file.
        source: the checkpoint, for the error message.

    Returns:
        The object as a dictionary.

    Raises:
        CheckpointError: if the file cannot be read, is no JSON, or holds something else than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(source, [f"{path.name} cannot be read: {error.strerror}"]) from error
    # ValueError covers invalid JSON, invalid UTF-8 and numbers of thousands of digits
    except (ValueError, RecursionError) as error:
        raise CheckpointError(source, [f"{path.name} is not valid JSON ({error}); restore the file"]) from error
    if not isinstance(value, dict):
        raise CheckpointError(source, [f"{path.name} holds a {type(value).__name__}, expected a JSON object {{...}}"])
    return value


def read_index(
    folder: Path, index: str, suffix: str, source: str, problems: list[str]
) -> tuple[dict[str, str], list[str]]:
    """What an index says.

    Args:
        folder: the checkpoint.
        index: the file's name.
        suffix: how the names of shards must end.
        source: the checkpoint, for errors.
        problems: takes shards that are missing, or outside of the folder.

    Returns:
        Tensor → shard, and the shards that are there, in order.

    Raises:
        CheckpointError: if the index is no index.
    """
    weight_map = read_json_object(folder / index, source).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(source, [f"{index} has no 'weight_map' from tensor names to file names"])
    there = []
    for shard in sorted(set(weight_map.values())):
        # "..", absolute and nested names all contain a separator or are no such file
        if Path(shard).name != shard or "\\" in shard or "\0" in shard or not shard.endswith(suffix):
            problems.append(f"{index} names the shard {shard!r}; expected a {suffix} file in the same folder")
        elif not _is_file(folder / shard):
            problems.append(f"{shard}, a shard that {index} lists, is missing: download it again")
        else:
            there.append(shard)
    return weight_map, there


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or that the file system cannot have
        return False
