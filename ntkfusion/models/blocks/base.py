"""What every kind of MLP block has: named arrays, some of which are constants, and arithmetic along the last axis."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

import jax
from jaxtyping import Array, Float

from ntkfusion.models.activations import get_activation
from ntkfusion.utils.parameter_paths import Params
from ntkfusion.utils.programs import watch_programs

# every session of this library has a block, and compiles a program for every shape of one
watch_programs()

T = TypeVar("T")


def along_last(v: Float[Array, " n"], x: Float[Array, "*batch n"]) -> Float[Array, "*ones n"]:
    """Reshape the vector `v` so that it broadcasts along the last axis of `x` (no implicit rank promotion)."""
    return v.reshape((1,) * (x.ndim - 1) + v.shape)


def biased(x: Float[Array, "*batch n"], bias: Float[Array, " n"] | None) -> Float[Array, "*batch n"]:
    """`x` plus a bias, if there is one."""
    return x if bias is None else x + along_last(bias, x)


def scaled(x: Float[Array, "*batch n"], constant: Float[Array, " n"] | None) -> Float[Array, "*batch n"]:
    """`x` times a constant that no gradient reaches, if there is one."""
    return x if constant is None else x * along_last(jax.lax.stop_gradient(constant), x)


def folded(
    w1: Float[Array, "i m"],
    b1: Float[Array, " m"] | None,
    w2: Float[Array, "m j"],
    q: Float[Array, " m"] | None,
    r: Float[Array, " m"] | None,
) -> tuple[Float[Array, "i m"], Float[Array, " m"] | None, Float[Array, "m j"]]:
    """Constants multiplied into what stands next to the neurons: r into `w1` and `b1`, q into `w2`."""
    if r is not None:
        w1, b1 = w1 * r[None, :], None if b1 is None else b1 * r
    return w1, b1, w2 if q is None else w2 * q[:, None]


class BlockBase:
    """What every kind of MLP block can do; fields that hold constants are named in `CONSTANTS`."""

    CONSTANTS: tuple[str, ...] = ()

    def _arrays(self) -> Params:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        values = {field.name: getattr(self, field.name) for field in fields if not field.metadata.get("static")}
        return {name: value for name, value in values.items() if value is not None}

    def parameters(self) -> Params:
        """The trainable arrays by name; absent biases are left out."""
        return {name: value for name, value in self._arrays().items() if name not in self.CONSTANTS}

    def constants(self) -> Params:
        """The arrays that are never trained, by name; absent ones (equal to 1) are left out."""
        return {name: value for name, value in self._arrays().items() if name in self.CONSTANTS}

    def replace(self: T, **arrays: Any) -> T:
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


class MatrixBlock(BlockBase):
    """A block with an input matrix ``w1``, [d, m], and an output matrix ``w2``, [m, o], as arrays or codes."""

    w1: Any
    w2: Any

    @property
    def hidden_width(self) -> int:
        """m, the number of neurons."""
        return self.w1.shape[1]

    @property
    def model_width(self) -> int:
        """d, the size of an input."""
        return self.w1.shape[0]

    @property
    def output_width(self) -> int:
        """The size o of an output."""
        return self.w2.shape[1]


class NeuronBlock(BlockBase):
    """A block of neurons ``q_i σ(h_i)`` with a preactivation h."""

    activation: str

    def preactivation(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch m"]:
        """What σ is applied to."""
        raise NotImplementedError

    def hidden(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch m"]:
        """σ of the preactivation, without q."""
        return get_activation(self.activation).value(self.preactivation(x))
