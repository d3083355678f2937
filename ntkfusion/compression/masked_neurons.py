"""The kernel of a block with pruned weights, neuron by neuron; see `neuron_kernels`.

A mask couples a neuron to its own inputs, so every neuron has a Gram matrix M_j(x, z) = Σ_i M1_ij x_i x'_i + 1 of its
own, and the normal equations are sums over pairs of tokens. They are built row by row: no array has N² columns.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.kernels import masked
from ntkfusion.kernels.dense import Kind
from ntkfusion.models.masked import MaskedBlock
from ntkfusion.models.pytree import pytree


@pytree
class MaskedNeuronKernels:
    """As `NeuronKernels`, with what makes the Gram matrix of every neuron in place of one for all.

    Attributes:
        a: a_j(x), times the share of outputs that the neuron still reaches, [N, c].
        a_right: a'_j(z), [M, c].
        g: g_j(x) times the trace of v_j v'_jᵀ, [N, c].
        g_right: g'_j(z), [M, c].
        x: inputs, [N, d].
        x_right: inputs of the other side or their signs, [M, d].
        mask: M1, [d, c].
        bias: 1 if there are input biases, else 0.
        fixed: F(x, z), [N, M].
    """

    a: Float[Array, "N c"]
    a_right: Float[Array, "M c"]
    g: Float[Array, "N c"]
    g_right: Float[Array, "M c"]
    x: Float[Array, "N d"]
    x_right: Float[Array, "M d"]
    mask: Float[Array, "d c"]
    bias: Float[Array, ""]
    fixed: Float[Array, "N M"]

    def _hidden(self, x: Float[Array, " d"], g: Float[Array, " c"]) -> Float[Array, "c M"]:
        """The kernel of every neuron's input weights and bias at one x and all z."""
        gram = (self.mask * x[:, None]).T @ self.x_right.T + self.bias
        return g[:, None] * self.g_right.T * gram

    def kernel(self, t: Float[Array, " c"], s: Float[Array, " c"]) -> Float[Array, "N M"]:
        """K̃ for given t and s."""
        inner = jax.lax.map(lambda row: s @ self._hidden(*row), (self.x, self.g))
        return self.fixed + (self.a * t[None, :]) @ self.a_right.T + inner

    def inner_products(self, rest: Float[Array, "N M"]) -> tuple[Array, Array, Array]:
        """⟨input, input⟩ and ⟨output, input⟩ kernels of all pairs of neurons, [c, c], and ⟨input kernel, rest⟩, [c]."""

        def add(
            sums: tuple[Array, Array, Array], row: tuple[Array, Array, Array, Array]
        ) -> tuple[tuple[Array, Array, Array], None]:
            x, a, g, left = row
            hidden, outputs = self._hidden(x, g), a[:, None] * self.a_right.T
            return (sums[0] + hidden @ hidden.T, sums[1] + outputs @ hidden.T, sums[2] + hidden @ left), None

        square = jnp.zeros((self.mask.shape[1],) * 2, self.x.dtype)
        start = (square, square, jnp.zeros(self.mask.shape[1], self.x.dtype))
        return jax.lax.scan(add, start, (self.x, self.a, self.g, rest))[0]


def masked_neuron_kernels(
    block: MaskedBlock, x: Float[Array, "N d"], kind: Kind, fixed: Float[Array, "N N"]
) -> MaskedNeuronKernels:
    """The kernel of a masked block without constants on the inputs x, neuron by neuron; `fixed` is F."""
    left, right = masked.left_features(block, x), masked.right_features(block, x, kind)
    weights = jnp.sum(left.v * right.v, axis=1) / block.output_width
    reached = jnp.mean(block.mask2, axis=1)
    bias = jnp.asarray(0.0 if block.b1 is None else 1.0, x.dtype)
    return MaskedNeuronKernels(
        left.a * reached[None, :],
        right.a,
        left.g * weights[None, :],
        right.g,
        left.x,
        right.x,
        block.mask1,
        bias,
        fixed,
    )
