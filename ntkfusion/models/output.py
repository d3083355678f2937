"""What a model returns."""

from __future__ import annotations

from jaxtyping import Array, Bool, Float

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
        router_logits: [B, T, E] for every mixture of experts in the order of the network ([B, U, E] in a decoder);
            their softmax is the router's probabilities, their argmax the chosen expert.
        dropped_tokens: [B, T] for every mixture of experts, where a token came beyond its expert's capacity.
    """

    last_hidden_state: Float[Array, "B T d"]
    pooler_output: Float[Array, "B d"] | None = None
    logits: Float[Array, "B *out"] | None = None
    encoder_last_hidden_state: Float[Array, "B T2 d"] | None = None
    router_logits: tuple[Float[Array, "B _ _"], ...] | None = None
    dropped_tokens: tuple[Bool[Array, "B _"], ...] | None = None
