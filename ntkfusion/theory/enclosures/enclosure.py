"""What both enclosures need: limits of an error, and a block's hidden neurons split into cluster means and deviations.

With a = σ(h), g = σ'(h), clusters C_j of n_j neurons and weights D_i = ‖v_i‖²/o, D_j = Σ_{i in C_j} D_i,

    ā_j = (1/n_j) Σ a_i        ḡ_j = (1/D_j) Σ D_i g_i        α_i = a_i − ā        γ_i = √D_i (g_i − ḡ)

sums of squares split: Σ_i a_i a'_i = Σ_j n_j ā_j ā'_j + α·α' and Σ_i D_i g_i g'_i = Σ_j D_j ḡ_j ḡ'_j + γ·γ'; so do
outputs, Σ_i v_i a_i = Σ_j n_j v̄_j ā_j + Σ_i δv_i α_i with δv_i = v_i − v̄. Without clusters the means are left out.

Source: own derivation (the analysis of variance of a block's features), docs/theory.md, Theorem 4.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.blocks.rounding import ambiguous, extreme, gamma, known_or_infinite
from ntkfusion.utils.pytrees import pytree


@pytree
class Enclosure:
    """Proven limits of a measured error, rounding in float64 included.

    Attributes:
        lower: never above the error.
        upper: never below it.
    """

    lower: Float[Array, "*n"]
    upper: Float[Array, "*n"]

    @classmethod
    def around(cls, lower: Float[Array, "*n"], upper: Float[Array, "*n"]) -> Enclosure:
        """Limits without NaN: where an overflow left none, they are 0 and +∞."""
        return cls(jnp.where(jnp.isfinite(lower), jnp.maximum(lower, 0), 0), known_or_infinite(upper))


@pytree
class ClusteredNeurons:
    """The neurons of a block in clusters, none if `counts` is empty.

    Attributes:
        w: input weights with the bias last, [m, e].
        v: output weights, [m, o].
        labels: the cluster of every neuron, [m].
        counts: n, [c].
        weights: D_i = ‖v_i‖²/o, [m].
        masses: D_j, [c].
        mean_v: v̄, [c, o].
        delta_v: δv_i = v_i − v̄, [m, o]; v without clusters.
    """

    w: Float[Array, "m e"]
    v: Float[Array, "m o"]
    labels: Int[Array, " m"]
    counts: Float[Array, " c"]
    weights: Float[Array, " m"]
    masses: Float[Array, " c"]
    mean_v: Float[Array, "c o"]
    delta_v: Float[Array, "m o"]

    def sums(self, neurons: Float[Array, "*n m"]) -> Float[Array, "*n c"]:
        """Sums over the neurons of every cluster."""
        zeros = jnp.zeros((*neurons.shape[:-1], self.counts.shape[0]), neurons.dtype)
        return zeros.at[..., self.labels].add(neurons) if self.counts.shape[0] else zeros

    def spread(self, means: Float[Array, "*n c"]) -> Float[Array, "*n m"]:
        """A quantity of every cluster, repeated for its neurons; 0 without clusters."""
        if not self.counts.shape[0]:
            return jnp.zeros((*means.shape[:-1], self.labels.shape[0]), means.dtype)
        return means[..., self.labels]


@pytree
class Features:
    """The quantities of the module at N inputs, with bounds of what rounding did to them.

    Attributes:
        x: the inputs with a 1 behind them (if there are input biases), [N, e].
        mean_a: ā, [N, c].
        mean_g: ḡ, [N, c].
        alpha: α, [N, m].
        gamma: γ, [N, m].
        size: H = ‖x̄‖ ‖W‖_F, a bound of ‖a‖ and of ‖h‖, [N].
        slope_error: a bound of √Σ_i D_i κ_i², where the computed σ'(h_i) is off by at most κ_i, [N].
    """

    x: Float[Array, "N e"]
    mean_a: Float[Array, "N c"]
    mean_g: Float[Array, "N c"]
    alpha: Float[Array, "N m"]
    gamma: Float[Array, "N m"]
    size: Float[Array, " N"]
    slope_error: Float[Array, " N"]


def cluster_neurons(block: MLPBlock, labels: Int[Array, " m"] | None) -> ClusteredNeurons:
    """The neurons of a block in clusters.

    Args:
        block: a dense block in float64 without constants.
        labels: the cluster of every neuron, from 0; None for no clusters.

    Returns:
        The `ClusteredNeurons`.

    Raises:
        InputError: for a block that is not dense, has constants or is not in float64, or labels that do not fit.
    """
    _check_block(block)
    m = block.hidden_width
    w = block.w1.T if block.b1 is None else jnp.concatenate([block.w1.T, block.b1[:, None]], axis=1)
    number = 0 if labels is None else _number(labels, m)
    known = jnp.zeros(m, int) if labels is None else jnp.asarray(labels)
    weights = jnp.sum(block.w2**2, axis=1) / block.output_width
    empty = jnp.zeros((number, block.output_width))
    whole = ClusteredNeurons(w, block.w2, known, jnp.zeros(number), weights, jnp.zeros(number), empty, block.w2)
    if labels is None:
        return whole
    counts = whole.sums(jnp.ones(m))
    mean_v = whole.sums(block.w2.T).T / jnp.maximum(counts, 1)[:, None]
    return ClusteredNeurons(w, block.w2, known, counts, weights, whole.sums(weights), mean_v, block.w2 - mean_v[known])


def features_at(block: MLPBlock, clusters: ClusteredNeurons, x: Float[Array, "N d"]) -> Features:
    """The features of a block at inputs.

    Args:
        block: the block.
        clusters: its neurons.
        x: inputs, float64.

    Returns:
        The `Features`.

    Raises:
        InputError: for inputs of another width, not in float64, or not finite.
    """
    check_inputs(block, x)
    sigma = get_activation(block.activation)
    extended = x if block.b1 is None else jnp.concatenate([x, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)
    h = extended @ clusters.w.T
    a, g = sigma.value(h), sigma.derivative(h)
    mean_a = clusters.sums(a) / jnp.maximum(clusters.counts, 1)[None, :]
    masses = jnp.where(clusters.masses > 0, clusters.masses, 1)
    mean_g = clusters.sums(g * clusters.weights[None, :]) / masses[None, :]
    root = jnp.sqrt(clusters.weights)
    norm = jnp.linalg.norm(extended, axis=1)
    return Features(
        x=extended,
        mean_a=mean_a,
        mean_g=mean_g,
        alpha=a - clusters.spread(mean_a),
        gamma=(g - clusters.spread(mean_g)) * root[None, :],
        size=jnp.where(extreme(extended, clusters.w, clusters.v), jnp.inf, norm * jnp.linalg.norm(clusters.w)),
        slope_error=jnp.linalg.norm(_slope_errors(block, clusters, h, norm) * root[None, :], axis=1),
    )


def kept(share: float, number: int) -> int:
    """How many of `number` directions a share of them is.

    Args:
        share: from 0 to 1.
        number: of all.

    Returns:
        The number, rounded up.

    Raises:
        InputError: for a share out of range.

    >>> kept(0.25, 10)
    3
    """
    if not 0 <= share <= 1:
        raise InputError(f"share is the exactly evaluated part, from 0 to 1; got {share}")
    return min(number, int(-(-share * number // 1)))


def unit_of(clusters: ClusteredNeurons) -> float:
    """Γ of `ntkfusion.theory.blocks.rounding` for these sizes."""
    m, e = clusters.w.shape
    return gamma(4 * (e + m) + 64)


def orthonormality_defect(columns: Float[Array, "n k"], unit: float) -> Float[Array, ""]:
    """A bound of ‖UᵀU − I‖₂ for a computed U, rounding of the product included."""
    gram = columns.T @ columns
    return jnp.linalg.norm(gram - jnp.eye(gram.shape[0])) + 2 * unit * columns.shape[1]


def check_inputs(block: MLPBlock, x: Float[Array, "N d"]) -> None:
    """Refuse inputs that do not fit a block.

    Raises:
        InputError: for inputs of another width, not in float64, or not finite.
    """
    if x.ndim != 2 or x.shape[1] != block.model_width:
        raise InputError(f"inputs must have shape [N, {block.model_width}], got {list(x.shape)}")
    if x.dtype != jnp.float64:
        raise InputError(f"bounds are evaluated in float64, the inputs are {x.dtype}; convert them")
    if not bool(jnp.all(jnp.isfinite(x))):
        raise InputError("inputs hold values that are not finite")


def check_fused(original: MLPBlock, fused: Block) -> None:
    """Refuse a fused block that cannot be compared with the original.

    Raises:
        InputError: for other widths, or another dtype than float64.
    """
    widths = [(block.model_width, block.output_width) for block in (original, fused)]
    if widths[0] != widths[1]:
        raise InputError(f"original and fused block differ in (input width, output width): {widths[0]} and {widths[1]}")
    if any(array.dtype != jnp.float64 for array in fused.parameters().values()):
        raise InputError("bounds are evaluated in float64, the fused block is not; convert it with dtype float64")


def _slope_errors(
    block: MLPBlock, clusters: ClusteredNeurons, h: Float[Array, "N m"], norm: Float[Array, " N"]
) -> Float[Array, "N m"]:
    """κ of `ntkfusion.theory.blocks.rounding`, with H_i ≤ ‖x̄‖ ‖w_i‖."""
    unit = unit_of(clusters)
    wrong = unit * norm[:, None] * jnp.linalg.norm(clusters.w, axis=1)[None, :]
    if get_activation(block.activation).name == "relu":
        return unit + ambiguous(0.0, h, wrong).astype(h.dtype)
    return jnp.minimum(wrong, 2.0) + unit


def _check_block(block: MLPBlock) -> None:
    if not isinstance(block, MLPBlock):
        raise InputError(f"these bounds enclose dense MLP blocks; the original is a {type(block).__name__}")
    if block.q is not None or block.r is not None:
        raise InputError("the original block has constants q or r; fold() them first (that changes its kernels)")
    if any(array.dtype != jnp.float64 for array in block.parameters().values()):
        raise InputError(
            f"bounds are evaluated in float64, the original block is in {block.w1.dtype}: call "
            "jax.config.update('jax_enable_x64', True) and load or convert it with dtype float64"
        )


def _number(labels: Int[Array, " m"], m: int) -> int:
    if labels.shape != (m,):
        raise InputError(f"labels must have one entry per neuron of the original, shape ({m},); got {labels.shape}")
    if int(jnp.min(labels)) < 0:
        raise InputError("labels must not be negative")
    return int(jnp.max(labels)) + 1
