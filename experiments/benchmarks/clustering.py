"""k-means of ntkfusion against scikit-learn on the real blocks of MiniLM: time and inertia, interleaved in one run.

Run it: ``uv run --extra test experiments/benchmarks/clustering.py``. Both sides get the same points, clusters and
number of restarts; the first call of ours (compilation included, if no layer of that shape came before) is shown apart.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans

import ntkfusion as nf
from ntkfusion.compression.neurons import neuron_vectors


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        layers: layers of MiniLM.
        width: clusters as a fraction of the neurons.
        restarts: restarts of both sides.
        repeats: how often each side is timed; medians are shown.
    """

    layers: tuple[int, ...] = (0, 5)
    width: float = 0.25
    restarts: int = 10
    repeats: int = 3


def timed(function: Callable[[], float]) -> tuple[float, float]:
    """Seconds and result of a call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def measure(points: jax.Array, clusters: int, options: Options) -> list[str]:
    """One row of the table: the two sides by turns, median seconds, best inertia of each."""
    copied = np.asarray(points)

    def ours(seed: int) -> float:
        return float(nf.kmeans(points, clusters, options.restarts, seed).inertia)

    def theirs(seed: int) -> float:
        return float(KMeans(clusters, n_init=options.restarts, random_state=seed).fit(copied).inertia_)

    cold, _ = timed(lambda: ours(0))
    pairs = [(timed(lambda s=seed: ours(s)), timed(lambda s=seed: theirs(s))) for seed in range(options.repeats)]
    (our_seconds, our_inertia), (their_seconds, their_inertia) = (
        (statistics.median(side[0] for side in sides), statistics.median(side[1] for side in sides))
        for sides in zip(*pairs, strict=True)
    )
    ratio, excess = their_seconds / our_seconds, our_inertia / their_inertia - 1
    return [f"{cold:.2f}", f"{our_seconds:.2f}", f"{their_seconds:.2f}", f"{ratio:.1f}", f"{100 * excess:+.2f} %"]


def main(options: Options) -> None:
    """Measure every layer and print the table."""
    table = Table("layer", "ours, first s", "ours s", "sklearn s", "ratio", "inertia")
    blocks = nf.load_model("minilm", tokenizer=False).mlp_blocks()
    for layer in options.layers:
        points = neuron_vectors(blocks[layer])
        clusters = round(options.width * points.shape[0])
        table.add_row(str(layer), *measure(jnp.asarray(points), clusters, options))
    console = Console()
    console.print(table)
    console.print(
        f"{points.shape[0]} points of {points.shape[1]} numbers into {clusters} clusters, {options.restarts} restarts; "
        f"medians of {options.repeats} interleaved runs; inertia: ours above scikit-learn's."
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
