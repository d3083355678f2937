"""GPT-2 (Radford et al. 2019) as small linen modules: embeddings, pre-norm decoder, final norm, heads.

Dropout is where PyTorch's class has it, and does nothing unless a module is called with ``deterministic=False``.
Shapes: B batch, T positions, S positions that can be attended to, d model width, H heads, e width of a head.

With a collection ``cache`` (`empty_cache`) a call continues where the one before stopped: T new tokens attend to what
is stored, and are stored themselves.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from ntkfusion.models.batch import Batch, ModelOutput
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.layers.dropout import Dropout
from ntkfusion.models.layers.mlp import MLP, by_position
from ntkfusion.utils.parameter_paths import Params

#: Dropout in front of a token classification, where the configuration has none: PyTorch's class does the same.
_CLASSIFIER_DROPOUT = 0.1


def _dense(features: int, config: GPT2Config, name: str, *, bias: bool = True) -> nn.Dense:
    init = nn.initializers.normal(config.initializer_range)
    return nn.Dense(features, use_bias=bias, kernel_init=init, name=name)


def _layer_norm(x: Float[Array, "B T d"], config: GPT2Config, name: str) -> Float[Array, "B T d"]:
    # E[x²] − E[x]² would cost digits that parity with PyTorch needs; the other two keep float64 what it is
    normalise = nn.LayerNorm(
        epsilon=config.layer_norm_epsilon,
        use_fast_variance=False,
        force_float32_reductions=False,
        param_dtype=x.dtype,
        name=name,
    )
    return normalise(x)


class GPT2Embeddings(nn.Module):
    """Word and position embeddings, summed; the former are also the output layer of a language model."""

    config: GPT2Config

    def setup(self) -> None:
        """Both tables."""
        init = nn.initializers.normal(self.config.initializer_range)
        self.word = nn.Embed(self.config.vocab_size, self.config.hidden_size, embedding_init=init)
        self.position = nn.Embed(self.config.n_positions, self.config.hidden_size, embedding_init=init)

    def __call__(self, batch: Batch) -> Float[Array, "B T d"]:
        """Embed token ids, or take word embeddings as they are; token types, if given, are words too."""
        words = self.word(batch.input_ids) if batch.inputs_embeds is None else batch.inputs_embeds
        positions = jnp.arange(batch.shape[1])[None, :] if batch.position_ids is None else batch.position_ids
        embedded = words + self.position(positions)
        return embedded if batch.token_type_ids is None else embedded + self.word(batch.token_type_ids)

    def logits(self, x: Float[Array, "B T d"]) -> Float[Array, "B T V"]:
        """The inner product with every word."""
        return self.word.attend(x)


class GPT2Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values are one projection, as in the checkpoints."""

    config: GPT2Config
    scale: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T d"],
        visible: Bool[Array, "B 1 T S"],
        start: Int[Array, ""],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B T d"]:
        """Attend to the visible positions; `start` is the place of the first of these tokens in the cache."""
        parts = jnp.split(by_position(_dense(3 * self.config.hidden_size, self.config, "qkv"), x), 3, axis=-1)
        query, key, value = (part.reshape(*x.shape[:2], self.config.n_head, -1) for part in parts)
        key, value = self._stored("key", key, start), self._stored("value", value, start)
        scores = jnp.einsum("bqhe,bkhe->bhqk", query, key) * jnp.asarray(self.scale, x.dtype)
        weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(x.dtype).min), axis=-1)
        weights = Dropout(self.config.attn_pdrop)(weights, deterministic=deterministic)
        mixed = jnp.einsum("bhqk,bkhe->bqhe", weights, value).reshape(x.shape)
        return by_position(_dense(self.config.hidden_size, self.config, "output"), mixed)

    def _stored(self, name: str, new: Float[Array, "B T H e"], start: Int[Array, ""]) -> Float[Array, "B S H e"]:
        """The cache with `new` in its place; without a cache, `new` is all there is."""
        if not self.has_variable("cache", name):
            return new
        whole = lax.dynamic_update_slice_in_dim(self.get_variable("cache", name), new, start, axis=1)
        self.put_variable("cache", name, whole)
        return whole


