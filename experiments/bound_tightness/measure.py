"""Bounds and what they bound, for one layer and width."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import ntkfusion as nf
from experiments.bound_tightness.blocks import LayerCase
from experiments.common.store import Result
from ntkfusion.compression.methods.mlp_fusion import fuse, with_plain_means
from ntkfusion.compression.neurons import neuron_vectors
from ntkfusion.theory.blocks.output_bounds import output_bound
from ntkfusion.theory.blocks.sgd_bounds import sgd_kernel_bound
from ntkfusion.theory.enclosures.enclosure import Enclosure
from ntkfusion.theory.enclosures.output_enclosure import output_directions, output_enclosure
from ntkfusion.theory.enclosures.sgd_enclosure import kernel_directions, sgd_enclosure

#: Entries of an array: all of them, or pairs of a matrix.
Selection = slice | tuple[np.ndarray, ...]

#: Points of a scatter that are kept.
POINTS = 400


def fused_block(block: nf.MLPBlock, width: float, restarts: int, seed: int) -> tuple[nf.MLPBlock, jax.Array]:
    """V4 from k-means in float32, its centres means in float64, and the labels."""
    single = jax.tree.map(lambda array: array.astype(jnp.float32), block)
    count = max(1, round(width * block.hidden_width))
    clusters = nf.kmeans(neuron_vectors(single), count, num_restarts=restarts, seed=seed)
    return fuse(block, with_plain_means(block, clusters), "v4"), clusters.labels


def measure(case: LayerCase, width: float, shares: Sequence[float], restarts: int, seed: int) -> Result:
    """All ratios of a layer, as plain numbers."""
    block, x = case.block, case.inputs
    fused, labels = fused_block(block, width, restarts, seed)
    error = np.linalg.norm(np.asarray(block(x) - fused(x)), axis=1)
    pairs = np.triu_indices(x.shape[0])
    kernel = np.asarray(nf.block_kernel(block, x))
    gap = np.abs(kernel - np.asarray(nf.block_kernel(fused, x)))[pairs]
    row: Result = {
        "layer": case.layer,
        "width": width,
        "c": fused.hidden_width,
        "sizes": [block.hidden_width, block.model_width, block.output_width],
        "output_error": float(np.linalg.norm(error) / np.linalg.norm(np.asarray(block(x)))),
        "kernel_error": float(np.linalg.norm(gap) / np.linalg.norm(kernel[pairs])),
        "violations": 0,
        "compared": 0,
    }
    for name, clusters in (("clusters", labels), ("directions", None)):
        k = kernel_directions(block, clusters, case.calibration)
        kernels = [sgd_enclosure(block, fused, x, share=share, directions=k) for share in shares]
        if name == "clusters":
            d = output_directions(block, clusters, case.calibration)
            outputs = [output_enclosure(block, fused, x, share=share, directions=d) for share in shares]
            row["output"] = [_compare(row, limits, error, slice(None)) for limits in outputs]
            row["output_points"] = _points(outputs[len(shares) // 2], error, slice(None))
            row["kernel_points"] = _points(kernels[len(shares) // 2], gap, pairs)
        row[name] = [_compare(row, limits, gap, pairs) for limits in kernels]
    plain = {
        "output": (output_bound(block, fused, x, labels), error, slice(None)),
        "kernel": (sgd_kernel_bound(block, fused, x, labels=labels), gap, pairs),
    }
    row["plain"] = {
        name: _compare(row, Enclosure(0 * bound, bound), measured, part)
        for name, (bound, measured, part) in plain.items()
    }
    return row


def _compare(row: Result, limits: Enclosure, measured: np.ndarray, part: Selection) -> dict[str, float]:
    """Median, 95 % quantile and largest of upper limit / measured; lower limits' median; violations are counted."""
    upper, lower = np.asarray(limits.upper)[part], np.asarray(limits.lower)[part]
    row["violations"] += int(np.sum(~(upper >= measured)) + np.sum(~(lower <= measured)))
    row["compared"] += 2 * measured.size
    ratio = upper / np.maximum(measured, 1e-300)
    whole = float(np.linalg.norm(upper) / np.linalg.norm(measured))
    median, high, worst = (float(value) for value in np.quantile(ratio, [0.5, 0.95, 1.0]))
    return {"median": median, "high": high, "worst": worst, "norm": whole, "lower": float(np.median(lower / measured))}


def _points(limits: Enclosure, measured: np.ndarray, part: Selection) -> list[list[float]]:
    upper = np.asarray(limits.upper)[part]
    chosen = np.random.default_rng(0).permutation(measured.size)[:POINTS]
    return [[float(measured[i]), float(upper[i])] for i in chosen]
