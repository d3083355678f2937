"""The modules that BERT, RoBERTa and ALBERT are made of: embeddings and one post-norm layer.

Dropout is where PyTorch's classes have it, and does nothing unless a module is called with ``deterministic=False``.
Shapes: B batch, T positions, d model width, e width of the embeddings, H heads.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.batch import Batch
from ntkfusion.models.dropout import Dropout
from ntkfusion.models.encoder_config import EncoderConfig
from ntkfusion.models.mlp_module import MLP, by_position


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


class Embeddings(nn.Module):
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


def attention_bias(batch: Batch, dtype: Any) -> Float[Array, "B 1 1 T"]:
    """What is added to attention scores: 0 at tokens, very negative at padding."""
    hidden = jnp.finfo(dtype).min
    return jnp.where(batch.attention_mask[:, None, None, :] > 0, jnp.zeros((), dtype), hidden)


class SelfAttention(nn.Module):
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


class Layer(nn.Module):
    """One encoder layer: attention and MLP block, each with a residual connection and a LayerNorm behind it."""

    config: EncoderConfig
    mlp_layout: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T d"], mask: Float[Array, "B 1 1 T"], *, deterministic: bool = True
    ) -> Float[Array, "B T d"]:
        """Hidden states of the next layer."""
        attended = SelfAttention(self.config, name="attention")(x, mask, deterministic=deterministic)
        attended = Dropout(self.config.hidden_dropout_prob)(attended, deterministic=deterministic)
        x = layer_norm(x + attended, self.config, "attention_norm")
        transformed = MLP(self.mlp_layout, self.config.initializer_range, name="mlp")(x)
        transformed = Dropout(self.config.mlp_dropout)(transformed, deterministic=deterministic)
        return layer_norm(x + transformed, self.config, "mlp_norm")
