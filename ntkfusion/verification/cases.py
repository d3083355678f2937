"""Blocks that theory checks try to break statements with: planted clusters, random blocks, real blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntkfusion.clustering.k_means import KMeansResult, kmeans
from ntkfusion.compression.methods.mlp_fusion import Variant, fuse
from ntkfusion.compression.neurons import neuron_vectors
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.verification.check import Scope

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")

#: Every activation is another program to compile.
QUICK_ACTIVATIONS = ("relu", "gelu")

#: Sizes of planted clusters: 19 neurons.
SIZES = (5, 4, 3, 2, 2, 1, 1, 1)

#: One set of shapes for all checks, so that little is compiled: inputs, d and o.
INPUTS, D, OUT = 40, 12, 7


@dataclasses.dataclass(frozen=True, eq=False)
class BlockCase:
    """A block with a clustering of its neurons and inputs.

    Attributes:
        name: for people, the same for synthetic blocks that differ in activation only.
        original: the block.
        clusters: of its `neuron_vectors`.
        x: inputs, [N, d].
        layer: of a real model, or None.
        width: the kept share of the neurons of a real block, or None.
    """

    name: str
    original: MLPBlock
    clusters: KMeansResult
    x: Float[Array, "N d"]
    layer: int | None = None
    width: float | None = None

    @property
    def labels(self) -> Int[Array, " m"]:
        """The cluster of every neuron."""
        return self.clusters.labels

    @property
    def is_real(self) -> bool:
        """Whether the block is a real model's."""
        return self.layer is not None

    @cached_property
    def _fused(self) -> dict[str, MLPBlock]:
        return {}

    def fused(self, variant: Variant) -> MLPBlock:
        """The fused block of a variant, made once."""
        if variant not in self._fused:
            self._fused[variant] = fuse(self.original, self.clusters, variant)
        return self._fused[variant]


def normal(seed: int, *shape: int) -> np.ndarray:
    """Normal numbers in float64, by NumPy: nothing is compiled."""
    return np.random.default_rng(seed).standard_normal(shape)


def block_of(vectors: np.ndarray, b2: np.ndarray, activation: str, d: int = D) -> MLPBlock:
    """The block with neurons [w_i, b_i, v_i]."""
    arrays = (vectors[:, :d].T, vectors[:, d], vectors[:, d + 1 :], b2)
    return MLPBlock(*(jnp.asarray(array, jnp.float64) for array in arrays), activation=activation)


def random_block(activation: str, seed: int, m: int = sum(SIZES), d: int = D, o: int = OUT) -> MLPBlock:
    """A block of normal numbers, no two neurons alike."""
    return block_of(normal(10 * seed, m, d + 1 + o), normal(10 * seed + 1, o), activation, d)


def planted_block(
    activation: str, seed: int, residual: float = 0.0, sizes: Sequence[int] = SIZES, d: int = D, o: int = OUT
) -> MLPBlock:
    """A random block whose neurons coincide in groups of given sizes, up to `residual` times normal numbers.

    What is added sums to 0 in every group: centres that are means stay where they were.
    """
    labels, centres = planted_labels(sizes), normal(10 * seed, len(sizes), d + 1 + o)
    noise = normal(10 * seed + 2, sum(sizes), d + 1 + o)
    vectors = centres[labels] + residual * (noise - _means(noise, labels)[labels])
    return block_of(vectors, normal(10 * seed + 1, o), activation, d)


def repeated(block: MLPBlock, sizes: Sequence[int]) -> MLPBlock:
    """The block whose neurons are the first `len(sizes)` of the given one, each as often as `sizes` says."""
    labels = planted_labels(sizes)
    b1 = None if block.b1 is None else block.b1[labels]
    return block.replace(w1=block.w1[:, labels], b1=b1, w2=block.w2[labels])


def planted_labels(sizes: Sequence[int]) -> np.ndarray:
    """0, 0, ..., 1, 1, ...: the groups of `planted_block` and `repeated`."""
    return np.repeat(np.arange(len(sizes)), sizes)


