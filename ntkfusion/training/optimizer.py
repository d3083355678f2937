"""Which parameters are trained and at which rate, and the optax transformation that a recipe describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.model import Model
from ntkfusion.training.recipe import Recipe
from ntkfusion.utils.parameter_paths import Flat, Params, Select, flatten, matches

#: A factor of the learning rate: one for a whole parameter, or one for every entry, row or column.
Rate: TypeAlias = float | Float[Array, "..."]


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose learning rate is multiplied by a factor.

    Attributes:
        select: a pattern of paths such as ``layer_3/*`` or ``*/mlp/*``, several, or a function of the path.
        rate: the factor; 0 freezes the parameters, which then cost no gradient. An array is a factor for every entry
            (or every row or column, of size 1 along the other axis).
    """

    select: Select
    rate: Rate = 1.0

    @property
    def frozen(self) -> bool:
        """Whether these parameters are not trained."""
        return not isinstance(self.rate, jax.Array) and self.rate == 0


def rates_of(paths: Sequence[str], groups: Sequence[Group]) -> dict[str, Rate]:
    """The factor of every parameter: that of the first group it fits, else 1; 0 for frozen ones.

    Raises:
        InputError: if a group fits no parameter, as one with a misspelled pattern does.
    """
    for group in groups:
        if not any(matches(path, group.select) for path in paths):
            raise InputError(f"no parameter fits {group.select!r}; parameters are {', '.join(paths[:6])}, …")
    group_of = {path: next((group for group in groups if matches(path, group.select)), Group("*")) for path in paths}
    return {path: 0.0 if group.frozen else group.rate for path, group in group_of.items()}


def changed_rates(rates: Mapping[str, Rate]) -> Flat:
    """The factors that change something: neither 1 nor those of frozen parameters."""
    differ = {path: rate for path, rate in rates.items() if isinstance(rate, jax.Array) or rate not in (0, 1)}
    # float64 where JAX has it
    return {path: jnp.asarray(rate, float) for path, rate in differ.items()}


def split(params: Params, groups: Sequence[Group]) -> tuple[Flat, Flat]:
    """Trained and frozen parameters.

    Raises:
        InputError: if nothing is left to train; as `rates_of`.
    """
    flat = flatten(params)
    rates = rates_of(list(flat), groups)
    frozen = {path: flat[path] for path, rate in rates.items() if not isinstance(rate, jax.Array) and not rate}
    trained = {path: parameter for path, parameter in flat.items() if path not in frozen}
    if not trained:
        raise InputError("every parameter is frozen; nothing is left to train")
    return trained, frozen


def cluster_rates(model: Model) -> tuple[Group, ...]:
    """Rates 1/n_j for cluster j of blocks that carry cluster sizes as constants q_j = n_j (MLP Fusion's V1).

    Under plain gradient descent V1 then follows the original model's trajectory where its clusters are exact, momentum
    included: ∂L/∂c_j = n_j ∂L/∂θ_i for every member i (docs/training.md, "Rates of centroids"). The recipe has to leave
    gradients as they are: no clipping (V1's norm is another one), no decay (the rates scale it too).

    Args:
        model: the compressed model.

    Returns:
        Groups for w1, b1 and w2 of every such block.

    Raises:
        InputError: if no block has constants q, or those that do have constants r too.
    """
    groups: list[Group] = []
    for path, block in zip(model.config.block_paths, model.mlp_blocks(), strict=True):
        if isinstance(block, MLPBlock) and block.q is not None and block.r is None:
            inverse = 1 / block.q
            shaped = {"w1": inverse[None, :], "b1": inverse, "w2": inverse[:, None]}
            groups += [Group(f"{path}/{name}", rate) for name, rate in shaped.items() if name in block.parameters()]
    if not groups:
        raise InputError("no MLP block has cluster sizes as constants; compress with mlp-fusion, variant v1")
    return tuple(groups)


def decays(path: str, parameter: Float[Array, "..."]) -> bool:
    """Whether weight decay applies: to matrices, and not to the stacked biases of experts.

    >>> decays("layer_0/mlp/w1", jnp.zeros((3, 4))), decays("layer_0/mlp/b1", jnp.zeros((2, 4)))
    (True, False)
    """
    return parameter.ndim >= 2 and path.rpartition("/")[2] not in ("b1", "b2", "bias", "scale")


def learning_rate(recipe: Recipe, num_updates: int) -> optax.Schedule:
    """The rate of update t = 0, 1, …: from 0 along a straight line while it warms up, then as `recipe.schedule` says.

    Update 0 of a run with warm-up has rate 0 and the first one behind the last would have rate 0, as in transformers.

    Args:
        recipe: the hyper-parameters.
        num_updates: updates of the whole run.

    Returns:
        A function of t.
    """
    warmup, peak = int(recipe.warmup * num_updates), recipe.learning_rate
    if recipe.schedule == "constant":
        falling: optax.Schedule = optax.constant_schedule(peak)
    else:
        power = recipe.power if recipe.schedule == "polynomial" else 1.0
        falling = optax.polynomial_schedule(peak, 0.0, power, num_updates - warmup)
    whole = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), falling], [warmup]) if warmup else falling
    # a fraction of whole numbers would be float32 in float64 runs too
    return lambda count: whole(jnp.asarray(count, float))


def build_optimizer(recipe: Recipe, num_updates: int) -> optax.GradientTransformation:
    """Clipping, Adam or plain gradients, decoupled decay, schedule; in this order.

    The update of a parameter θ is −η_t (u + λθ), u Adam's bias-corrected quotient or the clipped gradient, λ the decay
    (0 for biases and LayerNorm).

    Args:
        recipe: the hyper-parameters.
        num_updates: updates of the whole run, for the schedule.

    Returns:
        The transformation, for flat dictionaries of parameters.
    """
    adam = optax.scale_by_adam(recipe.b1, recipe.b2, recipe.eps)
    return optax.chain(
        clip(recipe.clip_norm) if recipe.clip_norm is not None else optax.identity(),
        adam if recipe.optimizer == "adamw" else optax.identity(),
        optax.add_decayed_weights(recipe.weight_decay, mask=_decaying),
        optax.scale_by_learning_rate(learning_rate(recipe, num_updates)),
    )


def clip(limit: float) -> optax.GradientTransformation:
    """Gradients scaled by min(1, limit / (‖g‖ + 1e-6)), as PyTorch's ``clip_grad_norm_`` does.

    Args:
        limit: of the norm over all parameters.

    Returns:
        The transformation; optax's own leaves the 1e-6 out, which parity with PyTorch in float64 needs.
    """

    def scaled(gradient: Any, _: Any) -> Any:
        factor = jnp.minimum(1.0, limit / (optax.tree.norm(gradient) + 1e-6))
        return jax.tree.map(lambda part: part * factor.astype(part.dtype), gradient)

    return optax.stateless(scaled)


def _decaying(trained: Any) -> dict[str, bool]:
    return {path: decays(path, parameter) for path, parameter in trained.items()}
