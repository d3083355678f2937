"""Short digests of arrays, texts and JSON values: what is equal has the same one."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np


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
