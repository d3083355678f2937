"""The numbers of one tensor: their conversion, and whether they are numbers at all."""

from __future__ import annotations

import math
import mmap
from io import BufferedReader
from typing import Any

import numpy as np

#: Bytes from which an array has pages of its own.
_LARGE = 2**16


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
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
