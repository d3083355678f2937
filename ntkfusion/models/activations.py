"""Activation functions with their derivatives and the *exact* signs of both.

Sign kernels need ``sgn σ(h)`` and ``sgn σ'(h)``. Taking the sign of a float32 value is wrong in the tails (a GELU of −6
underflows to 0, whose sign is 0 instead of −1), so the signs come from where σ and σ' are known to change theirs.

Far out a smooth activation is max(h, 0) to the last bit, and its formula overflows (h³, or ∞ · 0). So beyond `far` it
is that, in a way that derivatives of every order, in forward and in reverse mode, are right there too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.errors import InputError

Elementwise = Callable[[Float[Array, "*s"]], Float[Array, "*s"]]

_SQRT_HALF = 0.7071067811865476

_INV_SQRT_2PI = 0.3989422804014327

_SQRT_2_OVER_PI = 0.7978845608028654

_CUBIC = 0.044715


@dataclass(frozen=True)
class Activation:
    """An activation σ with what exact kernels need of it.

    Attributes:
        name: one of `ACTIVATIONS`' keys.
        value: σ(h).
        derivative: σ'(h); at a kink the value JAX and PyTorch use (ReLU'(0) = 0).
        value_sign: sgn σ(h) in {−1, 0, 1}, right in the tails.
        derivative_sign: sgn σ'(h) in {−1, 0, 1}, right in the tails.
        derivative_zero: where σ' changes sign (ReLU: 0, where it jumps).
    """

    name: str
    value: Elementwise
    derivative: Elementwise
    value_sign: Elementwise
    derivative_sign: Elementwise
    derivative_zero: float


#: Beyond these |h| all that σ lacks to max(h, 0) underflows; in float16, whose powers of h overflow early, beyond the
#: second number.
_FAR: dict[str, tuple[float, float]] = {"gelu": (40.0, 10.0), "gelu_tanh": (40.0, 10.0), "silu": (800.0, 40.0)}


def far(name: str, dtype: jnp.dtype) -> float:
    """From which |h| on a smooth activation is max(h, 0) to the last bit, all its derivatives included.

    Args:
        name: "gelu", "gelu_tanh" or "silu".
        dtype: of h.

    Returns:
        The limit, a number of that type.
    """
    return _FAR[name][jnp.finfo(dtype).maxexp < 100]


def _saturated(name: str, near: Elementwise, beyond: Elementwise) -> Elementwise:
    """`near` below `far`, `beyond` from there on: the formula of `near` is never given what it overflows at."""

    def function(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
        limit = far(name, h.dtype)
        # not >: at the limit itself the derivative of clip is ½
        return jnp.where(jnp.abs(h) >= limit, beyond(h), near(jnp.clip(h, -limit, limit)))

    return function


def _step(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return (h > 0).astype(h.dtype)


def _sign_around(zero: float) -> Elementwise:
    return lambda h: jnp.sign(h - zero)


def _gelu(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
    # erfc, not 1 + erf: the latter is exactly 0 below −5.2 in float32
    return 0.5 * h * jax.lax.erfc(-_SQRT_HALF * h)


def _gelu_derivative(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return 0.5 * jax.lax.erfc(-_SQRT_HALF * h) + h * _INV_SQRT_2PI * jnp.exp(-0.5 * h * h)


def _gelu_tanh(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
    # ½(1 + tanh u) = sigmoid(2u), which does not cancel for negative u
    return h * jax.nn.sigmoid(2 * _SQRT_2_OVER_PI * (h + _CUBIC * h * h * h))


def _gelu_tanh_derivative(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
    u = 2 * _SQRT_2_OVER_PI * (h + _CUBIC * h * h * h)
    slope = 2 * _SQRT_2_OVER_PI * (1 + 3 * _CUBIC * h * h)
    return jax.nn.sigmoid(u) * (1 + h * slope * jax.nn.sigmoid(-u))


def _silu_derivative(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return jax.nn.sigmoid(h) * (1 + h * jax.nn.sigmoid(-h))


def _smooth(name: str, value: Elementwise, derivative: Elementwise, derivative_zero: float) -> Activation:
    value, derivative = _saturated(name, value, jax.nn.relu), _saturated(name, derivative, _step)
    return Activation(name, value, derivative, jnp.sign, _sign_around(derivative_zero), derivative_zero)


#: Every activation by name. The zeros of σ' are the roots to double precision.
ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation("relu", jax.nn.relu, _step, _step, _step, 0.0),
    "gelu": _smooth("gelu", _gelu, _gelu_derivative, -0.7517915246935645),
    "gelu_tanh": _smooth("gelu_tanh", _gelu_tanh, _gelu_tanh_derivative, -0.7524614220710163),
    "silu": _smooth("silu", jax.nn.silu, _silu_derivative, -1.2784645427610737),
}

#: Names that Hugging Face configurations use for the same functions.
ALIASES: dict[str, str] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "swish": "silu",
}


def get_activation(name: str) -> Activation:
    """The activation of that name or alias.

    Args:
        name: ``relu``, ``gelu`` (erf), ``gelu_tanh``, ``silu``, or a Hugging Face alias such as ``gelu_new``.

    Returns:
        The `Activation`.

    Raises:
        InputError: for a name that is neither.

    >>> get_activation("gelu_new").name
    'gelu_tanh'
    """
    known = ACTIVATIONS.get(ALIASES.get(name, name))
    if known is None:
        raise InputError(f"unknown activation {name!r}; known: {', '.join([*ACTIVATIONS, *ALIASES])}")
    return known
