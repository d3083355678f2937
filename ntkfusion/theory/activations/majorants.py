"""What a shift of a preactivation from h̃ to h̃ + Δ can do to σ and σ' at one neuron.

Each function bounds one of these (a = σ(h̃ + Δ), g = σ'(h̃ + Δ), ã and g̃ at h̃; σ'' = σ''' = 0 for ReLU):

    value      |a − ã|                         slope         |g − g̃|
    remainder  |a − ã − g̃ Δ|                   slope_second  |g − g̃ − σ''(h̃) Δ|
    third      |a − ã − g̃ Δ − ½ σ''(h̃) Δ²|     crosses       whether h̃ + Δ lies on the other side of a point

Source: own derivation, docs/theory.md, Theorem 3, "One neuron": Taylor's theorem with the remainder bounded by suprema
of σ'' and σ''' on the segment (`supremum_on`, never above L2 and L3), or by the oscillation of σ'. ReLU's are exact.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ntkfusion.models.activations import get_activation
from ntkfusion.theory.activations.derivatives import derivatives
from ntkfusion.theory.activations.suprema import suprema, supremum_on
from ntkfusion.utils.pytrees import pytree

#: What bounds |σ''| (order 2) and |σ'''| (order 3) on segments: (name, order, start, end) → bounds.
Supremum = Callable[[str, int, Float[Array, "*s"], Float[Array, "*s"]], Float[Array, "*s"]]


@pytree
class Majorants:
    """The bounds of the module at N inputs and m neurons; see there.

    Attributes:
        value: Ē.
        remainder: R̄.
        third: R̄3.
        slope: S̄.
        slope_second: S̄2.
    """

    value: Float[Array, "N m"]
    remainder: Float[Array, "N m"]
    third: Float[Array, "N m"]
    slope: Float[Array, "N m"]
    slope_second: Float[Array, "N m"]


def majorants(
    name: str,
    h: Float[Array, "N m"],
    delta: Float[Array, "N m"],
    slack: Float[Array, "N m"] | None = None,
    supremum: Supremum = supremum_on,
) -> Majorants:
    """All bounds of the module.

    Args:
        name: the activation.
        h: h̃, where derivatives are taken.
        delta: Δ.
        slack: how far h̃ and h̃ + Δ may be from the preactivations that a program computes; matters where σ' jumps.
        supremum: what bounds |σ''| and |σ'''| on segments.

    Returns:
        The `Majorants`.

    >>> import jax.numpy as jnp
    >>> found = majorants("relu", jnp.array([[1.0, 1.0]]), jnp.array([[-3.0, 3.0]]))
    >>> found.remainder.tolist(), found.slope.tolist()
    ([[2.0, 0.0]], [[1.0, 0.0]])
    """
    return Majorants(
        value=value_majorant(name, h, delta, supremum),
        remainder=remainder_majorant(name, h, delta, supremum),
        third=third_majorant(name, h, delta, supremum),
        slope=slope_majorant(name, h, delta, slack, supremum),
        slope_second=slope_second_majorant(name, h, delta, slack, supremum),
    )


def value_majorant(
    name: str, h: Float[Array, "*s"], delta: Float[Array, "*s"], supremum: Supremum = supremum_on
) -> Float[Array, "*s"]:
    """Ē = min(L1 |Δ|, |g̃ Δ| + R̄)."""
    size = jnp.abs(delta)
    near = jnp.abs(derivatives(name).first(h)) * size + remainder_majorant(name, h, delta, supremum)
    return jnp.minimum(suprema(name).l1 * size, near)


def remainder_majorant(
    name: str, h: Float[Array, "*s"], delta: Float[Array, "*s"], supremum: Supremum = supremum_on
) -> Float[Array, "*s"]:
    """R̄ = min(½ sup|σ''| Δ², ½|σ''(h̃)| Δ² + ⅙ sup|σ'''| |Δ|³, osc |Δ|), suprema on the segment; exact for ReLU."""
    if _is_relu(name):
        return jnp.where(h > 0, jnp.maximum(-(h + delta), 0), jnp.maximum(h + delta, 0))
    size = jnp.abs(delta)
    second = 0.5 * _on_segment(supremum, name, 2, h, delta) * size
    taylor = (0.5 * jnp.abs(derivatives(name).second(h)) + _on_segment(supremum, name, 3, h, delta) * size / 6) * size
    return size * jnp.minimum(jnp.minimum(second, taylor), suprema(name).osc)


def third_majorant(
    name: str, h: Float[Array, "*s"], delta: Float[Array, "*s"], supremum: Supremum = supremum_on
) -> Float[Array, "*s"]:
    """R̄3 = min(⅙ sup|σ'''| |Δ|³, R̄ + ½|σ''(h̃)| Δ²); R̄ for ReLU."""
    remainder = remainder_majorant(name, h, delta, supremum)
    if _is_relu(name):
        return remainder
    square = delta * delta
    whole = remainder + 0.5 * jnp.abs(derivatives(name).second(h)) * square
    return jnp.minimum(_on_segment(supremum, name, 3, h, delta) * square * jnp.abs(delta) / 6, whole)


def slope_majorant(
    name: str,
    h: Float[Array, "*s"],
    delta: Float[Array, "*s"],
    slack: Float[Array, "*s"] | None = None,
    supremum: Supremum = supremum_on,
) -> Float[Array, "*s"]:
    """S̄ = min(sup|σ''| |Δ|, |σ''(h̃) Δ| + ½ sup|σ'''| Δ², osc); for ReLU 1 where the preactivation may cross 0."""
    if _is_relu(name):
        return crosses(0.0, h, delta, slack).astype(h.dtype)
    size = jnp.abs(delta)
    first = _on_segment(supremum, name, 2, h, delta) * size
    taylor = (jnp.abs(derivatives(name).second(h)) + 0.5 * _on_segment(supremum, name, 3, h, delta) * size) * size
    return jnp.minimum(jnp.minimum(first, taylor), suprema(name).osc)


def slope_second_majorant(
    name: str,
    h: Float[Array, "*s"],
    delta: Float[Array, "*s"],
    slack: Float[Array, "*s"] | None = None,
    supremum: Supremum = supremum_on,
) -> Float[Array, "*s"]:
    """S̄2 = min(½ sup|σ'''| Δ², S̄ + |σ''(h̃) Δ|); S̄ for ReLU."""
    if _is_relu(name):
        return slope_majorant(name, h, delta, slack, supremum)
    whole = slope_majorant(name, h, delta, supremum=supremum) + jnp.abs(derivatives(name).second(h) * delta)
    return jnp.minimum(0.5 * _on_segment(supremum, name, 3, h, delta) * delta * delta, whole)


def crosses(
    point: float, h: Float[Array, "*s"], delta: Float[Array, "*s"], slack: Float[Array, "*s"] | None = None
) -> Bool[Array, "*s"]:
    """Whether `point` lies between h̃ and h̃ + Δ, ends included, each moved by up to `slack`; not where nothing moves.

    Also where that is not known (NaN, from an overflow).
    """
    room = jnp.zeros_like(h) if slack is None else slack
    below, above = jnp.minimum(h, h + delta) - point, jnp.maximum(h, h + delta) - point
    return ~(below > room) & ~(above < -room) & ((delta != 0) | ~(room <= 0))


def _is_relu(name: str) -> bool:
    return get_activation(name).name == "relu"


def _on_segment(
    supremum: Supremum, name: str, order: int, h: Float[Array, "*s"], delta: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    return supremum(get_activation(name).name, order, h, h + delta)
