"""What a model returns."""

from __future__ import annotations

from jaxtyping import Array, Float

from ntkfusion.models.pytree import pytree


@pytree
class ModelOutput:
    """The outputs of a network; what the model does not have is None.

    Attributes:
        last_hidden_state: [B, T, d], behind the last layer. Values at padding positions mean nothing.
        pooler_output: [B, d], of the first token.
        logits: [B, C], of the classification head.
    """

    last_hidden_state: Float[Array, "B T d"]
    pooler_output: Float[Array, "B d"] | None = None
    logits: Float[Array, "B C"] | None = None