def _means(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    sums = np.zeros((labels.max() + 1, rows.shape[1]))
    np.add.at(sums, labels, rows)
    return sums / np.bincount(labels)[:, None]


def clusters_of(block: MLPBlock, labels: np.ndarray) -> KMeansResult:
    """A given clustering with means for centroids, as k-means would return it."""
    vectors = np.asarray(neuron_vectors(block))
    centroids, counts = _means(vectors, labels), np.bincount(labels)
    inertia = np.sum((vectors - centroids[labels]) ** 2)
    integers = [jnp.asarray(array, jnp.int32) for array in (labels, counts, 0, [0])]
    floats = [jnp.asarray(array, jnp.float64) for array in (centroids, counts, inertia, [inertia])]
    return KMeansResult(
        labels=integers[0],
        centroids=floats[0],
        counts=integers[1],
        mass=floats[1],
        inertia=floats[2],
        num_iterations=integers[2],
        restart_inertias=floats[3],
        restart_iterations=integers[3],
    )


def planted_case(activation: str, seed: int, residual: float) -> BlockCase:
    """Planted clusters with a residual, clustered as planted."""
    block = planted_block(activation, seed, residual)
    clusters = clusters_of(block, planted_labels(SIZES))
    return BlockCase(f"planted, residual {residual:g}", block, clusters, inputs_of(seed))


def moved_case(activation: str, seed: int, residual: float) -> BlockCase:
    """Planted clusters, the centres moved away from the means by as much as the neurons are."""
    case = planted_case(activation, seed, residual)
    moved = residual * normal(seed + 8, *case.clusters.centroids.shape)
    clusters = dataclasses.replace(case.clusters, centroids=case.clusters.centroids + moved)
    return dataclasses.replace(case, name=f"moved centres, residual {residual:g}", clusters=clusters)


#: By activation a preactivation h̃ and a shift Δ at which g̃Δ, σ''(h̃) Δ² and σ''' Δ³ have one sign, so that they add up,
#: and σ''' hardly changes between: Taylor's bounds of σ and σ' are attained up to 2 %.
ATTAINED = {"gelu": (-0.72, 0.38), "gelu_tanh": (-0.72, 0.38), "silu": (-1.2, 0.7)}


def attained_case(activation: str, seed: int) -> BlockCase:
    """Neurons shifted from their centres by one Δ, all weights along one direction: nothing cancels.

    Where a bound is attained, every number in it counts: a constant of Taylor's that is too small shows.
    """
    h, delta = ATTAINED[activation]
    labels, scales = planted_labels(SIZES), 0.5 + np.abs(normal(10 * seed, len(SIZES)))
    directions = np.abs(normal(10 * seed + 1, D + 1 + OUT))
    directions[:D] *= 0.002
    vectors = (scales[:, None] * directions[None, :])[labels]
    vectors[:, D] = h + delta
    block = block_of(vectors, normal(10 * seed + 2, OUT), activation)
    clusters = clusters_of(block, labels)
    centroids = clusters.centroids.at[:, D].set(h)
    clusters = dataclasses.replace(clusters, centroids=centroids)
    return BlockCase("attained", block, clusters, inputs_of(seed))


def random_case(activation: str, seed: int) -> BlockCase:
    """Neurons that do not cluster, each with the nearest of the first few."""
    block = random_block(activation, seed)
    vectors = np.asarray(neuron_vectors(block))
    squares = np.sum((vectors[:, None, :] - vectors[None, : len(SIZES), :]) ** 2, axis=2)
    return BlockCase("random", block, clusters_of(block, squares.argmin(axis=1)), inputs_of(seed))


def inputs_of(seed: int) -> Float[Array, "N d"]:
    """Normal inputs of synthetic blocks."""
    return jnp.asarray(normal(10 * seed + 3, INPUTS, D))


def synthetic_cases(scope: Scope) -> list[BlockCase]:
    """Planted clusters (means and moved centres), random blocks, attained bounds; in full mode of every activation."""
    residuals, cases = (1e-3, 1e-2, 0.1, 0.3), []
    for number, activation in enumerate(QUICK_ACTIVATIONS if scope.quick else ACTIVATIONS):
        seed = 100 * scope.seed + 10 * number
        cases += [planted_case(activation, seed, residual) for residual in residuals]
        cases += [moved_case(activation, seed, 0.1), random_case(activation, seed)]
        cases += [attained_case(activation, seed)] if activation in ATTAINED else []
    return cases


def real_cases(scope: Scope) -> Iterator[BlockCase]:
    """RealBlocks blocks at every width of the scope."""
    for model, layer in scope.layers():
        for width in scope.widths:
            block = model.blocks[layer]
            clusters = cluster_once(block, width, scope)
            name = f"{model.name}, layer {layer}, width {width:g}"
            yield BlockCase(name, block, clusters, model.inputs[layer], layer, width)


_CLUSTERED: dict[tuple[int, float, int, bool], tuple[MLPBlock, KMeansResult]] = {}


def cluster_once(block: MLPBlock, width: float, scope: Scope) -> KMeansResult:
    """The clustering of a real block, shared by all checks of one process."""
    name = (id(block), width, scope.seed, scope.quick)
    known = _CLUSTERED.get(name)
    if known is None:
        vectors, count = neuron_vectors(block), max(1, round(width * block.hidden_width))
        # the block is kept as well, so that its id is not given to another
        known = _CLUSTERED[name] = (block, kmeans(vectors, count, 1 if scope.quick else 3, scope.seed))
    return known[1]
