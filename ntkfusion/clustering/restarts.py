"""Restarts of k-means on all cores.

A restart is one compiled program that ends when it has converged; several of them run at the same time because each is
called from a thread of its own, and XLA does its work outside of Python's lock. A batched program would instead go on
with all restarts until the slowest one is done, and scatter their sums on one core.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.clustering.lloyd import exchange, lloyd, seed_labels
from ntkfusion.clustering.problem import ClusteringProblem

T = TypeVar("T")


class SearchResult(NamedTuple):
    """The best labelling of a problem, and how all restarts ended."""

    labels: Int[Array, " N"]
    iterations: Int[Array, ""]
    restart_inertias: Float[Array, " R"]
    restart_iterations: Int[Array, " R"]


def num_workers() -> int:
    """Restarts that run at the same time: one per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def search(
    prepare: partial[ClusteringProblem],
    keys: Array,
    num_clusters: int,
    max_iterations: int,
    exchanges: bool,
    pool: Pool,
) -> SearchResult:
    """Restart from every key and keep the best.

    Args:
        prepare: makes the problem.
        keys: one random key per restart.
        num_clusters: c.
        max_iterations: of Lloyd, and of the rounds of exchanges.
        exchanges: whether single exchanges follow Lloyd's iterations.
        pool: where restarts run.

    Returns:
        What was found; nothing of it is pending.
    """
    limit = jnp.asarray(max_iterations, jnp.int32)
    problem = first_alone(prepare)
    calls = [partial(_restart, problem, key, limit, num_clusters, exchanges) for key in keys]
    restarts = [pool.submit(call) for call in calls]
    labels, iterations, inertias = zip(*[restart.result() for restart in restarts], strict=True)
    inertias, iterations = jnp.stack(inertias), jnp.stack(iterations)
    # compared in the problem's unit: in that of the points they may leave float32's range
    best = int(jnp.argmin(inertias))
    return SearchResult(labels[best], iterations[best], problem.unit * inertias, iterations)


class Pool:
    """Threads that run restarts."""

    def __init__(self) -> None:
        """As many threads as there are cores."""
        self._executor = ThreadPoolExecutor(num_workers())

    def submit(self, call: partial[T]) -> Future[T]:
        """Run the call when a thread is free; see `first_alone` and `in_this_context`."""
        return self._executor.submit(in_this_context(partial(first_alone, call)))

    def __enter__(self) -> Pool:
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait for what runs; forget what waits."""
        self._executor.shutdown(cancel_futures=True)


def in_this_context(call: Callable[[], T]) -> Callable[[], T]:
    """The call with the precision of the calling thread: JAX keeps ``enable_x64`` per thread."""
    x64 = jnp.result_type(float) == jnp.float64

    def run() -> T:
        with jax.enable_x64(x64):
            return call()

    return run


_seen: set[Hashable] = set()

_compiling = threading.Lock()


def first_alone(call: partial[T]) -> T:
    """The finished result of the call; the first of its kind runs alone, so that two threads never compile the same."""
    kind = _kind(call)
    if kind not in _seen:
        with _compiling:
            if kind not in _seen:
                result = jax.block_until_ready(call())
                _seen.add(kind)
                return result
    return jax.block_until_ready(call())


def _kind(call: partial[Any]) -> Hashable:
    """What decides which program runs: the function, and types, shapes and structure of its arguments."""
    leaves, structure = jax.tree.flatten(call.args)
    shapes = tuple((leaf.shape, str(leaf.dtype)) if hasattr(leaf, "shape") else leaf for leaf in leaves)
    return call.func, structure, shapes


@partial(jax.jit, static_argnames=("num_clusters", "exchanges"))
def _restart(
    problem: ClusteringProblem, key: Array, max_iterations: Int[Array, ""], num_clusters: int, exchanges: bool
) -> tuple[Int[Array, " N"], Int[Array, ""], Float[Array, ""]]:
    labels = seed_labels(problem, key, num_clusters)
    labels, iterations = lloyd(problem, labels, num_clusters, max_iterations)
    if exchanges:
        labels = exchange(problem, labels, num_clusters, max_iterations)
    return labels, iterations, inertia_of(problem.points, labels, problem.weights, num_clusters)


def centroids_of(
    points: Float[Array, "N D"], labels: Int[Array, " N"], weights: Float[Array, " N"], num_clusters: int
) -> Float[Array, "c D"]:
    """Weighted means of the clusters."""
    mass = jax.ops.segment_sum(weights, labels, num_clusters)
    return jax.ops.segment_sum(points * (weights / mass[labels])[:, None], labels, num_clusters)


def inertia_of(
    points: Float[Array, "N D"], labels: Int[Array, " N"], weights: Float[Array, " N"], num_clusters: int
) -> Float[Array, ""]:
    """Σ_i w_i ‖θ_i − c_λ(i)‖², from the points: sums of inner products cancel."""
    residuals = points - centroids_of(points, labels, weights, num_clusters)[labels]
    return jnp.sum(weights[:, None] * residuals**2)
