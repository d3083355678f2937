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
        logits: of the head: [B, C] of a sequence classification, [B, T, C] of a token classification, [B, T, 2] of
            question answering (start, end), [B, T, V] of a language model.
        encoder_last_hidden_state: [B, T, d], of an encoder–decoder model's encoder; its `last_hidden_state` is then
            the decoder's, [B, U, d].
    """

    last_hidden_state: Float[Array, "B T d"]
    pooler_output: Float[Array, "B d"] | None = None
    logits: Float[Array, "B *out"] | None = None
    encoder_last_hidden_state: Float[Array, "B T2 d"] | None = None
