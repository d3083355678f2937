"""The hidden states behind every layer, whatever the architecture."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from ntkfusion.models.batch import Batch
from ntkfusion.models.config import ModelConfig


def hidden_states(
    config: ModelConfig, params: dict[str, Any], constants: dict[str, Any], batch: Batch
) -> tuple[Float[Array, "B _ d"], ...]:
    """H_1, …, H_L, without dropout: what every layer in turn hands to the next.

    Args:
        config: the architecture.
        params: its parameters.
        constants: of its MLP blocks.
        batch: what it reads.

    Returns:
        One array per entry of `config.applications`.
    """
    layers = config.layer_paths

    def is_layer(module: nn.Module, method: str) -> bool:
        return method == "__call__" and "/".join(module.path) in layers

    variables = {"params": params, "constants": constants}
    _, state = config.build().apply(variables, batch, mutable=["intermediates"], capture_intermediates=is_layer)
    # a layer that is used again, as ALBERT's are, has an entry for every use
    seen = [iter(_below(state["intermediates"], path)["__call__"]) for path in layers]
    return tuple(_states(next(seen[index])) for index in config.applications)


def _below(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _states(returned: Any) -> Float[Array, "B _ d"]:
    """Switch Transformer's layers return what their routers did as well."""
    return returned[0] if isinstance(returned, tuple) else returned
