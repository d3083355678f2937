"""MLP Fusion: cluster the neurons of a block, keep centroids and cluster sizes.

Wei, Guo, Chen, He (ICML 2023); extended version by Ai, Wei, Chen, Guo, He (arXiv 2307.08941v3). The variants, with
centroids w̃, b̃, ṽ and cluster sizes n, and what each preserves (Theorem 1, docs/theory.md):

=========  =====================================================  =====================================================
variant    block                                                  with coinciding neurons it preserves
=========  =====================================================  =====================================================
``v0``     centroids alone, no cluster sizes                      nothing
``v1``     centroids, constant q = n                              output and sign kernel, for every σ
``v2``     w̃, b̃, n ṽ                                             output
``v3``     √n w̃, √n b̃, √n ṽ                                     output and SGD kernel for ReLU; nothing for other σ
``v4``     √n w̃, √n b̃, √n ṽ, constants q = √n, r = 1/√n         output and SGD kernel, for every σ
``kappa``  w̃/r, b̃/r, (n/q) ṽ, constants q = n^{1/(1+κ)},        output, and the whole trajectory of an optimiser whose
           r = n^{−κ/(1+κ)}; κ = 0 is v1, κ = 1 is v4             steps scale as u(s g) = s^κ u(g)
=========  =====================================================  =====================================================

**The metric "data"**: coordinates and weights of neurons in which k-means measures what fusing them does to a block's
output. Let neuron i have ū_i = (w_i, b_i), output weights v_i, a_i = σ(ū_i·x̄) and g_i = σ'(ū_i·x̄) at x̄ = (x, 1), and
let δū_i, δv_i be what it loses when its cluster's mean takes its place. To first order the output changes by
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

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.clustering.k_means import KMeansResult, kmeans_batch
from ntkfusion.compression.contract import BlockReport, Compressed, LayerwiseMethod, require_dense
from ntkfusion.compression.methods.allocation import allocate, measure_curves
from ntkfusion.compression.neurons import block_of_neurons, neuron_vectors
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.blocks.mixture import MixtureBlock

#: Share of M that is replaced by a multiple of the identity: few calibration tokens do not span all directions.
SHRINKAGE = 0.05

#: The least weight of a neuron relative to an average one: all need a cluster, those silent on calibration inputs too.
LEAST_WEIGHT = 0.01

Variant = Literal["v0", "v1", "v2", "v3", "v4", "kappa"]

Allocation = Literal["uniform", "inertia"]

Metric = Literal["plain", "data"]


class Coordinates(NamedTuple):
    """Neurons as k-means sees them.

    Attributes:
        points: coordinates in which distances are Euclidean, [m, features].
        weights: of the neurons, [m].
    """

    points: Float[Array, "m features"]
    weights: Float[Array, " m"]


@dataclasses.dataclass(frozen=True)
class MLPFusion(LayerwiseMethod):
    """Fuse the neurons of each block into `keep_ratio`·m centroids.

    Attributes:
        keep_ratio: the kept share of the hidden width.
        variant: what happens to the cluster sizes; see the table of the module.
        kappa: κ in [0, 1] of the variant "kappa".
        num_restarts: k-means restarts.
        allocation: "uniform" gives every block `keep_ratio`·m neurons; "inertia" shares the same total so that the sum
            of the blocks' inertias is as small as their curves, measured at a few numbers of clusters, allow.
        metric: "plain" clusters θ_i = [w_i; b_i; v_i]; "data" measures differences by what they do to the output on
            calibration inputs (fusion_metric.py).
        input_weight: weight of squared differences of w and b; those of v have weight 1.

    >>> MLPFusion(keep_ratio=0.5).variant
    'v1'
    """

    variant: Variant = "v1"
    kappa: float = 0.5
    num_restarts: int = 10
    allocation: Allocation = "uniform"
    metric: Metric = "plain"
    input_weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a number out of range or an unknown variant, allocation or metric.
        """
        super().__post_init__()
        for name, value, known in (
            ("variant", self.variant, get_args(Variant)),
            ("allocation", self.allocation, get_args(Allocation)),
            ("metric", self.metric, get_args(Metric)),
        ):
            if value not in known:
                raise InputError(f"unknown {name} {value!r} of MLP Fusion; known: {', '.join(known)}")
        if self.num_restarts < 1:
            raise InputError(f"num_restarts must be at least 1, got {self.num_restarts}")
        if not 0 <= self.kappa <= 1:
            raise InputError(f"kappa is from 0 (sign, Adam) to 1 (SGD); got {self.kappa}")
        if not 0 < self.input_weight < float("inf"):
            raise InputError(f"input_weight must be positive and finite, got {self.input_weight}")

    def check(self, blocks: Sequence[Block]) -> None:
        """Refuse what `LayerwiseMethod.check` refuses, and mixtures of experts where layers share a budget."""
        super().check(blocks)
        if self.allocation == "inertia" and any(isinstance(block, MixtureBlock) for block in blocks):
            raise InputError("allocation 'inertia' shares neurons among dense blocks; use 'uniform' for mixtures")

    def compress(self, blocks: Sequence[Block], workspace: Workspace) -> Compressed:
        """Cluster the neurons of all blocks in one batch, then fuse each; mixtures go expert by expert."""
        self.check(blocks)
        if not blocks or any(isinstance(block, MixtureBlock) for block in blocks):
            return super().compress(blocks, workspace)
        workspace.check_inputs([block.model_width for block in blocks])
        dense = [require_dense(block, type(self).__name__) for block in blocks]
        workspace.charged()
        start = time.perf_counter()
        clusterings = self._cluster(dense, range(len(dense)), workspace)
        shared = (time.perf_counter() - start + workspace.charged()) / max(len(dense), 1)
        results = [self._report(*pair, shared) for pair in zip(dense, clusterings, strict=True)]
        return Compressed(tuple(block for block, _ in results), tuple(report for _, report in results))

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Cluster one block's neurons and build the variant from centroids and cluster sizes."""
        clusters = self._cluster([block], [index], workspace)[0]
        return fuse(block, clusters, self.variant, self.kappa), _details(block, clusters)

    def _report(self, block: MLPBlock, clusters: KMeansResult, shared: float) -> tuple[Block, BlockReport]:
        start = time.perf_counter()
        fused = jax.block_until_ready(fuse(block, clusters, self.variant, self.kappa))
        details = _details(block, clusters)
        seconds = time.perf_counter() - start + shared
        return fused, BlockReport(fused.hidden_width, fused.num_parameters, block.num_parameters, seconds, details)

    def _cluster(
        self, blocks: Sequence[MLPBlock], indices: Sequence[int], workspace: Workspace
    ) -> Sequence[KMeansResult]:
        """Clusterings of blocks, shared by all variants that cluster alike; centroids are means of `neuron_vectors`."""
        name = (
            "kmeans",
            tuple(indices),
            self.keep_ratio,
            self.num_restarts,
            self.allocation,
            self.metric,
            self.input_weight,
        )
        return workspace.reuse(name, lambda: self._cluster_anew(blocks, indices, workspace))

    def _cluster_anew(
        self, blocks: Sequence[MLPBlock], indices: Sequence[int], workspace: Workspace
    ) -> Sequence[KMeansResult]:
        coordinates = [self._coordinates(*pair, workspace) for pair in zip(blocks, indices, strict=True)]
        counts = [self.kept_neurons(block.hidden_width) for block in blocks]
        if self.allocation == "inertia":
            counts = share_budget(coordinates, counts, [workspace.key("curves", index) for index in indices])
        keys = [workspace.key("kmeans", index) for index in indices]
        points, weights = zip(*coordinates, strict=True)
        clusterings = kmeans_batch(points, counts, self.num_restarts, keys, weights=weights)
        return [with_plain_means(*pair) for pair in zip(blocks, clusterings, strict=True)]

    def _coordinates(self, block: MLPBlock, index: int, workspace: Workspace) -> Coordinates:
        if self.metric == "plain":
            return plain_coordinates(block, self.input_weight)
        return data_coordinates(block, workspace.inputs(index), self.input_weight)


