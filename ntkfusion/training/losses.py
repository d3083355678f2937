"""What training minimises, as sums over the examples of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ntkfusion.models.config import ModelConfig
from ntkfusion.models.model import Model, Params

#: What the network reads; a batch's other arrays are for the loss.
NETWORK_INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "decoder_input_ids")

#: (parameters, constants, arrays of a batch, dropout key or None) → the sum over examples, each times its weight.
Loss = Callable[[Params, Params, Mapping[str, Array], Array | None], Float[Array, ""]]


def logits_of(
    config: ModelConfig, params: Params, constants: Params, arrays: Mapping[str, Array], key: Array | None = None
) -> Float[Array, "B C"]:
    """Logits of a classification head for a batch of a training run."""
    inputs: dict[str, Any] = {name: arrays[name] for name in NETWORK_INPUTS if name in arrays}
    logits = Model(config, params, constants).apply(params, dropout_key=key, **inputs).logits
    assert logits is not None
    return logits


def task_loss(config: ModelConfig, *, is_regression: bool) -> Loss:
    """Σ_n w_n ℓ(f(x_n), y_n): cross-entropy of the softmax, or (f(x_n) − y_n)².

    Args:
        config: a configuration with a sequence classification head.
        is_regression: whether labels are scores.

    Returns:
        The loss.
    """

    def loss(params: Params, constants: Params, arrays: Mapping[str, Array], key: Array | None) -> Float[Array, ""]:
        logits = logits_of(config, params, constants, arrays, key)
        # probabilities of half precision would round small losses away
        logits = logits.astype(jnp.float32) if logits.dtype == jnp.bfloat16 else logits
        each = per_example(logits, arrays["labels"], is_regression)
        return jnp.sum(each * arrays["weights"].astype(each.dtype))

    return loss


def per_example(logits: Float[Array, "B C"], labels: Array, is_regression: bool) -> Float[Array, " B"]:
    """The loss of each example."""
    if is_regression:
        return jnp.square(logits[:, 0] - labels.astype(logits.dtype))
    # optax takes the largest logit out with integers of its own
    with jax.numpy_dtype_promotion("standard"):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
