"""The optax transformation that a recipe describes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ntkfusion.training.groups import decays
from ntkfusion.training.recipe import Recipe


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
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), gradient)

    return optax.stateless(scaled)


def _decaying(trained: Any) -> dict[str, bool]:
    return {path: decays(path, leaf) for path, leaf in trained.items()}
