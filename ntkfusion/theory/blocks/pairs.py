"""An original block beside its fused one, neuron by neuron: what every bound is a function of.

With x̄ = [x; 1] (or x, without input biases) the two blocks are

    f(x) = Σ_i v_i σ(w_i·x̄) + b2            f̃(x) = Σ_j n_j ṽ_j σ(w̃_j·x̄) + b̃2

where neuron i belongs to the cluster C_j of n_j neurons with centre (w̃_j, ṽ_j). Constants of the fused block are part
of its centres: r multiplies w̃, and q u = n ṽ. Nothing here needs the centres to be means. At inputs, h̃_j = w̃_j·x̄ and
h_i = h̃ + Δ_i with Δ_i = (w_i − w̃)·x̄ (`Residuals`).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.utils.pytrees import pytree, static


@pytree
class FusedPair:
    """The neurons of an original block, each with the centre that stands for it.

    Attributes:
        w: input weights with the bias last, [m, e]; e = d + 1 with input biases, else d.
        v: output weights, [m, o].
        centre_w: w̃ with the bias last, [c, e].
        centre_v: ṽ, [c, o].
        labels: the cluster of every neuron, [m].
        counts: n, the size of every cluster, [c].
        b2: output biases of the original, [o]; zeros without.
        centre_b2: those of the fused block, [o].
        activation: name of σ.
        has_bias: whether the last column of `w` is an input bias.
    """

    w: Float[Array, "m e"]
    v: Float[Array, "m o"]
    centre_w: Float[Array, "c e"]
    centre_v: Float[Array, "c o"]
    labels: Int[Array, " m"]
    counts: Float[Array, " c"]
    b2: Float[Array, " o"]
    centre_b2: Float[Array, " o"]
    activation: str = static(default="gelu")
    has_bias: bool = static(default=True)

    def extended(self, x: Float[Array, "N d"]) -> Float[Array, "N e"]:
        """x̄: the inputs, with a 1 behind them if there are input biases."""
        if not self.has_bias:
            return x
        return jnp.concatenate([x, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)

    def to_neurons(self, centres: Float[Array, "*n c"]) -> Float[Array, "*n m"]:
        """A quantity of every centre, repeated for its neurons."""
        return centres[..., self.labels]

    def to_clusters(self, neurons: Float[Array, "*n m"]) -> Float[Array, "*n c"]:
        """Sums over the neurons of every cluster."""
        zeros = jnp.zeros((*neurons.shape[:-1], self.counts.shape[0]), neurons.dtype)
        return zeros.at[..., self.labels].add(neurons)

    @property
    def delta_v(self) -> Float[Array, "m o"]:
        """δv_i = v_i − ṽ of its cluster."""
        return self.v - self.centre_v[self.labels]

    @property
    def delta_w(self) -> Float[Array, "m e"]:
        """δw_i = w_i − w̃ of its cluster, biases included."""
        return self.w - self.centre_w[self.labels]


def pair_blocks(original: MLPBlock, fused: MLPBlock, labels: Int[Array, " m"] | None = None) -> FusedPair:
    """Put an original block beside a fused one.

    Args:
        original: a dense block in float64.
        fused: what its neurons were fused to, in float64; constants are taken into the centres.
        labels: the cluster of every neuron of the original; by default the fused neuron with the nearest input weights
            and bias, none left out (every assignment gives valid bounds, that of the clustering the best ones).

    Returns:
        The `FusedPair`.

    Raises:
        InputError: for blocks that are not dense, not in float64, or of other widths, activations or biases; for labels
            out of range; if some fused neuron stands for none.

    >>> import jax, jax.numpy as jnp
    >>> with jax.enable_x64(True):
    ...     block = MLPBlock(jnp.ones((2, 4)), jnp.ones(4), jnp.ones((4, 3)), jnp.ones(3), activation="relu")
    ...     half = MLPBlock(jnp.ones((2, 1)), jnp.ones(1), jnp.ones((1, 3)), jnp.ones(3), q=jnp.full(1, 4.0),
    ...                     activation="relu")
    ...     pair_blocks(block, half).counts.tolist()
    [4.0]
    """
    _check(original, fused)
    old, new = original.fold(), fused.fold()
    w, centre_w = (_input_weights(block) for block in (old, new))
    chosen = _nearest(w, centre_w) if labels is None else jnp.asarray(labels)
    _check_labels(chosen, old.hidden_width, new.hidden_width)
    counts = jnp.zeros(new.hidden_width).at[chosen].add(1.0)
    if not bool(jnp.all(counts > 0)):
        alone = jnp.flatnonzero(counts == 0)[:5].tolist()
        raise InputError(
            f"fused neurons {alone} stand for no neuron of the original; give the labels of the clustering"
        )
    return FusedPair(
        w=w,
        v=old.w2,
        centre_w=centre_w,
        centre_v=new.w2 / counts[:, None],
        labels=chosen,
        counts=counts,
        b2=_output_bias(old),
        centre_b2=_output_bias(new),
        activation=original.activation,
        has_bias=old.b1 is not None,
    )


@pytree
class Residuals:
    """Preactivations of both blocks at N inputs, neuron by neuron.

    Attributes:
        x: the inputs with a 1 behind them (if there are input biases), [N, e].
        centre: h̃_j = w̃_j·x̄ of every centre, [N, c].
        delta: Δ_i = (w_i − w̃)·x̄ of every neuron, [N, m]; so h_i = h̃ + Δ_i.
    """

    x: Float[Array, "N e"]
    centre: Float[Array, "N c"]
    delta: Float[Array, "N m"]


def residuals_at(pair: FusedPair, x: Float[Array, "N d"]) -> Residuals:
    """The preactivations at inputs.

    Δ is computed from weight differences, so that equal weights give exactly 0.

    Args:
        pair: the two blocks.
        x: inputs, float64.

    Returns:
        The `Residuals`.

    Raises:
        InputError: for inputs of another width, not in float64, or not finite.
    """
    width = pair.w.shape[1] - pair.has_bias
    if x.ndim != 2 or x.shape[1] != width:
        raise InputError(f"inputs must have shape [N, {width}], got {list(x.shape)}")
    if x.dtype != jnp.float64:
        raise InputError(f"bounds are evaluated in float64, the inputs are {x.dtype}; convert them")
    if not bool(jnp.all(jnp.isfinite(x))):
        raise InputError("inputs hold values that are not finite")
    return residuals_of(pair, x)


def residuals_of(pair: FusedPair, x: Float[Array, "N d"]) -> Residuals:
    """`residuals_at` without its checks: for use inside JAX transformations."""
    extended = pair.extended(x)
    return Residuals(extended, extended @ pair.centre_w.T, extended @ pair.delta_w.T)


def _check(original: MLPBlock, fused: MLPBlock) -> None:
    for name, block in (("original", original), ("fused", fused)):
        if not isinstance(block, MLPBlock):
            raise InputError(f"bounds compare dense MLP blocks; the {name} one is a {type(block).__name__}")
        if any(array.dtype != jnp.float64 for array in block.parameters().values()):
            raise InputError(
                f"bounds are evaluated in float64, the {name} block is in {block.w1.dtype}: call "
                "jax.config.update('jax_enable_x64', True) and load or convert the blocks with dtype float64"
            )
    facts = [(b.model_width, b.output_width, b.activation, b.b1 is not None) for b in (original, fused)]
    if facts[0] != facts[1]:
        raise InputError(
            "original and fused block differ in (input width, output width, activation, input biases): "
            f"{facts[0]} and {facts[1]}"
        )


def _check_labels(labels: Int[Array, " m"], m: int, c: int) -> None:
    if labels.shape != (m,):
        raise InputError(f"labels must have one entry per neuron of the original, shape ({m},); got {labels.shape}")
    if not bool(jnp.all((labels >= 0) & (labels < c))):
        raise InputError(f"labels must be from 0 to {c - 1}, the fused block's neurons")


def _input_weights(block: MLPBlock) -> Float[Array, "m e"]:
    return block.w1.T if block.b1 is None else jnp.concatenate([block.w1.T, block.b1[:, None]], axis=1)


def _output_bias(block: MLPBlock) -> Float[Array, " o"]:
    return jnp.zeros(block.output_width, block.w1.dtype) if block.b2 is None else block.b2


def _nearest(w: Float[Array, "m e"], centres: Float[Array, "c e"]) -> Int[Array, " m"]:
    """The nearest centre of every neuron; a centre that is nearest to none takes the neuron nearest to it."""
    squares = np.asarray(jnp.sum(centres**2, axis=1)[None, :] - 2 * w @ centres.T)
    labels = squares.argmin(axis=1)
    counts = np.bincount(labels, minlength=len(centres))
    # distances along a column differ by ‖w_i‖², which the line above leaves out
    distances = squares + np.asarray(jnp.sum(w**2, axis=1))[:, None]
    for centre in np.flatnonzero(counts == 0):
        spare = counts[labels] > 1
        if not spare.any():
            break
        neuron = np.where(spare, distances[:, centre], np.inf).argmin()
        counts[labels[neuron]] -= 1
        labels[neuron], counts[centre] = centre, 1
    return jnp.asarray(labels)
