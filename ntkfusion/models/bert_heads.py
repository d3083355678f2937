"""The heads of BERT, RoBERTa and ALBERT: what is behind the last layer.

Shapes: B batch, T positions, d model width, e width of the embeddings, V words.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.activations import get_activation
from ntkfusion.models.dropout import Dropout
from ntkfusion.models.encoder import dense, layer_norm
from ntkfusion.models.encoder_config import EncoderConfig
from ntkfusion.models.output import ModelOutput

#: Scores of all words for vectors of the embeddings' width.
Decoder = Callable[[Array], Array]


class MaskedLMHead(nn.Module):
    """Dense, activation, LayerNorm, and a decoder that is the word embedding unless it is untied."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"], decode: Decoder) -> Float[Array, "B T V"]:
        """Scores of all words at every position; `decode` is the transposed word embedding."""
        config = self.config
        transformed = dense(config.embedding_width, config, "dense")(x)
        transformed = get_activation(config.lm_activation).value(transformed)
        transformed = layer_norm(transformed, config, "norm")
        # PyTorch's classes have this one beside an untied decoder too, whose own bias is then the one that counts
        bias = self.param("bias", nn.initializers.zeros_init(), (config.vocab_size,), transformed.dtype)
        if config.tie_word_embeddings:
            return decode(transformed) + bias[None, None, :]
        return dense(config.vocab_size, config, "decoder")(transformed)


class TwoLayerClassifier(nn.Module):
    """RoBERTa's sequence classification: dense, tanh and a linear map."""

    config: EncoderConfig
    num_labels: int

    @nn.compact
    def __call__(self, x: Float[Array, "B d"], *, deterministic: bool = True) -> Float[Array, "B C"]:
        """Logits of every sequence."""
        dropped = Dropout(self.config.head_dropout)(x, deterministic=deterministic)
        hidden = jnp.tanh(dense(self.config.hidden_size, self.config, "dense")(dropped))
        hidden = Dropout(self.config.head_dropout)(hidden, deterministic=deterministic)
        return dense(self.num_labels, self.config, "output")(hidden)


def with_head(
    config: EncoderConfig, x: Float[Array, "B T d"], decode: Decoder, *, deterministic: bool = True
) -> ModelOutput:
    """The output of a network whose last layer gives `x`; call it inside a compact method.

    Args:
        config: the configuration, which says what there is behind the last layer.
        x: the last hidden states.
        decode: the transposed word embedding.
        deterministic: whether nothing is dropped.

    Returns:
        The `ModelOutput`.
    """
    pooled = jnp.tanh(dense(config.hidden_size, config, "pooler")(x[:, 0])) if config.add_pooler else None
    logits = None
    match config.head:
        case "masked-lm":
            logits = MaskedLMHead(config, name="lm_head")(x, decode)
        case "question-answering":
            logits = dense(2, config, "qa_outputs")(x)
        case "token-classification":
            logits = _classify(config, x, deterministic=deterministic)
        case "sequence-classification" if pooled is not None:
            logits = _classify(config, pooled, deterministic=deterministic)
        case "sequence-classification":
            classifier = TwoLayerClassifier(config, config.num_labels or 0, name="classifier")
            logits = classifier(x[:, 0], deterministic=deterministic)
        case _:
            pass
    return ModelOutput(last_hidden_state=x, pooler_output=pooled, logits=logits)


def _classify(config: EncoderConfig, x: Float[Array, "*batch d"], *, deterministic: bool) -> Float[Array, "*batch C"]:
    dropped = Dropout(config.head_dropout)(x, deterministic=deterministic)
    return dense(config.num_labels or 0, config, "classifier")(dropped)
