"""How far a mixture of fused experts can be from the original mixture, the router kept.

Given the same inputs, tokens go to the same experts with the same weights p. With y = E_e(x) and ỹ of the fused expert

    output          p_e ‖y − ỹ‖
    experts, SGD    1[e = e'] p_e p'_e' (K_e − K̃_e)          sign    1[e = e'] p_e (K_e − K̃_e)
    router, SGD     p_e p'_e' ρ (x·z) (y·y' − ỹ·ỹ')/o         ρ = (1_e − p)·(1_e' − p')
    router, sign    p_e ρ (x·sgn z) (y·sgn y' − ỹ·sgn ỹ')/o   ρ = (1_e − p)·sgn(1_e' − p')

and the experts' bounds of this folder apply with those factors. A frozen router has no part.

Source: own derivation, docs/theory.md, Theorem 3 (e).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.kernels.block.mixture import ExampleRouting, departure, departure_sign, routing
from ntkfusion.kernels.kinds import Kind, check_kind
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.theory.blocks.output_bounds import output_bound
from ntkfusion.theory.blocks.rounding import gamma, known_or_infinite
from ntkfusion.theory.blocks.sgd_bounds import sgd_kernel_bound
from ntkfusion.theory.blocks.sign_bounds import sign_kernel_bound

Labels = Sequence[Int[Array, " m"]] | None


def mixture_output_bound(
    original: MixtureBlock, fused: MixtureBlock, x: Float[Array, "N d"], labels: Labels = None
) -> Float[Array, " N"]:
    """A proven bound of ‖f(x) − f̃(x)‖ for every input, rounding of both outputs in float64 included.

    Args:
        original: a mixture of dense experts in float64.
        fused: the same router with fused experts.
        x: inputs in float64.
        labels: per expert the cluster of every neuron; by default the centre with the nearest input weights.

    Returns:
        [N].

    Raises:
        InputError: as `output_bound`, or for mixtures with different routers.
    """
    pairs = _experts(original, fused, labels)
    routes = routing(original, x)
    each = [output_bound(*pair[:2], x, pair[2]) for pair in pairs]
    return known_or_infinite(routes.weight * _chosen(each, routes) * (1 + gamma(8 * original.model_width + 64)))


def mixture_kernel_bound(
    original: MixtureBlock,
    fused: MixtureBlock,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None = None,
    labels: Labels = None,
    *,
    kind: Kind = "sgd",
) -> Float[Array, "N M"]:
    """A proven bound of |K(x, z) − K̃(x, z)|, K as of `block_kernel` (the mean over outputs), rounding included.

    Args:
        original: a mixture of dense experts in float64.
        fused: the same router with fused experts.
        x: evaluated inputs in float64.
        z: training inputs; by default `x`.
        labels: per expert the cluster of every neuron; by default the centre with the nearest input weights.
        kind: "sgd" or "sign".

    Returns:
        [N, M].

    Raises:
        InputError: as `sgd_kernel_bound`, for an unknown kind, or for mixtures with different routers.
    """
    check_kind(kind)
    pairs, z = _experts(original, fused, labels), x if z is None else z
    left, right = routing(original, x), routing(original, z)
    one: Callable[..., Array] = sgd_kernel_bound if kind == "sgd" else sign_kernel_bound
    total = jnp.zeros((x.shape[0], z.shape[0]), x.dtype)
    for index, (old, new, clusters) in enumerate(pairs):
        here, there = (jnp.where(side.chosen == index, side.weight, 0) for side in (left, right))
        there = there if kind == "sgd" else (right.chosen == index).astype(x.dtype)
        weight = here[:, None] * there[None, :]
        # 0, not NaN, where the expert is not chosen and its own bound is infinite
        total = total + jnp.where(weight == 0, 0, weight * one(old, new, x, z, clusters))
    if original.train_router:
        total = total + router_bound(pairs, original, fused, x, z, kind)
    return known_or_infinite(total)


def router_bound(
    pairs: Sequence[tuple[MLPBlock, MLPBlock, Int[Array, " m"] | None]],
    original: MixtureBlock,
    fused: MixtureBlock,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"],
    kind: Kind,
) -> Float[Array, "N M"]:
    """The router's part of `mixture_kernel_bound`.

    With B ≥ |y − ỹ| per output |y·y' − ỹ·ỹ'| ≤ B·|ỹ'| + |ỹ|·B' + B·B', and for signs |y·sgn y' − ỹ·sgn ỹ'| is at most
    Σ_k B_k + 2 Σ_k (|ỹ_k| + B_k) 1[|ỹ'_k| ≤ B'_k].
    """
    (left, error, y), (right, error_z, y_z) = (_outputs(pairs, original, fused, inputs) for inputs in (x, z))
    if kind == "sgd":
        changed = error @ y_z.T + y @ error_z.T + error @ error_z.T
        weight, inputs = right.weight, z
    else:
        flips = 2 * (y_z <= error_z).astype(x.dtype)
        changed = error @ jnp.ones_like(error_z).T + (y + error) @ flips.T
        weight, inputs = jnp.ones_like(right.weight), jnp.sign(z)
    first, second = departure(left), departure(right) if kind == "sgd" else departure_sign(right)
    gram = jnp.abs(x @ inputs.T) * jnp.abs(first @ second.T)
    sizes = (jnp.abs(x) @ jnp.abs(inputs).T) * (jnp.abs(first) @ jnp.abs(second).T)
    # rounding of p, of both Gram matrices and of y, each at most twice in a product
    slip = gamma(8 * (original.model_width + original.num_experts + original.output_width) + 256)
    whole = changed + 2 * (y + error) @ (y_z + error_z if kind == "sgd" else jnp.ones_like(y_z)).T
    scale = left.weight[:, None] * weight[None, :] / original.output_width
    return scale * (gram * changed + slip * sizes * whole)


def _outputs(
    pairs: Sequence[tuple[MLPBlock, MLPBlock, Int[Array, " m"] | None]],
    original: MixtureBlock,
    fused: MixtureBlock,
    x: Float[Array, "N d"],
) -> tuple[ExampleRouting, Float[Array, "N o"], Float[Array, "N o"]]:
    """Where inputs go, B, and |ỹ|."""
    routes = routing(original, x)
    each = [output_bound(old, new, x, clusters, per_output=True) for old, new, clusters in pairs]
    return routes, _chosen(each, routes), jnp.abs(fused.expert_output(x, routes.chosen))


def _chosen(each: Sequence[Float[Array, "N *o"]], routes: ExampleRouting) -> Float[Array, "N *o"]:
    """Of every expert's array the rows that go to it."""
    stacked = jnp.stack(each)
    return stacked[routes.chosen, jnp.arange(stacked.shape[1])]


def _experts(
    original: MixtureBlock, fused: MixtureBlock, labels: Labels
) -> list[tuple[MLPBlock, MLPBlock, Int[Array, " m"] | None]]:
    """The experts side by side, the routers checked."""
    for name, block in (("original", original), ("fused", fused)):
        if not isinstance(block, MixtureBlock):
            raise InputError(
                f"mixture bounds compare mixtures of experts; the {name} block is a {type(block).__name__}"
            )
    same = original.router.shape == fused.router.shape and bool(jnp.all(original.router == fused.router))
    if not same or original.train_router != fused.train_router:
        raise InputError("the mixtures differ in their routers: bounds hold where the router is kept")
    count = original.num_experts
    if labels is not None and len(labels) != count:
        raise InputError(f"labels must hold one array per expert, {count} in all; got {len(labels)}")
    clusters = [None] * count if labels is None else labels
    return [(original.expert(i), fused.expert(i), clusters[i]) for i in range(count)]
