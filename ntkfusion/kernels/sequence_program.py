"""The program behind `sequence_kernel`: the factors of every gradient, and their kernel by the cheaper form."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.kernels.block_program import PRODUCT_FORMS
from ntkfusion.kernels.dense import Kind
from ntkfusion.kernels.tiles import Parts
from ntkfusion.models.gated import GatedBlock
from ntkfusion.models.mlp import Block, FactorizedBlock, MLPBlock

#: Numbers that a chunk of gradients, or of Gram matrices of tokens, may hold.
CHUNK = 2**25

#: The two factors of a parameter's gradient; biases have no first one.
Factors = tuple[Float[Array, "N T p"] | None, Float[Array, "N T C q"]]


def gradient_factors(block: Block, x: Float[Array, "N T d"], cotangents: Float[Array, "N T C o"]) -> dict[str, Factors]:
    """The factors u, w of every parameter's gradient ``Σ_t u_t w_tcᵀ``."""
    rows = PRODUCT_FORMS[type(block)].left_features(block, x.reshape(-1, x.shape[2]))

    def tokens(feature: Float[Array, "n p"]) -> Float[Array, "N T p"]:
        return feature.reshape(*x.shape[:2], -1)

    back = cotangents @ rows.v.T

    def delta(slopes: Float[Array, "n m"]) -> Float[Array, "N T C m"]:
        return tokens(slopes)[:, :, None, :] * back

    a = tokens(rows.a)
    if isinstance(block, MLPBlock):
        found = {"w1": (x, delta(rows.g)), "b1": (None, delta(rows.g)), "w2": (a, cotangents)}
    elif isinstance(block, GatedBlock):
        gate, up = delta(rows.gate), delta(rows.up)
        found = {"gate": (x, gate), "gate_bias": (None, gate), "up": (x, up), "up_bias": (None, up)}
        found["w2"] = (a, cotangents)
    else:
        assert isinstance(block, FactorizedBlock)
        signal = delta(rows.g)
        found = {"left1": (x, signal @ block.right1.T), "right1": (tokens(rows.p), signal), "b1": (None, signal)}
        found |= {"left2": (a, cotangents @ block.right2.T), "right2": (tokens(rows.c), cotangents)}
    found["b2"] = (None, cotangents)
    return {name: found[name] for name in block.parameters()}


@partial(jax.jit, static_argnames="kind")
def sequence_program(
    block: Block,
    x: Float[Array, "N T d"],
    cotangents: Float[Array, "N T C o"],
    z: Float[Array, "M S d"] | None,
    z_cotangents: Float[Array, "M S C o"] | None,
    kind: Kind,
) -> Parts:
    """The kernels of all parameters; see `sequence_kernel`."""
    left = gradient_factors(block, x, cotangents)
    right = left if z is None or z_cotangents is None else gradient_factors(block, z, z_cotangents)
    parts = {}
    for name, (u, w) in left.items():
        u_right, w_right = right[name]
        if u is None or u_right is None:
            # a bias: one row of the gradient, whose factor is 1 at every token
            u, u_right = jnp.ones((*w.shape[:2], 1), w.dtype), jnp.ones((*w_right.shape[:2], 1), w.dtype)
        by_tokens = kind == "sgd" and tokens_are_cheaper(u, w, u_right, w_right)
        parts[name] = _through_tokens(u, w, u_right, w_right) if by_tokens else _rows(u, w, u_right, w_right, kind)
    return parts


def tokens_are_cheaper(
    u: Float[Array, "N T p"],
    w: Float[Array, "N T C q"],
    u_right: Float[Array, "M S p"],
    w_right: Float[Array, "M S D q"],
) -> bool:
    """Whether Gram matrices of tokens take fewer multiplications than the gradients and their products."""
    (n, t, c, q), (m, s, d, _), p = w.shape, w_right.shape, u.shape[2]
    return n * m * t * s * (p + c * d * (q + 1)) < p * q * (n * t * c + m * s * d + n * m * c * d)


def _through_tokens(
    u: Float[Array, "N T p"],
    w: Float[Array, "N T C q"],
    u_right: Float[Array, "M S p"],
    w_right: Float[Array, "M S D q"],
) -> Float[Array, "N M C D"]:
    """Σ_ts (u_t·u'_s)(w_tc·w'_sd), one x at a time against a few z."""
    (_, t, c, _), (_, s, d, _) = w.shape, w_right.shape

    def pair(left: tuple[Array, Array], right: tuple[Array, Array]) -> Float[Array, "C D"]:
        joint = jnp.einsum("tcq,sdq->tscd", left[1], right[1])
        return jnp.sum((left[0] @ right[0].T)[:, :, None, None] * joint, axis=(0, 1))

    def row(left: tuple[Array, Array]) -> Float[Array, "M C D"]:
        return jax.lax.map(partial(pair, left), (u_right, w_right), batch_size=max(1, CHUNK // (t * s * c * d)))

    return jax.lax.map(row, (u, w))


def _rows(
    u: Float[Array, "N T p"],
    w: Float[Array, "N T C q"],
    u_right: Float[Array, "M S p"],
    w_right: Float[Array, "M S D q"],
    kind: Kind,
) -> Float[Array, "N M C D"]:
    """Through the gradients G[n, c] = Σ_t u_t w_tcᵀ (training side: their signs), a few of their p rows at a time."""
    (n, _, c, q), (m, _, d, _), p = w.shape, w_right.shape, u.shape[2]
    count = max(1, min(p, CHUNK // ((n * c + m * d) * q)))
    num_chunks = -(-p // count)

    def chunks(factor: Float[Array, "N T p"]) -> Float[Array, "chunks N T rows"]:
        padded = jnp.pad(factor, ((0, 0), (0, 0), (0, num_chunks * count - p)))
        return jnp.moveaxis(padded.reshape(*factor.shape[:2], num_chunks, count), 2, 0)

    def add(total: Float[Array, "n m"], rows: tuple[Array, Array]) -> tuple[Float[Array, "n m"], None]:
        g = jnp.einsum("ntp,ntcq->ncpq", rows[0], w).reshape(n * c, -1)
        same = u_right is u and w_right is w
        h = g if same else jnp.einsum("ntp,ntcq->ncpq", rows[1], w_right).reshape(m * d, -1)
        return total + g @ (jnp.sign(h) if kind == "sign" else h).T, None

    total, _ = jax.lax.scan(add, jnp.zeros((n * c, m * d), w.dtype), (chunks(u), chunks(u_right)))
    return total.reshape(n, c, m, d).transpose(0, 2, 1, 3)