class GPT2Layer(nn.Module):
    """One decoder layer: attention and MLP block, each behind a LayerNorm and inside a residual connection."""

    config: GPT2Config
    index: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T d"],
        visible: Bool[Array, "B 1 T S"],
        start: Int[Array, ""],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B T d"]:
        """Hidden states of the next layer."""
        config = self.config
        drop = partial(Dropout(config.resid_pdrop), deterministic=deterministic)
        attention = GPT2Attention(config, _attention_scale(config, self.index), name="attention")
        normalised = _layer_norm(x, config, "attention_norm")
        x = x + drop(attention(normalised, visible, start, deterministic=deterministic))
        block = MLP(config.block_layout(self.index), config.initializer_range, name="mlp")
        return x + drop(block(_layer_norm(x, config, "mlp_norm")))


def _attention_scale(config: GPT2Config, layer: int) -> float:
    scale = (config.hidden_size // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


class GPT2(nn.Module):
    """The GPT-2 decoder with an optional head."""

    config: GPT2Config

    @nn.compact
    def __call__(self, batch: Batch, *, deterministic: bool = True, last_only: bool = False) -> ModelOutput:
        """Run the network; with `last_only` a language model's logits are those of the last position alone."""
        config = self.config
        embeddings = GPT2Embeddings(config, name="embeddings")
        x = Dropout(config.embd_pdrop)(embeddings(batch), deterministic=deterministic)
        visible, start = self._visible(batch.attention_mask)
        for index in range(config.n_layer):
            x = GPT2Layer(config, index, name=f"layer_{index}")(x, visible, start, deterministic=deterministic)
        x = _layer_norm(x, config, "norm")
        read = x[:, -1:] if last_only else x
        match config.head:
            case None:
                logits = None
            case "causal-lm" if config.tie_word_embeddings:
                logits = embeddings.logits(read)
            case "causal-lm":
                logits = _dense(config.vocab_size, config, "lm_head", bias=False)(read)
            case "sequence-classification":
                last = last_token(batch, config.pad_token_id)
                read = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
                logits = _dense(config.num_labels or 0, config, "score", bias=False)(read)
            case "question-answering":
                logits = _dense(2, config, "qa_outputs")(x)
            case _:
                rate = _CLASSIFIER_DROPOUT if config.classifier_dropout is None else config.classifier_dropout
                read = Dropout(rate)(x, deterministic=deterministic)
                logits = _dense(config.num_labels or 0, config, "classifier")(read)
        return ModelOutput(last_hidden_state=x, logits=logits)

    def _visible(self, mask: Int[Array, "B T"]) -> tuple[Bool[Array, "B 1 T S"], Int[Array, ""]]:
        """Which positions each token may attend to (tokens up to itself), and the place of the first new token."""
        start, length = jnp.zeros((), jnp.int32), mask.shape[1]
        if self.has_variable("cache", "length"):
            start = self.get_variable("cache", "length")
            stored = self.get_variable("cache", "mask")
            mask = lax.dynamic_update_slice_in_dim(stored, mask.astype(stored.dtype), start, axis=1)
            self.put_variable("cache", "mask", mask)
            self.put_variable("cache", "length", start + length)
        keys, queries = (jnp.arange(count, dtype=jnp.int32) for count in (mask.shape[1], length))
        causal = keys[None, :] <= (start + queries)[:, None]
        return (mask[:, None, None, :] > 0) & causal[None, None], start


def last_token(batch: Batch, pad: int | None) -> Int[Array, " B"]:
    """Where the last token is that is no padding, by the mask and by its id; 0 if there is none.

    For padding on either side this is what PyTorch's class reads, which looks at the ids alone.
    """
    token = batch.attention_mask > 0
    if pad is not None and batch.input_ids is not None:
        token &= batch.input_ids != pad
    return jnp.argmax(jnp.where(token, jnp.arange(batch.shape[1])[None, :], 0), axis=1)


def empty_cache(config: GPT2Config, batch_size: int, capacity: int, dtype: DTypeLike) -> Params:
    """The collection ``cache`` before the first token.

    Args:
        config: of the model.
        batch_size: rows.
        capacity: how many positions there will be at most.
        dtype: of the model's parameters.

    Returns:
        Keys and values of every layer, which positions are tokens, and how many positions are filled.
    """
    shape = (batch_size, capacity, config.n_head, config.hidden_size // config.n_head)
    cache: Params = {
        f"layer_{index}": {"attention": {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}}
        for index in range(config.n_layer)
    }
    return cache | {"mask": jnp.zeros((batch_size, capacity), jnp.int32), "length": jnp.zeros((), jnp.int32)}
