"""Closed-form kernels of the gated block ``f(x) = W2ᵀ (σ(hg) ∘ hu) + b2``.

With ``hg = Wgᵀx + bg``, ``hu = Wuᵀx + bu``, ``a = σ(hg) ∘ hu`` the gradients of output k are
``∂f_k/∂W2_il = δ_kl a_i``, ``∂f_k/∂Wg_i = v_ik σ'(hg_i) hu_i x`` and ``∂f_k/∂Wu_i = v_ik σ(hg_i) x``: a dense block
with two kinds of slopes. The sign kernel replaces right-hand factors by their signs, those of σ and σ' from the exact
tables; with ``signs="float"`` the products that come back to gate and up are taken as they are computed.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.kernels.block.terms import Identity, Neurons, Term, Terms
from ntkfusion.kernels.kinds import Kind, Signs
from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.gated import GatedBlock
from ntkfusion.utils.pytrees import pytree


@pytree
class GatedFeatures:
    """The factors of the gradients of n examples: inputs, activations, slopes of gate and up, output weights."""

    x: Float[Array, "n d"]
    a: Float[Array, "n m"]
    gate: Float[Array, "n m"]
    up: Float[Array, "n m"]
    v: Float[Array, "m o"]


def left_features(block: GatedBlock, x: Float[Array, "n d"]) -> GatedFeatures:
    """The factors themselves: the side of the evaluated example."""
    activation, (gate, up) = get_activation(block.activation), block.preactivations(x)
    s = activation.value(gate)
    return GatedFeatures(x, s * up, activation.derivative(gate) * up, s, block.w2)


def right_features(block: GatedBlock, z: Float[Array, "n d"], kind: Kind, signs: Signs = "exact") -> GatedFeatures:
    """The side of the training example: the factors for SGD, their exact signs for the sign kernel.

    With computed signs slopes and v stay numbers: the sign is that of their product.
    """
    if kind == "sgd":
        return left_features(block, z)
    if signs == "float":
        left = left_features(block, z)
        return GatedFeatures(jnp.sign(z), jnp.sign(left.a), left.gate, left.up, left.v)
    activation, (gate, up) = get_activation(block.activation), block.preactivations(z)
    s, linear = activation.value_sign(gate), jnp.sign(up)
    return GatedFeatures(jnp.sign(z), s * linear, activation.derivative_sign(gate) * linear, s, jnp.sign(block.w2))


def terms(
    block: GatedBlock, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind, signs: Signs = "exact"
) -> Terms:
    """The kernel of every parameter, as cores and Gram matrices.

    w2: (A A'ᵀ) I,  b2: I,  gate_bias: Σ_i g_i g'_i v_i v'_iᵀ with g = σ'(hg) ∘ hu,  up_bias: the same with g = σ(hg),
    gate and up: (X X'ᵀ) times those.
    """
    left, right = left_features(block, x), right_features(block, z, kind, signs)
    computed = kind == "sign" and signs == "float"
    gate = Neurons(left.gate, right.gate, left.v, right.v, sign=computed)
    up = Neurons(left.up, right.up, left.v, right.v, sign=computed)
    identity, inputs = Identity(block.output_width, left.v.dtype), (left.x, right.x)
    found = {
        "gate": Term(gate, (inputs,)),
        "gate_bias": Term(gate),
        "up": Term(up, (inputs,)),
        "up_bias": Term(up),
        "w2": Term(identity, ((left.a, right.a),)),
        "b2": Term(identity),
    }
    return {name: found[name] for name in block.parameters()}
