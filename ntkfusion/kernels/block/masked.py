"""Closed-form kernels of the block with pruned weights ``f(x) = (W2 ∘ M2)ᵀ σ((W1 ∘ M1)ᵀ x + b1) + b2``.

With ``v = W2 ∘ M2``, ``a = σ(h)`` and ``g = σ'(h)`` the gradients of output k are those of a dense block with holes:
``∂f_k/∂W1_ji = M1_ji x_j g_i v_ik``, ``∂f_k/∂b_i = g_i v_ik``, ``∂f_k/∂W2_il = δ_kl M2_il a_i``. A mask couples both
indices of a weight, so the kernel of W1 is no product of Gram matrices any more, but a sum of them over the inputs j:
``Σ_j x_j x'_j Σ_i M1_ji g_i g'_i v_i v'_iᵀ``. The sign kernel replaces right-hand factors by their signs; a mask is its
own sign. Constants q and r of the neurons are part of a and g, as in `dense`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.kernels.block.dense import DenseFeatures, with_constant_signs, with_constants
from ntkfusion.kernels.block.terms import Connections, Diagonal, Identity, Neurons, Term, Terms
from ntkfusion.kernels.kinds import Kind
from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.masked import MaskedBlock


def left_features(block: MaskedBlock, x: Float[Array, "n d"]) -> DenseFeatures:
    """The factors themselves: the side of the evaluated example."""
    activation, h = get_activation(block.activation), block.preactivation(x)
    a, g = with_constants(block, activation.value(h), activation.derivative(h))
    return DenseFeatures(x=x, a=a, g=g, v=block.kept2)


def right_features(block: MaskedBlock, z: Float[Array, "n d"], kind: Kind) -> DenseFeatures:
    """The side of the training example: the factors for SGD, their exact signs for the sign kernel."""
    if kind == "sgd":
        return left_features(block, z)
    activation, h = get_activation(block.activation), block.preactivation(z)
    a, g = with_constant_signs(block, activation.value_sign(h), activation.derivative_sign(h))
    return DenseFeatures(x=jnp.sign(z), a=a, g=g, v=jnp.sign(block.kept2))


def terms(block: MaskedBlock, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind) -> Terms:
    """The kernel of every parameter, as cores and Gram matrices.

    w2: Σ_i M2_ik a_i a'_i at (k, k),  b2: I,  b1: Σ_i g_i g'_i v_i v'_iᵀ,
    w1: Σ_j x_j x'_j Σ_i M1_ji g_i g'_i v_i v'_iᵀ.

    Their traces, with D_i = (1/o) Σ_l v_il v'_il and C_i = (1/o) Σ_l M2_il: w2: A diag(C) A'ᵀ,  b1: G diag(D) G'ᵀ,
    w1: Σ_j (x_j x'_jᵀ) ∘ (G diag(D ∘ M1_j) G'ᵀ).
    """
    left, right = left_features(block, x), right_features(block, z, kind)
    neurons, identity = Neurons(left.g, right.g, left.v, right.v), Identity(block.output_width, left.v.dtype)
    found = {
        "w1": Term(Connections(left.x, right.x, block.mask1, neurons)),
        "b1": Term(neurons),
        "w2": Term(Diagonal(left.a, right.a, block.mask2)),
        "b2": Term(identity),
    }
    return {name: found[name] for name in block.parameters()}
