"""BERT (Devlin et al. 2019) as small linen modules: embeddings, post-norm encoder, pooler, classification head.

Evaluation only: there is no dropout here. Shapes: B batch, T positions, d model width, H heads.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.models.config import BertConfig
from ntkfusion.models.mlp import Block
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
    def __call__(
        self,
        input_ids: Int[Array, "B T"] | None,
        inputs_embeds: Float[Array, "B T d"] | None,
        token_type_ids: Int[Array, "B T"],
    ) -> Float[Array, "B T d"]:
        """Embed token ids, or take word embeddings as they are."""
        config = self.config
        init = nn.initializers.normal(config.initializer_range)

        def embed(rows: int, name: str) -> nn.Embed:
            return nn.Embed(rows, config.hidden_size, embedding_init=init, name=name)

        word = embed(config.vocab_size, "word")
        words = word(input_ids) if inputs_embeds is None else inputs_embeds
        positions = embed(config.max_position_embeddings, "position")(jnp.arange(words.shape[1])[None, :])
        types = embed(config.type_vocab_size, "token_type")(token_type_ids)
        return _layer_norm(words + types + positions, config, "norm")


class SelfAttention(nn.Module):
    """Multi-head self-attention with output projection."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"], mask: Float[Array, "B 1 1 T"]) -> Float[Array, "B T d"]:
        """Attend; `mask` is added to the scores (0 to keep, very negative to hide)."""
        heads = self.config.num_attention_heads

        def project(name: str) -> Float[Array, "B T H e"]:
            projected = _dense(self.config.hidden_size, self.config, name)(x)
            return projected.reshape(*x.shape[:2], heads, -1)

        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum("bqhe,bkhe->bhqk", query, key) / jnp.sqrt(query.shape[-1]).astype(x.dtype)
        weights = jax.nn.softmax(scores + mask, axis=-1)
        mixed = jnp.einsum("bhqk,bkhe->bqhe", weights, value).reshape(x.shape)
        return _dense(self.config.hidden_size, self.config, "output")(mixed)


class MLP(nn.Module):
    """The MLP block of one layer: parameters in ``params``, its constants (q, r, masks) in ``constants``.

    Its input is sown as ``intermediates/block_input``.
    """

    layout: Any
    initializer_range: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        """Apply the block to every position."""
        self.sow("intermediates", "block_input", x)
        normal, zeros = nn.initializers.normal(self.initializer_range), nn.initializers.zeros_init()
        arrays: dict[str, Any] = {}
        for name, leaf in self.layout.parameters().items():
            init = zeros if name in ("b1", "b2") else normal
            arrays[name] = self.param(name, init, leaf.shape, leaf.dtype)
        for name, leaf in self.layout.constants().items():
            arrays[name] = self.variable("constants", name, jnp.ones, leaf.shape, leaf.dtype).value
        block: Block = self.layout.replace(**arrays)
        return block(x)


class Layer(nn.Module):
    """One encoder layer: attention and MLP block, each with a residual connection and a LayerNorm behind it."""

    config: BertConfig
    mlp_layout: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"], mask: Float[Array, "B 1 1 T"]) -> Float[Array, "B T d"]:
        """Hidden states of the next layer."""
        attended = SelfAttention(self.config, name="attention")(x, mask)
        x = _layer_norm(x + attended, self.config, "attention_norm")
        transformed = MLP(self.mlp_layout, self.config.initializer_range, name="mlp")(x)
        return _layer_norm(x + transformed, self.config, "mlp_norm")


class Bert(nn.Module):
    """The BERT encoder with optional pooler and sequence classification head."""

    config: BertConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B T"] | None,
        inputs_embeds: Float[Array, "B T d"] | None,
        attention_mask: Int[Array, "B T"],
        token_type_ids: Int[Array, "B T"],
    ) -> ModelOutput:
        """Run the network; exactly one of `input_ids` and `inputs_embeds` is given."""
        config = self.config
        x = Embeddings(config, name="embeddings")(input_ids, inputs_embeds, token_type_ids)
        hidden = jnp.finfo(x.dtype).min
        mask = jnp.where(attention_mask[:, None, None, :] > 0, jnp.zeros((), x.dtype), hidden)
        for index in range(config.num_hidden_layers):
            x = Layer(config, config.block_layout(index), name=f"layer_{index}")(x, mask)
        pooled = logits = None
        if config.add_pooler:
            pooled = jnp.tanh(_dense(config.hidden_size, config, "pooler")(x[:, 0]))
        if config.num_labels is not None and pooled is not None:
            logits = _dense(config.num_labels, config, "classifier")(pooled)
        return ModelOutput(last_hidden_state=x, pooler_output=pooled, logits=logits)
