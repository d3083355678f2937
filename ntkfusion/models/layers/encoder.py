"""The modules that BERT, RoBERTa and ALBERT are made of: embeddings, one post-norm layer, and the heads.

Dropout is where PyTorch's classes have it, and does nothing unless a module is called with ``deterministic=False``.
Shapes: B batch, T positions, d model width, e width of the embeddings, H heads, V words, C labels.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.activations import get_activation
from ntkfusion.models.batch import Batch, ModelOutput
from ntkfusion.models.blocks.block import Layout
from ntkfusion.models.layers.dropout import Dropout
from ntkfusion.models.layers.encoder_config import EncoderConfig
from ntkfusion.models.layers.mlp import MLP, by_position


def dense(features: int, config: EncoderConfig, name: str) -> nn.Dense:
    """A linear map with bias."""
    return nn.Dense(features, kernel_init=nn.initializers.normal(config.initializer_range), name=name)


def layer_norm(x: Float[Array, "*batch d"], config: EncoderConfig, name: str) -> Float[Array, "*batch d"]:
    """Normalise every position."""
    # E[x²] − E[x]² would cost digits that parity with PyTorch needs; the other two keep float64 what it is
    normalise = nn.LayerNorm(
        epsilon=config.layer_norm_eps,
        use_fast_variance=False,
        force_float32_reductions=False,
        param_dtype=x.dtype,
        name=name,
    )
    return normalise(x)


class EncoderEmbeddings(nn.Module):
    """Word, position and token type embeddings, summed and normalised."""

    config: EncoderConfig

    def setup(self) -> None:
        """Make the tables; that of words is also the output layer of language models."""
        self.word = self._table(self.config.vocab_size)
        self.position = self._table(self.config.max_position_embeddings)
        self.token_type = self._table(self.config.type_vocab_size)

    def _table(self, rows: int) -> nn.Embed:
        init = nn.initializers.normal(self.config.initializer_range)
        return nn.Embed(rows, self.config.embedding_width, embedding_init=init)

    def _words(self, batch: Batch) -> Float[Array, "B T e"]:
        if batch.inputs_embeds is not None:
            return batch.inputs_embeds
        if batch.input_ids is None:
            raise InputError("give exactly one of input_ids and inputs_embeds")
        return _lookup(self.word, batch.input_ids, frozen=self.config.pad_token_id)

    @nn.compact
    def __call__(self, batch: Batch, *, deterministic: bool = True) -> Float[Array, "B T e"]:
        """Embed token ids, or take word embeddings as they are."""
        config, words = self.config, self._words(batch)
        positions = _lookup(self.position, _position_ids(batch, config.unplaced_token), frozen=config.unplaced_token)
        types = self.token_type(_token_type_ids(batch))
        embedded = layer_norm(words + types + positions, config, "norm")
        return Dropout(config.hidden_dropout_prob)(embedded, deterministic=deterministic)


def _lookup(table: nn.Embed, rows: Int[Array, "B T"], *, frozen: int | None) -> Float[Array, "B T e"]:
    """Rows of a table; as in PyTorch, no gradient reaches the row of padding."""
    found = table(rows)
    if frozen is None:
        return found
    return jnp.where((rows == frozen)[:, :, None], jax.lax.stop_gradient(found), found)


def _position_ids(batch: Batch, unplaced: int | None) -> Int[Array, "_ T"]:
    """Positions from 0 on; or behind that of a token which is not counted, wherever there are tokens to count."""
    if batch.position_ids is not None:
        return batch.position_ids
    from_left = jnp.arange(batch.shape[1])[None, :]
    if unplaced is None:
        return from_left
    if batch.input_ids is None:
        return from_left + unplaced + 1
    counted = (batch.input_ids != unplaced).astype(jnp.int32)
    return jnp.cumsum(counted, axis=1) * counted + unplaced


def _token_type_ids(batch: Batch) -> Int[Array, "B T"]:
    return jnp.zeros(batch.shape, jnp.int32) if batch.token_type_ids is None else batch.token_type_ids


def attention_bias(batch: Batch, dtype: DTypeLike) -> Float[Array, "B 1 1 T"]:
    """What is added to attention scores: 0 at tokens, very negative at padding."""
    hidden = jnp.finfo(dtype).min
    return jnp.where(batch.attention_mask[:, None, None, :] > 0, jnp.zeros((), dtype), hidden)


class EncoderAttention(nn.Module):
    """Multi-head self-attention with output projection."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T d"], mask: Float[Array, "B 1 1 T"], *, deterministic: bool = True
    ) -> Float[Array, "B T d"]:
        """Attend; `mask` is added to the scores (0 to keep, very negative to hide)."""
        heads = self.config.num_attention_heads

        def project(name: str) -> Float[Array, "B T H e"]:
            projected = by_position(dense(self.config.hidden_size, self.config, name), x)
            return projected.reshape(*x.shape[:2], heads, -1)

        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum("bqhe,bkhe->bhqk", query, key) / jnp.sqrt(query.shape[-1]).astype(x.dtype)
        weights = jax.nn.softmax(scores + mask, axis=-1)
        dropped = Dropout(self.config.attention_probs_dropout_prob)
        weights = dropped(weights, deterministic=deterministic)
        mixed = jnp.einsum("bhqk,bkhe->bqhe", weights, value).reshape(x.shape)
        return by_position(dense(self.config.hidden_size, self.config, "output"), mixed)


class EncoderLayer(nn.Module):
    """One encoder layer: attention and MLP block, each with a residual connection and a LayerNorm behind it."""

    config: EncoderConfig
    mlp_layout: Layout

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T d"], mask: Float[Array, "B 1 1 T"], *, deterministic: bool = True
    ) -> Float[Array, "B T d"]:
        """Hidden states of the next layer."""
        attended = EncoderAttention(self.config, name="attention")(x, mask, deterministic=deterministic)
        attended = Dropout(self.config.hidden_dropout_prob)(attended, deterministic=deterministic)
        x = layer_norm(x + attended, self.config, "attention_norm")
        transformed = MLP(self.mlp_layout, self.config.initializer_range, name="mlp")(x)
        transformed = Dropout(self.config.mlp_dropout)(transformed, deterministic=deterministic)
        return layer_norm(x + transformed, self.config, "mlp_norm")


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
