"""What every kind of MLP block has: named arrays, some of which are constants, and arithmetic along the last axis."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jaxtyping import Array, Float


def along_last(v: Float[Array, " n"], x: Float[Array, "*batch n"]) -> Float[Array, "*ones n"]:
    """Reshape the vector `v` so that it broadcasts along the last axis of `x` (no implicit rank promotion)."""
    return v.reshape((1,) * (x.ndim - 1) + v.shape)


def biased(x: Float[Array, "*batch n"], bias: Float[Array, " n"] | None) -> Float[Array, "*batch n"]:
    """`x` plus a bias, if there is one."""
    return x if bias is None else x + along_last(bias, x)


def scaled(x: Float[Array, "*batch n"], constant: Float[Array, " n"] | None) -> Float[Array, "*batch n"]:
    """`x` times a constant that no gradient reaches, if there is one."""
    return x if constant is None else x * along_last(jax.lax.stop_gradient(constant), x)


class BlockBase:
    """What every kind of MLP block can do; fields that hold constants are named in `CONSTANTS`."""

    CONSTANTS: tuple[str, ...] = ()

    def _arrays(self) -> dict[str, Any]:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        values = {field.name: getattr(self, field.name) for field in fields if not field.metadata.get("static")}
        return {name: value for name, value in values.items() if value is not None}

    def parameters(self) -> dict[str, Any]:
        """The trainable arrays by name; absent biases are left out."""
        return {name: value for name, value in self._arrays().items() if name not in self.CONSTANTS}

    def constants(self) -> dict[str, Any]:
        """The arrays that are never trained, by name; absent ones (equal to 1) are left out."""
        return {name: value for name, value in self._arrays().items() if name in self.CONSTANTS}

    def replace(self, **arrays: Any) -> Any:
        """A copy with some fields exchanged."""
        return dataclasses.replace(self, **arrays)  # pyright: ignore[reportArgumentType]

    @property
    def num_pruned(self) -> int:
        """How many numbers of the trainable arrays are removed by masks, and so never stored."""
        return 0

    @property
    def num_parameters(self) -> int:
        """How many trainable numbers the block stores; constants fold away on export and do not count."""
        return sum(math.prod(array.shape) for array in self.parameters().values()) - self.num_pruned
