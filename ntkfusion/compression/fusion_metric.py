"""Coordinates and weights of neurons in which k-means measures what fusing them does to a block's output.

Let neuron i have ū_i = (w_i, b_i), output weights v_i, a_i = σ(ū_i·x̄) and g_i = σ'(ū_i·x̄) at x̄ = (x, 1), and let δū_i,
δv_i be what it loses when its cluster's mean takes its place. To first order the output changes by
``Σ_i g_i (δū_i·x̄) v_i + a_i δv_i``. With M = E[x̄ x̄ᵀ] over calibration inputs, and slopes independent of inputs, the two
terms of neuron i have mean squares ``p_i ‖M^½ δū_i‖²`` and ``s_i ‖δv_i‖²``, p_i = ‖v_i‖² E[g_i²] and s_i = E[a_i²].

*Coordinates* are (√p̄ M^½ ū, √s̄ v) with the means p̄, s̄ over neurons, so that squared distances add the two mean squares
of the average neuron. *Weights*: neuron i weighs √(½ (p_i/p̄ + s_i/s̄)). **The root was chosen by measurement**, on the
packaged sample sentences; what follows was written afterwards and makes it plausible, no more. Because residuals of a
cluster add up to 0, terms linear in them cancel within it, and the leading error is Σ_i g_i (δū_i·x̄) δv_i and
½ Σ_i v_i σ'' (δū_i·x̄)², which grow with one power of a neuron's sensitivity where squared first-order errors grow with
two. Centroids are plain means of the clusters: weighted means would not let the linear terms cancel.

That slopes are independent of inputs, and sensitivities alike in a cluster, are approximations; `plain_coordinates` are
those of the paper.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.compression.neurons import neuron_vectors
from ntkfusion.models.activations import get_activation
from ntkfusion.models.mlp import MLPBlock

#: Share of M that is replaced by a multiple of the identity: few calibration tokens do not span all directions.
SHRINKAGE = 0.05
#: The least weight of a neuron relative to an average one: all need a cluster, those silent on calibration inputs too.
LEAST_WEIGHT = 0.01


class Coordinates(NamedTuple):
    """Neurons as k-means sees them.

    Attributes:
        points: coordinates in which distances are Euclidean, [m, features].
        weights: of the neurons, [m].
    """

    points: Float[Array, "m features"]
    weights: Float[Array, " m"]


def plain_coordinates(block: MLPBlock, input_weight: float) -> Coordinates:
    """θ_i = [w_i; b_i; v_i], the input part times the root of its weight; all neurons alike."""
    vectors = neuron_vectors(block)
    inputs = vectors.shape[1] - block.output_width
    scales = jnp.concatenate([jnp.full(inputs, input_weight**0.5), jnp.ones(block.output_width)])
    return Coordinates(vectors * scales.astype(vectors.dtype)[None, :], jnp.ones(block.hidden_width, vectors.dtype))


def data_coordinates(block: MLPBlock, x: Float[Array, "N d"], input_weight: float) -> Coordinates:
    """The coordinates that the module derives, and the weights it describes.

    Args:
        block: the block, without constants.
        x: calibration inputs of the block.
        input_weight: factor on the squared differences of the input part.

    Returns:
        Points and weights; finite and not all 0, whatever the inputs.
    """
    inputs = block.w1.T if block.b1 is None else jnp.concatenate([block.w1.T, block.b1[:, None]], axis=1)
    extended = x if block.b1 is None else jnp.concatenate([x, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)
    through, out = sensitivities(block, x)
    left = (input_weight * jnp.mean(through)) ** 0.5 * (inputs @ root_of_moments(extended))
    points = jnp.concatenate([left, jnp.mean(out) ** 0.5 * block.w2], axis=1)
    weights = jnp.sqrt((_relative(through) + _relative(out)) / 2)
    return Coordinates(points, jnp.maximum(weights, LEAST_WEIGHT))


def sensitivities(block: MLPBlock, x: Float[Array, "N d"]) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """p_i = ‖v_i‖² E[g_i²] and s_i = E[a_i²] over the inputs."""
    activation, h = get_activation(block.activation), block.preactivation(x)
    through = jnp.sum(block.w2**2, axis=1) * jnp.mean(activation.derivative(h) ** 2, axis=0)
    return through, jnp.mean(activation.value(h) ** 2, axis=0)


def root_of_moments(x: Float[Array, "N k"]) -> Float[Array, "k k"]:
    """A root L of the shrunk second moments, L Lᵀ ≈ E[x xᵀ], so that ‖uᵀL‖² is the mean square of u·x."""
    moments = x.T @ x / x.shape[0]
    size = moments.shape[0]
    average = jnp.trace(moments) / size
    # inputs that are all 0 leave every direction as good as any other
    average = jnp.where(average > 0, average, 1)
    shrunk = (1 - SHRINKAGE) * moments + SHRINKAGE * average * jnp.eye(size, dtype=moments.dtype)
    return jnp.linalg.cholesky(shrunk)


def _relative(values: Float[Array, " m"]) -> Float[Array, " m"]:
    """Values over their mean; 1 if all are 0."""
    mean = jnp.mean(values)
    return jnp.where(mean > 0, values / jnp.where(mean > 0, mean, 1), 1)
