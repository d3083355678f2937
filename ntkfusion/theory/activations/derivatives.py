"""σ, σ', σ'' and σ''' of every activation in closed form, right in the tails.

Each smooth activation is σ(h) = h P(h), with P = Φ (gelu), the logistic function s (silu) or s(u), u = k (h + c h³)
(gelu_tanh). With φ = Φ', s' = s(1 − s), s'' = s'(1 − 2s), s''' = s'(1 − 6s'):

    gelu    σ' = Φ + h φ       σ'' = φ (2 − h²)       σ''' = φ h (h² − 4)
    others  σ' = P + h P'      σ'' = 2P' + h P''      σ''' = 3P'' + h P'''
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.activations import Elementwise, far, get_activation

INV_SQRT_2PI = 0.3989422804014327


#: u = SLOPE (h + CUBIC h³) of gelu_tanh: ½(1 + tanh(u/2)) = s(u).
SLOPE = 1.5957691216057308


CUBIC = 0.044715


@dataclass(frozen=True)
class Derivatives:
    """An activation and its derivatives, element by element.

    Attributes:
        name: one of `ntkfusion.models.activations.ACTIVATIONS`' keys.
        value: σ(h).
        first: σ'(h); ReLU'(0) = 0.
        second: σ''(h); 0 for ReLU, which has none at 0.
        third: σ'''(h); likewise.
    """

    name: str
    value: Elementwise
    first: Elementwise
    second: Elementwise
    third: Elementwise


def derivatives(name: str) -> Derivatives:
    """The derivatives of an activation.

    Args:
        name: a name or alias that `ntkfusion.models.activations.get_activation` knows.

    Returns:
        The functions σ, σ', σ'', σ'''.

    Raises:
        InputError: for an unknown name.

    >>> import jax.numpy as jnp
    >>> float(derivatives("silu").second(jnp.zeros(())))
    0.5
    """
    activation = get_activation(name)
    second, third = (_clipped(activation.name, f) for f in _HIGHER[activation.name])
    return Derivatives(activation.name, activation.value, activation.derivative, second, third)


def _clipped(name: str, f: Elementwise) -> Elementwise:
    """Beyond `far` every decaying factor is 0, and powers of h may overflow."""
    if name == "relu":
        return f

    def clipped(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
        limit = far(name, h.dtype)
        return f(jnp.clip(h, -limit, limit))

    return clipped


def _gauss(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return INV_SQRT_2PI * jnp.exp(-0.5 * h * h)


def _gelu_second(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return _gauss(h) * (2 - h * h)


def _gelu_third(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return _gauss(h) * h * (h * h - 4)


def _logistic(u: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Float[Array, "*s"], Float[Array, "*s"]]:
    """s', s'' and s'''; s' is a product and 1 − 2s a tanh, so that nothing cancels."""
    first = jax.nn.sigmoid(u) * jax.nn.sigmoid(-u)
    return first, -first * jnp.tanh(0.5 * u), first * (1 - 6 * first)


def _silu_second(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
    s1, s2, _ = _logistic(h)
    return 2 * s1 + h * s2


def _silu_third(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
    _, s2, s3 = _logistic(h)
    return 3 * s2 + h * s3


def _inner(h: Float[Array, "*s"]) -> tuple[Float[Array, "*s"], Float[Array, "*s"], Float[Array, "*s"]]:
    """The inner u, u' and u'' of gelu_tanh; u''' = 6 SLOPE CUBIC."""
    return SLOPE * (h + CUBIC * h * h * h), SLOPE * (1 + 3 * CUBIC * h * h), 6 * SLOPE * CUBIC * h


def _gelu_tanh_second(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
    u, u1, u2 = _inner(h)
    s1, s2, _ = _logistic(u)
    return 2 * s1 * u1 + h * (s2 * u1 * u1 + s1 * u2)


def _gelu_tanh_third(h: Float[Array, "*s"]) -> Float[Array, "*s"]:
    u, u1, u2 = _inner(h)
    s1, s2, s3 = _logistic(u)
    third = s3 * u1 * u1 * u1 + 3 * s2 * u1 * u2 + s1 * (6 * SLOPE * CUBIC)
    return 3 * (s2 * u1 * u1 + s1 * u2) + h * third


_HIGHER: dict[str, tuple[Elementwise, Elementwise]] = {
    "relu": (jnp.zeros_like, jnp.zeros_like),
    "gelu": (_gelu_second, _gelu_third),
    "gelu_tanh": (_gelu_tanh_second, _gelu_tanh_third),
    "silu": (_silu_second, _silu_third),
}