def fuse(block: MLPBlock, clusters: KMeansResult, variant: Variant, kappa: float = 0.5) -> MLPBlock:
    """The fused block of a given clustering of the block's `neuron_vectors`.

    Args:
        block: the original block, without constants.
        clusters: the clustering.
        variant: which one of the module's table.
        kappa: κ, if the variant is "kappa".

    Returns:
        A block with one neuron per cluster.
    """
    centroids = block_of_neurons(clusters.centroids, block)
    sizes = clusters.counts.astype(block.w1.dtype)
    if variant == "v0":
        return centroids
    if variant == "v2":
        return centroids.replace(w2=centroids.w2 * sizes[:, None])
    if variant == "v3":
        return block_of_neurons(clusters.centroids * jnp.sqrt(sizes)[:, None], block)
    return _kappa_block(centroids, sizes, {"v1": 0.0, "v4": 1.0}.get(variant, kappa))


def _kappa_block(centroids: MLPBlock, sizes: jax.Array, kappa: float) -> MLPBlock:
    """Constants q = n^{1/(1+κ)}, r = n^{−κ/(1+κ)}; trainable w̃/r, b̃/r and (n/q) ṽ = ṽ/r."""
    if kappa == 0:
        return centroids.replace(q=sizes)
    grown = sizes ** (kappa / (1 + kappa))
    b1 = None if centroids.b1 is None else centroids.b1 * grown
    w1, w2 = centroids.w1 * grown[None, :], centroids.w2 * grown[:, None]
    return centroids.replace(w1=w1, b1=b1, w2=w2, q=sizes / grown, r=1 / grown)


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


