"""MLP Fusion: cluster the neurons of a block, keep centroids and cluster sizes.

Wei, Guo, Chen, He (ICML 2023); extended version by Ai, Wei, Chen, Guo, He (arXiv 2307.08941v3). The variants, with
centroids w̃, b̃, ṽ and cluster sizes n, and what each preserves (Theorem 1, docs/theory.md):

========  =====================================================  ======================================================
variant   block                                                  with coinciding neurons it preserves
========  =====================================================  ======================================================
``v0``    centroids alone, no cluster sizes                      nothing
``v1``    centroids, constant q = n                              output and sign kernel, for every σ
``v2``    w̃, b̃, n ṽ                                             output
``v3``    √n w̃, √n b̃, √n ṽ                                     output and SGD kernel for ReLU; nothing for other σ
``v4``    √n w̃, √n b̃, √n ṽ, constants q = √n, r = 1/√n         output and SGD kernel, for every σ
========  =====================================================  ======================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

import jax.numpy as jnp

from ntkfusion.clustering.kmeans import KMeansResult, kmeans
from ntkfusion.compression.contract import LayerwiseMethod, Workspace
from ntkfusion.compression.neurons import block_of_neurons, neuron_vectors
from ntkfusion.errors import InputError
from ntkfusion.models.mlp import Block, MLPBlock

Variant = Literal["v0", "v1", "v2", "v3", "v4"]


@dataclasses.dataclass(frozen=True)
class MLPFusion(LayerwiseMethod):
    """Fuse the neurons of each block into `width`·m centroids.

    Attributes:
        width: kept fraction of the hidden width.
        variant: what happens to the cluster sizes; see the table of the module.
        num_restarts: k-means restarts.

    >>> MLPFusion(width=0.5).variant
    'v1'
    """

    variant: Variant = "v1"
    num_restarts: int = 10

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a width out of range or an unknown variant.
        """
        super().__post_init__()
        if self.variant not in get_args(Variant):
            raise InputError(f"unknown variant {self.variant!r} of MLP Fusion; known: {', '.join(get_args(Variant))}")
        if self.num_restarts < 1:
            raise InputError(f"num_restarts must be at least 1, got {self.num_restarts}")

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Cluster θ_i = [w_i; b_i; v_i] and build the variant from centroids and cluster sizes."""
        points, count = neuron_vectors(block), self.kept_neurons(block.hidden_width)
        clusters = workspace.reuse(
            ("kmeans", index, count, self.num_restarts),
            lambda: kmeans(points, count, self.num_restarts, workspace.key("kmeans", index)),
        )
        spread = float(jnp.sum((points - jnp.mean(points, axis=0, keepdims=True)) ** 2))
        inertia = float(clusters.inertia)
        details = {"inertia": inertia, "inertia_ratio": inertia / spread if spread else 0.0}
        return fuse(block, clusters, self.variant), details


def fuse(block: MLPBlock, clusters: KMeansResult, variant: Variant) -> MLPBlock:
    """The fused block of a given clustering of the block's `neuron_vectors`.

    Args:
        block: the original block, without constants.
        clusters: the clustering.
        variant: which one of the module's table.

    Returns:
        A block with one neuron per cluster.
    """
    centroids = block_of_neurons(clusters.centroids, block)
    sizes = clusters.counts.astype(block.w1.dtype)
    if variant == "v0":
        return centroids
    if variant == "v1":
        return centroids.replace(q=sizes)
    if variant == "v2":
        return centroids.replace(w2=centroids.w2 * sizes[:, None])
    roots = jnp.sqrt(sizes)
    scaled = block_of_neurons(clusters.centroids * roots[:, None], block)
    return scaled if variant == "v3" else scaled.replace(q=roots, r=1 / roots)
