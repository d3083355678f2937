"""What a model reads, and what it returns."""

from __future__ import annotations

from jaxtyping import Array, Bool, Float, Int

from ntkfusion.utils.pytrees import pytree


@pytree
class Batch:
    """The inputs of a network; what an architecture does not read is ignored.

    Attributes:
        attention_mask: 1 for tokens, 0 for padding.
        input_ids: token ids; or `inputs_embeds` in their place.
        inputs_embeds: word embeddings.
        token_type_ids: segment of each token (BERT).
        position_ids: position of each token, by default 0, 1, 2, ... from the left.
        decoder_input_ids: what a decoder reads (encoder–decoder models), U positions.
        decoder_attention_mask: 1 for tokens of the decoder, 0 for padding.
    """

    attention_mask: Int[Array, "B T"]
    input_ids: Int[Array, "B T"] | None = None
    inputs_embeds: Float[Array, "B T d"] | None = None
    token_type_ids: Int[Array, "B T"] | None = None
    position_ids: Int[Array, "B T"] | None = None
    decoder_input_ids: Int[Array, "B U"] | None = None
    decoder_attention_mask: Int[Array, "B U"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.attention_mask.shape[0], self.attention_mask.shape[1]


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
