"""BERT (Devlin et al. 2019) as small linen modules: embeddings, post-norm encoder, pooler, classification head.

Dropout is where PyTorch's class has it, and does nothing unless a module is called with ``deterministic=False``.
Shapes: B batch, T positions, d model width, H heads.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.models.batch import Batch
from ntkfusion.models.bert_config import BertConfig
from ntkfusion.models.mlp_module import MLP
from ntkfusion.models.output import ModelOutput


def _dense(features: int, config: BertConfig, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.normal(config.initializer_range), name=name)


def _layer_norm(x: Float[Array, "B T d"], config: BertConfig, name: str) -> Float[Array, "B T d"]:
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

    config: BertConfig

    @nn.compact
    def __call__(self, batch: Batch, *, deterministic: bool = True) -> Float[Array, "B T d"]:
        """Embed token ids, or take word embeddings as they are."""
        config = self.config
        init = nn.initializers.normal(config.initializer_range)

        def embed(rows: int, name: str) -> nn.Embed:
            return nn.Embed(rows, config.hidden_size, embedding_init=init, name=name)

        word = embed(config.vocab_size, "word")
        words = word(batch.input_ids) if batch.inputs_embeds is None else batch.inputs_embeds
        positions = embed(config.max_position_embeddings, "position")(_position_ids(batch))
        types = embed(config.type_vocab_size, "token_type")(_token_type_ids(batch))
        embedded = _layer_norm(words + types + positions, config, "norm")
        return nn.Dropout(config.hidden_dropout_prob)(embedded, deterministic=deterministic)


def _position_ids(batch: Batch) -> Int[Array, "_ T"]:
    return jnp.arange(batch.shape[1])[None, :] if batch.position_ids is None else batch.position_ids


def _token_type_ids(batch: Batch) -> Int[Array, "B T"]:
    return jnp.zeros(batch.shape, jnp.int32) if batch.token_type_ids is None else batch.token_type_ids


class SelfAttention(nn.Module):
    """Multi-head self-attention with output projection."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T d"], mask: Float[Array, "B 1 1 T"], *, deterministic: bool = True
    ) -> Float[Array, "B T d"]:
        """Attend; `mask` is added to the scores (0 to keep, very negative to hide)."""
        heads = self.config.num_attention_heads

        def project(name: str) -> Float[Array, "B T H e"]:
            projected = _dense(self.config.hidden_size, self.config, name)(x)
            return projected.reshape(*x.shape[:2], heads, -1)

        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum("bqhe,bkhe->bhqk", query, key) / jnp.sqrt(query.shape[-1]).astype(x.dtype)
        weights = jax.nn.softmax(scores + mask, axis=-1)
        dropped = nn.Dropout(self.config.attention_probs_dropout_prob)
        weights = dropped(weights, deterministic=deterministic)
        mixed = jnp.einsum("bhqk,bkhe->bqhe", weights, value).reshape(x.shape)
        return _dense(self.config.hidden_size, self.config, "output")(mixed)


class Layer(nn.Module):
    """One encoder layer: attention and MLP block, each with a residual connection and a LayerNorm behind it."""

    config: BertConfig
    mlp_layout: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T d"], mask: Float[Array, "B 1 1 T"], *, deterministic: bool = True
    ) -> Float[Array, "B T d"]:
        """Hidden states of the next layer."""
        attended = SelfAttention(self.config, name="attention")(x, mask, deterministic=deterministic)
        attended = nn.Dropout(self.config.hidden_dropout_prob)(attended, deterministic=deterministic)
        x = _layer_norm(x + attended, self.config, "attention_norm")
        transformed = MLP(self.mlp_layout, self.config.initializer_range, name="mlp")(x)
        transformed = nn.Dropout(self.config.hidden_dropout_prob)(transformed, deterministic=deterministic)
        return _layer_norm(x + transformed, self.config, "mlp_norm")


class Bert(nn.Module):
    """The BERT encoder with optional pooler and sequence classification head."""

    config: BertConfig

    @nn.compact
    def __call__(self, batch: Batch, *, deterministic: bool = True) -> ModelOutput:
        """Run the network."""
        config = self.config
        x = Embeddings(config, name="embeddings")(batch, deterministic=deterministic)
        hidden = jnp.finfo(x.dtype).min
        mask = jnp.where(batch.attention_mask[:, None, None, :] > 0, jnp.zeros((), x.dtype), hidden)
        for index in range(config.num_hidden_layers):
            layer = Layer(config, config.block_layout(index), name=f"layer_{index}")
            x = layer(x, mask, deterministic=deterministic)
        pooled = logits = None
        if config.add_pooler:
            pooled = jnp.tanh(_dense(config.hidden_size, config, "pooler")(x[:, 0]))
        if config.num_labels is not None and pooled is not None:
            dropped = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
            read = nn.Dropout(dropped)(pooled, deterministic=deterministic)
            logits = _dense(config.num_labels, config, "classifier")(read)
        return ModelOutput(last_hidden_state=x, pooler_output=pooled, logits=logits)