def share_budget(coordinates: Sequence[Coordinates], counts: Sequence[int], keys: Sequence[jax.Array]) -> list[int]:
    """As many clusters in all, shared so that the sum of inertias is small.

    Args:
        coordinates: the neurons of each block.
        counts: clusters per block in an even share.
        keys: a random key per block.

    Returns:
        Clusters per block.
    """

    def inertias(wanted: list[tuple[int, int]]) -> list[float]:
        results = kmeans_batch(
            [coordinates[layer].points for layer, _ in wanted],
            [count for _, count in wanted],
            1,
            [keys[layer] for layer, _ in wanted],
            weights=[coordinates[layer].weights for layer, _ in wanted],
        )
        return [float(result.inertia) for result in results]

    widths = [points.shape[0] for points, _ in coordinates]
    spreads = [float(_spread(*one)) for one in coordinates]
    return allocate(measure_curves(counts, widths, spreads, inertias), sum(counts))


def _spread(points: jax.Array, weights: jax.Array) -> jax.Array:
    """The inertia of one cluster."""
    mean = jnp.sum(points * (weights / jnp.sum(weights))[:, None], axis=0, keepdims=True)
    return jnp.sum(weights[:, None] * (points - mean) ** 2)


def with_plain_means(block: MLPBlock, clusters: KMeansResult) -> KMeansResult:
    """The clustering with centroids and inertia of the neurons themselves, all alike, whatever it was found by."""
    vectors = neuron_vectors(block)
    if clusters.counts.shape[0] == vectors.shape[0]:
        means, counts = vectors[jnp.argsort(clusters.labels)], jnp.ones_like(clusters.counts)
    else:
        counts = jnp.bincount(clusters.labels, length=clusters.counts.shape[0]).astype(clusters.counts.dtype)
        sums = jax.ops.segment_sum(vectors, clusters.labels, counts.shape[0])
        means = sums / counts[:, None].astype(vectors.dtype)
    inertia = jnp.sum((vectors - means[clusters.labels]) ** 2)
    mass = counts.astype(vectors.dtype)
    return dataclasses.replace(clusters, centroids=means, counts=counts, mass=mass, inertia=inertia)


def _details(block: MLPBlock, clusters: KMeansResult) -> dict[str, float]:
    vectors = neuron_vectors(block)
    spread, inertia = float(_spread(vectors, jnp.ones(vectors.shape[0], vectors.dtype))), float(clusters.inertia)
    return {"inertia": inertia, "inertia_ratio": inertia / spread if spread else 0.0}
