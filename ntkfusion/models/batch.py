"""What a model reads."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from ntkfusion.models.pytree import pytree


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
