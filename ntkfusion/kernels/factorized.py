"""Closed-form kernels of the MLP block with factorised weights ``W1 = L1 R1``, ``W2 = L2 R2``.

With ``p = L1ᵀx``, ``a = σ(h)``, ``g = σ'(h)``, ``c = L2ᵀa``, ``V = L2 R2`` and the back-propagated
``s_k = R1 (g ∘ V[:, k])``, the gradients of output k are again products: ``∂f_k/∂R2_pl = δ_kl c_p``,
``∂f_k/∂L2_ip = a_i R2_pk``, ``∂f_k/∂R1_pi = p_p g_i V_ik``, ``∂f_k/∂L1_jp = x_j s_kp``. The sign kernel replaces
right-hand factors by their signs. The kernels depend on the split into factors, not only on the products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.kernels.dense import Kind
from ntkfusion.kernels.tiles import Parts
from ntkfusion.models.activations import get_activation
from ntkfusion.models.mlp import FactorizedBlock
from ntkfusion.models.pytree import pytree


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
    a, v = activation.value(h), block.left2 @ block.right2
    return FactorizedFeatures(x, x @ block.left1, a, activation.derivative(h), a @ block.left2, v, block.right2)


def right_features(block: FactorizedBlock, z: Float[Array, "n d"], kind: Kind) -> FactorizedFeatures:
    """The side of the training example: the factors for SGD, their signs for the sign kernel."""
    left = left_features(block, z)
    if kind == "sgd":
        return left
    activation, h = get_activation(block.activation), block.preactivation(z)
    return FactorizedFeatures(
        x=jnp.sign(z),
        p=jnp.sign(left.p),
        a=activation.value_sign(h),
        g=activation.derivative_sign(h),
        c=jnp.sign(left.c),
        v=jnp.sign(left.v),
        right2=jnp.sign(left.right2),
    )


def backpropagated(
    block: FactorizedBlock, g: Float[Array, "n m"], v: Float[Array, "m o"], index: int | Int[Array, ""]
) -> Float[Array, "n o"]:
    """Component `index` of s_k = R1 (g ∘ V[:, k]), the signal that reaches L1, for every example and output k."""
    return (g * block.right1[index][None, :]) @ v


def _signal_kernel(
    block: FactorizedBlock, x: FactorizedFeatures, z: FactorizedFeatures, kind: Kind
) -> Float[Array, "n k"]:
    """Σ_kp s_kp s'_kp, one component p at a time: s itself would be the largest array by far."""
    if kind == "sgd":
        mixing = (block.right1.T @ block.right1) * (x.v @ x.v.T)
        return (x.g @ mixing) @ z.g.T

    def add(index: Int[Array, ""], total: Float[Array, "n k"]) -> Float[Array, "n k"]:
        s = backpropagated(block, x.g, x.v, index)
        t = s if z is x else backpropagated(block, z.g, z.v, index)
        return total + s @ jnp.sign(t).T

    zeros = jnp.zeros((x.g.shape[0], z.g.shape[0]), x.g.dtype)
    return jax.lax.fori_loop(0, block.right1.shape[0], add, zeros)


def traced_parts(block: FactorizedBlock, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind) -> Parts:
    """The traced kernel of every parameter, [n, k], mean over outputs.

    right2: C C'ᵀ,  left2: (A A'ᵀ) Σ_pk R2_pk R2'_pk / o,  b1: G diag(D) G'ᵀ,  right1: (P P'ᵀ) ∘ b1,
    left1: (X X'ᵀ) ∘ Σ_kp s_kp s'_kp / o, which for SGD is G [(R1ᵀR1) ∘ (VVᵀ)/o] G'ᵀ without forming s.
    """
    left, right = left_features(block, x), right_features(block, z, kind)
    o = block.output_width
    bias = (left.g * jnp.mean(left.v * right.v, axis=1)[None, :]) @ right.g.T
    signal = _signal_kernel(block, left, left if z is x else left_features(block, z), kind)
    parts = {
        "left1": (left.x @ right.x.T) * signal / o,
        "right1": (left.p @ right.p.T) * bias,
        "b1": bias,
        "left2": (left.a @ right.a.T) * (jnp.sum(left.right2 * right.right2) / o),
        "right2": left.c @ right.c.T,
        "b2": jnp.ones_like(bias),
    }
    return {name: parts[name] for name in block.parameters()}


def full_parts(block: FactorizedBlock, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind) -> Parts:
    """The full kernel of every parameter, [n, k, o, o]: the sums of `traced_parts` with their output indices kept."""
    left, right = left_features(block, x), right_features(block, z, kind)
    identity = jnp.eye(block.output_width, dtype=left.v.dtype)[None, None]
    bias = jnp.einsum("nki,ip,iq->nkpq", left.g[:, None, :] * right.g[None, :, :], left.v, right.v)
    z_slopes = left_features(block, z).g
    s = jnp.einsum("ni,ji,ip->npj", left.g, block.right1, left.v)
    t = jnp.einsum("ni,ji,ip->npj", z_slopes, block.right1, left.v)
    signal = jnp.einsum("npj,kqj->nkpq", s, jnp.sign(t) if kind == "sign" else t)
    parts = {
        "left1": (left.x @ right.x.T)[..., None, None] * signal,
        "right1": (left.p @ right.p.T)[..., None, None] * bias,
        "b1": bias,
        "left2": (left.a @ right.a.T)[..., None, None] * (left.right2.T @ right.right2)[None, None],
        "right2": (left.c @ right.c.T)[..., None, None] * identity,
        "b2": jnp.broadcast_to(identity, bias.shape),
    }
    return {name: parts[name] for name in block.parameters()}
