"""A block's traced kernel as a linear function of its neurons' constants, and the least-squares problem that follows.

Any block may be written with constants γ_j behind and α_j in front of the activation of neuron j, while the trained
weights are divided by them: the function stays, and the gradients with respect to the trained weights are multiplied by
γ_j (output weights) and α_j (input weights and bias). With t_j = γ_j², s_j = α_j² (SGD kernel) or t_j = γ_j, s_j = α_j
(sign kernel, where the right-hand side enters by its signs) the traced kernel is

``K̃(x, z) = F(x, z) + Σ_j t_j a_j(x) a'_j(z) + M(x, z) Σ_j s_j g_j(x) g'_j(z)``,

F being the part of parameters that belong to no neuron (output biases; of a factorised block the factors left1 and
right2 too) and M the Gram matrix of the inputs, plus 1 if there are input biases; for a factorised block left1ᵀx stands
for x. The least-squares distance to a kernel K0 is quadratic in (t, s), and its normal equations need no array of N²
columns: ``⟨a_j a'_jᵀ, a_k a'_kᵀ⟩ = (a_j·a_k)(a'_j·a'_k)`` and
``⟨M ∘ g_j g'_jᵀ, M ∘ g_k g'_kᵀ⟩ = (g_j∘g_k)ᵀ (M∘M) (g'_j∘g'_k)``.

The mask of a block with pruned weights couples a neuron to its own inputs, so every neuron has a Gram matrix
M_j(x, z) = Σ_i M1_ij x_i x'_i + 1 of its own, and the normal equations are sums over pairs of tokens. They are built
row by row, again without an array of N² columns.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from ntkfusion.errors import InputError
from ntkfusion.kernels.block import dense, factorized
from ntkfusion.kernels.block.program import block_terms
from ntkfusion.kernels.block.terms import evaluate
from ntkfusion.kernels.kinds import Kind
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.masked import MaskedBlock
from ntkfusion.utils.pytrees import pytree

#: The power of the constants (γ, α) that enters each kernel.
POWERS: dict[Kind, int] = {"sgd": 2, "sign": 1}

#: The parameters of a block that its neurons' constants scale, by kind of block.
SCALED: dict[type, tuple[str, ...]] = {
    MLPBlock: ("w1", "b1", "w2"),
    MaskedBlock: ("w1", "b1", "w2"),
    FactorizedBlock: ("right1", "b1", "left2"),
}


@pytree
class NeuronKernels:
    """The kernel of a block without constants, neuron by neuron; see the module.

    Attributes:
        a: a_j(x), times what every output weight's kernel has in common, [N, c].
        a_right: a'_j(z), [M, c].
        g: g_j(x) times the trace of v_j v'_jᵀ, [N, c].
        g_right: g'_j(z), [M, c].
        gram: M(x, z), [N, M].
        fixed: F(x, z), [N, M].
    """

    a: Float[Array, "N c"]
    a_right: Float[Array, "M c"]
    g: Float[Array, "N c"]
    g_right: Float[Array, "M c"]
    gram: Float[Array, "N M"]
    fixed: Float[Array, "N M"]

    def kernel(self, t: Float[Array, " c"], s: Float[Array, " c"]) -> Float[Array, "N M"]:
        """K̃ for given t and s."""
        inner = (self.g * s[None, :]) @ self.g_right.T
        return self.fixed + (self.a * t[None, :]) @ self.a_right.T + self.gram * inner

    def inner_products(self, rest: Float[Array, "N M"]) -> tuple[Array, Array, Array]:
        """⟨input, input⟩ and ⟨output, input⟩ kernels of all pairs of neurons, [c, c], and ⟨input kernel, rest⟩, [c]."""
        squares = self.gram * self.gram

        def row(neuron: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
            a, a_right, g, g_right = (column[:, None] for column in neuron)
            inputs = jnp.sum((g * self.g) * (squares @ (g_right * self.g_right)), axis=0)
            mixed = jnp.sum((a * self.g) * (self.gram @ (a_right * self.g_right)), axis=0)
            return inputs, mixed

        inputs, mixed = jax.lax.map(row, (self.a.T, self.a_right.T, self.g.T, self.g_right.T))
        return inputs, mixed, jnp.sum(self.g * ((self.gram * rest) @ self.g_right), axis=0)


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


@dataclasses.dataclass(frozen=True)
class NormalEquations:
    """‖K̃ − K0‖² / ‖K0‖² = uᵀHu − 2 rᵀu + k for u = (t, s), in float64.

    Attributes:
        matrix: H, [2c, 2c].
        target: r, [2c].
        constant: k, the error of the fixed part alone.
    """

    matrix: NDArray[np.float64]
    target: NDArray[np.float64]
    constant: float

    def error(self, solution: NDArray[np.float64]) -> float:
        """The relative Frobenius error of the kernel for u."""
        square = solution @ (self.matrix @ solution) - 2 * self.target @ solution + self.constant
        return float(np.sqrt(max(square, 0.0)))


def neuron_kernels(block: Block, x: Float[Array, "N d"], kind: Kind) -> NeuronKernels | MaskedNeuronKernels:
    """The kernel of `block` on the inputs x, neuron by neuron.

    Args:
        block: a dense, masked or factorised block; constants that it has are folded into the weights.
        x: inputs, for both sides of the kernel.
        kind: "sgd" or "sign".

    Returns:
        The factors; with t = s = 1 they give the block's own kernel.

    Raises:
        InputError: for another kind of block.
    """
    if not isinstance(block, (MLPBlock, MaskedBlock, FactorizedBlock)):
        raise InputError(f"constants are matched for dense, masked and factorised blocks; got a {type(block).__name__}")
    block = block.fold()
    # only these are evaluated: the others are what the factors describe
    others = {name: term for name, term in block_terms(block, x, x, kind).items() if name not in SCALED[type(block)]}
    fixed = sum(evaluate(others, "trace", (x.shape[0], x.shape[0])).values(), jnp.zeros((x.shape[0],) * 2, x.dtype))
    if isinstance(block, MaskedBlock):
        return _masked_neuron_kernels(block, x, kind, fixed)
    if isinstance(block, MLPBlock):
        left, right = dense.left_features(block, x), dense.right_features(block, x, kind)
        gram, scale = left.x @ right.x.T, jnp.ones((), x.dtype)
    else:
        left, right = factorized.left_features(block, x), factorized.right_features(block, x, kind)
        gram, scale = left.p @ right.p.T, jnp.sum(left.right2 * right.right2) / block.output_width
    weights = jnp.sum(left.v * right.v, axis=1) / block.output_width
    bias = 0 if block.b1 is None else 1
    return NeuronKernels(left.a * scale, right.a, left.g * weights[None, :], right.g, gram + bias, fixed)


def _masked_neuron_kernels(
    block: MaskedBlock, x: Float[Array, "N d"], kind: Kind, fixed: Float[Array, "N N"]
) -> MaskedNeuronKernels:
    """The kernel of a masked block without constants on the inputs x, neuron by neuron; `fixed` is F."""
    left, right = dense.left_features(block, x), dense.right_features(block, x, kind)
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


def normal_equations(
    block: Block, reference: Float[Array, "N N"], x: Float[Array, "N d"], kind: Kind
) -> NormalEquations:
    """The least-squares problem of bringing a block's kernel closest to a reference by its neurons' constants.

    Args:
        block: a dense, masked or factorised block.
        reference: the kernel to come close to, on the same inputs, for example of the original block.
        x: inputs (N² c² multiplications).
        kind: of both kernels.

    Returns:
        The normal equations, relative to ‖reference‖².

    Raises:
        InputError: for another kind of block, or a reference that is 0 or not finite.
    """
    with jax.default_matmul_precision("highest"):
        matrix, target, constant, norm = _equations(neuron_kernels(block, x, kind), reference)
    if not np.isfinite(float(norm)):
        raise InputError("the reference kernel is not finite on the calibration inputs; check inputs and block")
    if not float(norm) > 0:
        raise InputError("the reference kernel is 0 on the calibration inputs; give inputs that reach the block")
    scale = float(norm)
    halves = np.asarray(matrix, np.float64) / scale
    return NormalEquations((halves + halves.T) / 2, np.asarray(target, np.float64) / scale, float(constant) / scale)


@jax.jit
def _equations(
    factors: NeuronKernels | MaskedNeuronKernels, reference: Float[Array, "N N"]
) -> tuple[Array, Array, Array, Array]:
    rest = reference - factors.fixed
    inputs, mixed, target = factors.inner_products(rest)
    outputs = (factors.a.T @ factors.a) * (factors.a_right.T @ factors.a_right)
    matrix = jnp.block([[outputs, mixed], [mixed.T, inputs]])
    targets = jnp.concatenate([jnp.sum(factors.a * (rest @ factors.a_right), axis=0), target])
    return matrix, targets, jnp.sum(rest * rest), jnp.sum(reference * reference)
