"""Closed-form kernels of the MLP block with factorised weights ``W1 = L1 R1``, ``W2 = L2 R2``.

With ``p = L1ᵀx``, ``a = σ(h)``, ``g = σ'(h)``, ``c = L2ᵀa``, ``V = L2 R2`` and the back-propagated
``s_k = R1 (g ∘ V[:, k])``, the gradients of output k are again products: ``∂f_k/∂R2_pl = δ_kl c_p``,
``∂f_k/∂L2_ip = a_i R2_pk``, ``∂f_k/∂R1_pi = p_p g_i V_ik``, ``∂f_k/∂L1_jp = x_j s_kp``. The sign kernel replaces
right-hand factors by their signs: those of a and g where they are known to change, those of sums (p, c, s, V) as they
are computed; with ``signs="float"`` all as they are computed. The kernels depend on the split into factors, not only
on the products. Constants q and r of the neurons are part of a and g, as in `dense`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.kernels.block.dense import with_constant_signs, with_constants
from ntkfusion.kernels.block.terms import Identity, Neurons, Product, Signals, Term, Terms
from ntkfusion.kernels.kinds import Kind, Signs
from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.dense import FactorizedBlock
from ntkfusion.utils.pytrees import pytree


@pytree
class FactorizedFeatures:
    """The factors of the gradients of n examples, as named above; s is formed where it is needed."""

    x: Float[Array, "n d"]
    p: Float[Array, "n k"]
    a: Float[Array, "n m"]
    g: Float[Array, "n m"]
    c: Float[Array, "n l"]
    v: Float[Array, "m o"]
    right2: Float[Array, "l o"]


def left_features(block: FactorizedBlock, x: Float[Array, "n d"]) -> FactorizedFeatures:
    """The factors themselves: the side of the evaluated example."""
    activation = get_activation(block.activation)
    h = block.preactivation(x)
    a, g = with_constants(block, activation.value(h), activation.derivative(h))
    return FactorizedFeatures(x, x @ block.left1, a, g, a @ block.left2, block.left2 @ block.right2, block.right2)


def right_features(
    block: FactorizedBlock, z: Float[Array, "n d"], kind: Kind, signs: Signs = "exact"
) -> FactorizedFeatures:
    """The side of the training example: the factors for SGD, their signs for the sign kernel.

    With computed signs g and V stay numbers: the sign is that of their product.
    """
    left = left_features(block, z)
    if kind == "sgd":
        return left
    activation, h = get_activation(block.activation), block.preactivation(z)
    a, g = with_constant_signs(block, activation.value_sign(h), activation.derivative_sign(h))
    if signs == "float":
        a, g = jnp.sign(left.a), left.g
    return FactorizedFeatures(
        x=jnp.sign(z),
        p=jnp.sign(left.p),
        a=a,
        g=g,
        c=jnp.sign(left.c),
        v=left.v if signs == "float" else jnp.sign(left.v),
        right2=jnp.sign(left.right2),
    )


def terms(
    block: FactorizedBlock, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind, signs: Signs = "exact"
) -> Terms:
    """The kernel of every parameter, as cores and Gram matrices.

    right2: (C C'ᵀ) I,  left2: (A A'ᵀ) R2ᵀR2',  b1: Σ_i g_i g'_i v_i v'_iᵀ,  right1: (P P'ᵀ) b1,
    left1: (X X'ᵀ) s_k·s'_l, whose trace for SGD is (X X'ᵀ) ∘ G [(R1ᵀR1) ∘ (VVᵀ)/o] G'ᵀ without forming s.
    """
    left, right = left_features(block, x), right_features(block, z, kind, signs)
    # signs are taken of s' as a whole, so that its slopes are not signs
    z_slopes = left.g if z is x else left_features(block, z).g
    neurons = Neurons(left.g, right.g, left.v, right.v, sign=kind == "sign" and signs == "float")
    identity = Identity(block.output_width, left.v.dtype)
    found = {
        "left1": Term(Signals(left.g, z_slopes, left.v, block.right1, kind == "sign"), ((left.x, right.x),)),
        "right1": Term(neurons, ((left.p, right.p),)),
        "b1": Term(neurons),
        "left2": Term(Product(left.right2, right.right2), ((left.a, right.a),)),
        "right2": Term(identity, ((left.c, right.c),)),
        "b2": Term(identity),
    }
    return {name: found[name] for name in block.parameters()}
