"""What files written by this library say about themselves, so that damage and edits are noticed when they are read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from ntkfusion.models.config import ModelConfig

#: Keys of metadata: the fields of the configuration that decide the function, and, in front of a tensor, its digest.
CONFIG_KEY = "ntkfusion.config"
TENSOR_KEY = "ntkfusion.digest/"


def digest(array: np.ndarray) -> str:
    """BLAKE2b of an array's bytes, 16 bytes as hexadecimal digits."""
    return hashlib.blake2b(as_bytes(array), digest_size=16).hexdigest()


def digest_text(text: str) -> str:
    """BLAKE2b of a text, 16 bytes as hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in the order of its axes, without a copy if they lie in it."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def canonical(value: Any) -> str:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def function_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields of a configuration that decide what a model computes, by name.

    Dropout and initialisation only matter for training; block layouts are not in ``config.json``.
    """
    names = [field.name for field in dataclasses.fields(config) if field.name != "mlp_layouts"]
    return {name: getattr(config, name) for name in names if "drop" not in name and name != "initializer_range"}
