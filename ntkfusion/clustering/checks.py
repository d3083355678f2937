"""What k-means needs to be told, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.errors import InputError


class Request(NamedTuple):
    """One k-means problem with nothing left to default."""

    points: Float[Array, "N D"]
    num_clusters: int
    num_restarts: int
    key: Array
    weights: Float[Array, " N"]
    column_weights: Float[Array, " D"]
    max_iterations: int
    exchange: bool


def one_for_each(count: int, **lists: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The entries of several lists side by side, one row per problem.

    Raises:
        InputError: if a list has another length.
    """
    for name, entries in lists.items():
        if len(entries) != count:
            raise InputError(f"{name} must have one entry for each of the {count} problems; got {len(entries)}")
    return list(zip(*lists.values(), strict=True))


def checked(
    points: Float[Array, "N D"],
    num_clusters: int,
    num_restarts: int,
    key: Array,
    weights: Array | None,
    column_weights: Array | None,
    max_iterations: int,
    exchange: bool,
) -> Request:
    """The request with weights filled in; see `kmeans` for what they are.

    Raises:
        InputError: for points that are no rows of floats, counts out of range, points that are not finite, or weights
            that are negative or all 0.
    """
    if jnp.ndim(points) != 2 or not jnp.issubdtype(points.dtype, jnp.floating):
        raise InputError(
            f"points must be floats of shape [points, dimensions]; got {points.dtype} of shape {jnp.shape(points)}"
        )
    num_points, dimension = points.shape
    if not 1 <= num_clusters <= num_points:
        raise InputError(f"num_clusters must be from 1 to the number of points, {num_points}; got {num_clusters}")
    if num_restarts < 1 or max_iterations < 1:
        raise InputError(f"num_restarts and max_iterations must be at least 1; got {num_restarts}, {max_iterations}")
    if not bool(jnp.all(jnp.isfinite(points))):
        raise InputError("points hold values that are not finite")
    weights = _weights("weights", weights, num_points, points)
    column_weights = _weights("column_weights", column_weights, dimension, points)
    present = int(jnp.sum(weights > 0))
    if num_clusters > present:
        raise InputError(f"{num_clusters} clusters need as many points of a weight above 0; there are {present}")
    return Request(points, num_clusters, num_restarts, key, weights, column_weights, max_iterations, exchange)


def _weights(name: str, given: Array | None, count: int, points: Array) -> Float[Array, " count"]:
    """The weights in the type of the points, 1 by default."""
    if given is None:
        return jnp.ones(count, points.dtype)
    if jnp.shape(given) != (count,):
        raise InputError(f"{name} must be {count} numbers for points of shape {points.shape}; got {jnp.shape(given)}")
    weights = jnp.asarray(given, points.dtype)
    if not bool(jnp.all(jnp.isfinite(weights) & (weights >= 0)) & jnp.any(weights > 0)):
        raise InputError(f"{name} must be finite, not negative, and not all 0")
    return weights
