"""Closed-form kernels of the mixture of experts ``f(x) = p_e(x) E_e(x)`` with ``p = softmax(Rᵀx)``, ``e = argmax p``.

The choice of e is piecewise constant, no gradient flows through it. So for a pair of examples

* expert parameters: ``1[e = e'] p_e p'_e K_e(x, z)``; sign kernel ``1[e = e'] p_e K_e(x, z)``, since sgn p = 1,
* router: ``∂f_k/∂R_ji = x_j p_e y_k (1[i = e] − p_i)`` with y = E_e(x), hence the core y y'ᵀ times
  ``(x·x') p_e p'_e ((1_e − p)·(1_e' − p'))``; in the sign kernel right-hand factors are replaced by their signs, and
  those of 1_e − p are known: +1 at e and −1 elsewhere; with ``signs="float"`` they are those of the computed
  difference, 0 where a probability underflows or p_e rounds to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.kernels.block.terms import Outer, Outputs, Parts, Term, Terms, evaluate, outputs_shape
from ntkfusion.kernels.kinds import Kind, Signs
from ntkfusion.models.blocks.base import BlockBase
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.utils.pytrees import pytree


@pytree
class ExampleRouting:
    """Where n examples go: the chosen expert, its weight p_e, and all probabilities."""

    chosen: Int[Array, " n"]
    weight: Float[Array, " n"]
    p: Float[Array, "n E"]


def routing(block: MixtureBlock, x: Float[Array, "n d"]) -> ExampleRouting:
    """Where the examples `x` go."""
    chosen, p = block.route(x)
    return ExampleRouting(chosen, jnp.take_along_axis(p, chosen[:, None], axis=1)[:, 0], p)


def departure(routes: ExampleRouting) -> Float[Array, "n E"]:
    """1_e − p; 1 − p_e as the sum of the others, which does not cancel when the router is sure."""
    here = jax.nn.one_hot(routes.chosen, routes.p.shape[1], dtype=routes.p.dtype)
    others = routes.p * (1 - here)
    return here * jnp.sum(others, axis=1, keepdims=True) - others


def departure_sign(routes: ExampleRouting) -> Float[Array, "n E"]:
    """The exact sign of 1_e − p, also where a probability underflows; a lone expert has p = 1 and sign 0."""
    experts = routes.p.shape[1]
    here = jax.nn.one_hot(routes.chosen, experts, dtype=routes.p.dtype)
    return jnp.zeros_like(here) if experts == 1 else 2 * here - 1


def computed_departure_sign(routes: ExampleRouting) -> Float[Array, "n E"]:
    """The sign of 1_e − p as it is computed."""
    return jnp.sign(jax.nn.one_hot(routes.chosen, routes.p.shape[1], dtype=routes.p.dtype) - routes.p)


def router_term(
    block: MixtureBlock, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind, signs: Signs = "exact"
) -> Term:
    """The kernel of the router's weights."""
    left, right = routing(block, x), routing(block, z)
    y = left.weight[:, None] * block.expert_output(x, left.chosen)
    y_right = block.expert_output(z, right.chosen)
    if kind == "sign":
        departed = departure_sign(right) if signs == "exact" else computed_departure_sign(right)
        return Term(Outer(y, jnp.sign(y_right)), ((x, jnp.sign(z)), (departure(left), departed)))
    return Term(Outer(y, right.weight[:, None] * y_right), ((x, z), (departure(left), departure(right))))


def parts(
    block: MixtureBlock,
    x: Float[Array, "n d"],
    z: Float[Array, "k d"],
    kind: Kind,
    outputs: Outputs,
    names: Collection[str],
    expert_terms: Callable[..., Terms],
    signs: Signs = "exact",
) -> Parts:
    """The kernels of the parameters in `names`, one expert after the other on masked features.

    Nothing of size [n, E, ...] lives; the cost is that of E kernels of one expert on all pairs.
    """
    pairs = (x.shape[0], z.shape[0])
    shape = pairs + outputs_shape(outputs, block.output_width)
    left, right = routing(block, x), routing(block, z)

    def add(totals: Parts, numbered: tuple[BlockBase, Int[Array, ""]]) -> tuple[Parts, None]:
        expert, index = numbered
        weight = jnp.where(left.chosen == index, left.weight, 0)
        # the weight is a factor of the gradient, its sign is 1
        weight_right = jnp.where(
            right.chosen == index, right.weight if kind == "sgd" else jnp.ones_like(right.weight), 0
        )
        terms = {f"experts/{name}": term for name, term in expert_terms(expert, x, z, kind, signs).items()}
        routed = {name: terms[name].times(weight[:, None], weight_right[:, None]) for name in totals}
        values = evaluate(routed, outputs, pairs)
        return {name: totals[name] + values[name] for name in totals}, None

    totals = {name: jnp.zeros(shape, x.dtype) for name in names if name != "router"}
    if totals:
        totals, _ = jax.lax.scan(add, totals, (block.experts, jnp.arange(block.num_experts)))
    if "router" in names:
        totals |= evaluate({"router": router_term(block, x, z, kind, signs)}, outputs, pairs)
    return totals
