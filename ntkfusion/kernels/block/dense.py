"""Closed-form kernels of the dense MLP block, whole or with pruned weights.

For ``f(x) = Σ_i q_i v_i σ(r_i (w_i·x + b_i)) + b2`` write ``a_i = q_i σ(h_i)`` and ``g_i = q_i r_i σ'(h_i)``, with
``h_i = r_i (w_i·x + b_i)``. The gradients of output k are ``∂f_k/∂v_il = δ_kl a_i``, ``∂f_k/∂b2_l = δ_kl``,
``∂f_k/∂b_i = v_ik g_i`` and ``∂f_k/∂w_i = v_ik g_i x``, each of them a product. So every kernel is a product of Gram
matrices, and for the sign kernel ``⟨∇f(x), sgn ∇f(z)⟩`` the right-hand factors are replaced by their signs, because
``sgn(uvᵀ) = sgn(u) sgn(v)ᵀ`` and q, r enter like any other factor.

A block with pruned weights, ``W1 ∘ M1`` and ``W2 ∘ M2``, has the same a and g and v = W2 ∘ M2; its gradients have
holes: ``∂f_k/∂W1_ji = M1_ji x_j g_i v_ik`` and ``∂f_k/∂W2_il = δ_kl M2_il a_i``. A mask couples both indices of a
weight, so the kernel of W1 is no product of Gram matrices any more, but a sum of them over the inputs j:
``Σ_j x_j x'_j Σ_i M1_ji g_i g'_i v_i v'_iᵀ``. A mask is its own sign.

Signs are exact: those of σ and σ' come from where they are known to change, so that a slope that underflows to 0 in
float32 still has its mathematical sign. A real optimiser would not move that parameter: with ``signs="float"`` the
factors that the arithmetic gives are taken, a and what comes back to the neuron, ``g_i v_ik``.

The sign kernel is the "asymmetric SignGD kernel" of Malladi et al., "A Kernel-Based View of Language Model Fine-Tuning"
(arXiv 2210.05643), and the Adam kernel of MLP Fusion (arXiv 2307.08941).
"""

from __future__ import annotations

from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.kernels.block.terms import Connections, Diagonal, Identity, Neurons, Term, Terms
from ntkfusion.kernels.kinds import Kind, Signs
from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.base import scaled
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.masked import MaskedBlock
from ntkfusion.utils.pytrees import pytree

#: Blocks whose neurons have constants.
Neural: TypeAlias = MLPBlock | FactorizedBlock | MaskedBlock


@pytree
class DenseFeatures:
    """The factors of the gradients of n examples: inputs x, activations a, slopes g and output weights v."""

    x: Float[Array, "n d"]
    a: Float[Array, "n m"]
    g: Float[Array, "n m"]
    v: Float[Array, "m o"]


def with_constants(
    block: Neural, a: Float[Array, "n m"], g: Float[Array, "n m"]
) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
    """What q and r make of σ(h) and σ'(h): q σ(h) and q r σ'(h)."""
    return scaled(a, block.q), scaled(scaled(g, block.q), block.r)


def with_constant_signs(
    block: Neural, a: Float[Array, "n m"], g: Float[Array, "n m"]
) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
    """The signs of q σ(h) and q r σ'(h) from those of σ(h) and σ'(h)."""
    q, r = (None if constant is None else jnp.sign(constant) for constant in (block.q, block.r))
    return scaled(a, q), scaled(scaled(g, q), r)


def output_weights(block: MLPBlock | MaskedBlock) -> Float[Array, "m o"]:
    """The weights v that the outputs are made with: of a pruned block, those that are left."""
    return block.kept2 if isinstance(block, MaskedBlock) else block.w2


def left_features(block: MLPBlock | MaskedBlock, x: Float[Array, "n d"]) -> DenseFeatures:
    """The factors themselves: the side of the evaluated example."""
    activation, h = get_activation(block.activation), block.preactivation(x)
    a, g = with_constants(block, activation.value(h), activation.derivative(h))
    return DenseFeatures(x=x, a=a, g=g, v=output_weights(block))


def right_features(
    block: MLPBlock | MaskedBlock, z: Float[Array, "n d"], kind: Kind, signs: Signs = "exact"
) -> DenseFeatures:
    """The side of the training example: the factors for SGD, their exact signs for the sign kernel.

    With computed signs g and v stay numbers: the sign is that of their product.
    """
    if kind == "sgd":
        return left_features(block, z)
    if signs == "float":
        left = left_features(block, z)
        return DenseFeatures(x=jnp.sign(z), a=jnp.sign(left.a), g=left.g, v=left.v)
    activation, h = get_activation(block.activation), block.preactivation(z)
    a, g = with_constant_signs(block, activation.value_sign(h), activation.derivative_sign(h))
    return DenseFeatures(x=jnp.sign(z), a=a, g=g, v=jnp.sign(output_weights(block)))


def neurons_of(left: DenseFeatures, right: DenseFeatures, kind: Kind, signs: Signs) -> Neurons:
    """What reaches the outputs through the neurons."""
    return Neurons(left.g, right.g, left.v, right.v, sign=kind == "sign" and signs == "float")


def terms(block: MLPBlock, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind, signs: Signs = "exact") -> Terms:
    """The kernel of every parameter, as cores and Gram matrices.

    w2: (A A'ᵀ) I,  b2: I,  b1: Σ_i g_i g'_i v_i v'_iᵀ,  w1: (X X'ᵀ) b1. Their traces, with D_i = (1/o) Σ_l v_il v'_il:
    w2: A A'ᵀ,  b2: 1,  b1: G diag(D) G'ᵀ,  w1: (X X'ᵀ) ∘ b1.
    """
    left, right = left_features(block, x), right_features(block, z, kind, signs)
    neurons, identity = neurons_of(left, right, kind, signs), Identity(block.output_width, left.v.dtype)
    found = {
        "w1": Term(neurons, ((left.x, right.x),)),
        "b1": Term(neurons),
        "w2": Term(identity, ((left.a, right.a),)),
        "b2": Term(identity),
    }
    return {name: found[name] for name in block.parameters()}


def masked_terms(
    block: MaskedBlock, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind, signs: Signs = "exact"
) -> Terms:
    """The same for a block with pruned weights.

    w2: Σ_i M2_ik a_i a'_i at (k, k),  b2: I,  b1: Σ_i g_i g'_i v_i v'_iᵀ,
    w1: Σ_j x_j x'_j Σ_i M1_ji g_i g'_i v_i v'_iᵀ.

    Their traces, with D_i = (1/o) Σ_l v_il v'_il and C_i = (1/o) Σ_l M2_il: w2: A diag(C) A'ᵀ,  b1: G diag(D) G'ᵀ,
    w1: Σ_j (x_j x'_jᵀ) ∘ (G diag(D ∘ M1_j) G'ᵀ).
    """
    left, right = left_features(block, x), right_features(block, z, kind, signs)
    neurons, identity = neurons_of(left, right, kind, signs), Identity(block.output_width, left.v.dtype)
    found = {
        "w1": Term(Connections(left.x, right.x, block.mask1, neurons)),
        "b1": Term(neurons),
        "w2": Term(Diagonal(left.a, right.a, block.mask2)),
        "b2": Term(identity),
    }
    return {name: found[name] for name in block.parameters()}
