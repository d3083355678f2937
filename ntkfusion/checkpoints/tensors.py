"""What every kind of weight file looks like to the audit: tensors by name, headers first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from ntkfusion.checkpoints.digests import Statement

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
