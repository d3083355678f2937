"""The problems, both sides by turns, and one table."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info

import ntkfusion as nf
from ntkfusion.compression.neurons import neuron_vectors

SectionName = Literal["layers", "all-layers", "base"]
COLUMNS = (
    "problem",
    "ours, first s",
    "ours s",
    "sklearn s",
    "first ratio",
    "ratio",
    "lloyd alone s",
    "inertia",
    "lloyd's",
)


@dataclasses.dataclass(frozen=True)
class ClusteringOptions:
    """What to measure.

    Attributes:
        sections: which problems.
        layers: layers of MiniLM for the section of single layers.
        width: clusters as a fraction of the neurons.
        restarts: restarts of both sides.
        repeats: how often each side is timed; medians are shown.
    """

    sections: tuple[SectionName, ...] = ("layers", "all-layers", "base")
    layers: tuple[int, ...] = (0, 5)
    width: float = 0.25
    restarts: int = 10
    repeats: int = 3


def base_points() -> jax.Array:
    """Neurons of a block of BERT-base's size with random weights that have some structure."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(3072, 64)) @ rng.normal(size=(64, 1537)) / 8
    scales = np.exp(0.3 * rng.normal(size=(3072, 1)))
    return jnp.asarray(0.04 * scales * (0.6 * common + rng.normal(size=(3072, 1537))), jnp.float32)


def timed(function: Callable[[], float]) -> tuple[float, float]:
    """Seconds and result of a call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def measure(name: str, problems: Sequence[jax.Array], options: ClusteringOptions) -> list[str]:
    """One row of the table: all sides by turns, median seconds, summed inertias."""
    counts = [round(options.width * points.shape[0]) for points in problems]
    copies = [np.asarray(points) for points in problems]

    def ours(seed: int, exchange: bool = True) -> float:
        results = nf.clustering.kmeans_batch(problems, counts, options.restarts, seed, exchange=exchange)
        return float(sum(result.inertia for result in results))

    def theirs(seed: int) -> float:
        total = 0.0
        for points, count in zip(copies, counts, strict=True):
            restarts: Any = options.restarts  # its signature, without types, has only "auto"
            found = KMeans(count, n_init=restarts, random_state=seed, algorithm="lloyd").fit(points)
            assert found.inertia_ is not None
            total += found.inertia_
        return total

    first, _ = timed(lambda: ours(0))
    timed(lambda: ours(0, exchange=False))
    sides = (ours, lambda seed: ours(seed, exchange=False), theirs)
    runs = [[timed(lambda side=side, seed=seed: side(seed)) for side in sides] for seed in range(options.repeats)]
    seconds, inertias = (
        [statistics.median(run[side][part] for run in runs) for side in range(len(sides))] for part in range(2)
    )
    return [
        name,
        *(f"{value:.2f}" for value in (first, seconds[0], seconds[2])),
        *(f"{seconds[2] / value:.1f}" for value in (first, seconds[0])),
        f"{seconds[1]:.2f}",
        *(f"{100 * (inertias[side] / inertias[2] - 1):+.2f} %" for side in (0, 1)),
    ]


def main(options: ClusteringOptions) -> None:
    """Measure every section and print the table."""
    table = Table(*COLUMNS)
    blocks = nf.load_model("minilm", tokenizer=False).mlp_blocks()
    vectors = [neuron_vectors(block) for block in blocks if isinstance(block, nf.MLPBlock)]
    problems: dict[str, list[jax.Array]] = {}
    if "layers" in options.sections:
        problems |= {f"MiniLM, layer {layer}": [vectors[layer]] for layer in options.layers}
    if "all-layers" in options.sections:
        problems[f"MiniLM, {len(vectors)} layers"] = vectors
    if "base" in options.sections:
        problems["3072 x 1537"] = [base_points()]
    for name, points in problems.items():
        table.add_row(*measure(name, points, options))
    console = Console(width=140)
    console.print(table)
    threads = {info["user_api"]: info["num_threads"] for info in threadpool_info()}
    console.print(
        f"{options.restarts} restarts, a cluster per {1 / options.width:g} neurons, {os.cpu_count()} cores, threads of "
        f"scikit-learn: {threads}; medians of {options.repeats} interleaved runs; inertia: ours above scikit-learn's, "
        "and that of our Lloyd iterations alone (exchange=False)."
    )
