"""The Switch Transformer (Fedus et al. 2021): T5's encoder and decoder with mixtures of experts for MLP blocks.

First what its modules read (buckets of relative positions, the decoder's tokens, masks), then the modules. Layers are
pre-norm, without biases; RMS norms; scores are not scaled, and have a bias by relative position that all layers of a
stack share. With ``deterministic=False`` dropout is where PyTorch's class has it, with one exception: not on the hidden
units of MLP blocks, which are functions of their own here. The router never has jitter. Shapes: B batch, T positions of
the encoder, U of the decoder, q and k of either, H heads.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.batch import Batch, ModelOutput
from ntkfusion.models.blocks.block import Layout
from ntkfusion.models.layers.dropout import Dropout
from ntkfusion.models.layers.mlp import Routed, RoutedMLP, by_position
from ntkfusion.models.switch.config import Side, SwitchConfig


def buckets(
    queries: int, keys: int, *, both_directions: bool, num_buckets: int, max_distance: int
) -> Int[np.ndarray, "q k"]:
    """The bucket of every pair of positions (Raffel et al. 2020, T5): near ones exactly, far ones by the logarithm.

    With n buckets for a direction and e = ⌊n/2⌋, distance t < e has bucket t, and a larger one
    ``e + ⌊ln(t/e) / ln(max_distance/e) · (n − e)⌋``, at most n − 1.

    Args:
        queries: number of positions that attend.
        keys: number of positions that are attended to.
        both_directions: whether half of the buckets are for keys behind the query (an encoder); otherwise those share
            bucket 0 with the query's own position.
        num_buckets: how many there are in all.
        max_distance: from this distance on, everything is in the last bucket.

    Returns:
        Whole numbers from 0 to `num_buckets` − 1.

    >>> buckets(1, 4, both_directions=True, num_buckets=8, max_distance=4)
    array([[0, 5, 6, 7]])
    """
    ahead = np.arange(keys)[None, :] - np.arange(queries)[:, None]
    per_direction = num_buckets // 2 if both_directions else num_buckets
    first = per_direction * (ahead > 0) if both_directions else np.zeros_like(ahead)
    distance = np.abs(ahead) if both_directions else np.maximum(-ahead, 0)
    exact = per_direction // 2
    # float32, as the models were trained: a rounding more or less moves a distance to another bucket
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    steps = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(per_direction - exact)
    far = np.minimum(exact + steps.astype(np.int64), per_direction - 1)
    return first + np.where(distance < exact, distance, far)


def decoder_tokens(batch: Batch, start: int | None) -> tuple[Int[Array, "B U"], Int[Array, "B U"]]:
    """Ids that the decoder reads, and 1 where they are tokens.

    By default they are the encoder's, shifted to the right behind the start token, which drops the last one. The mask
    is shifted with them and begins with 1: padding stays hidden, the start token is seen.

    Raises:
        InputError: if there is nothing to shift.
    """
    ids, mask = batch.decoder_input_ids, batch.decoder_attention_mask
    if ids is not None:
        return ids, jnp.ones(ids.shape, jnp.int32) if mask is None else mask
    if batch.input_ids is None:
        raise InputError("give decoder_input_ids with inputs_embeds: there are no input_ids to take them from")
    if start is None:
        raise InputError("give decoder_input_ids: config.json has neither decoder_start_token_id nor pad_token_id")
    shifted = _shifted(batch.input_ids, start)
    return shifted, _shifted(batch.attention_mask, 1) if mask is None else mask


def _shifted(values: Int[Array, "B T"], first: int) -> Int[Array, "B T"]:
    start = jnp.full((values.shape[0], 1), first, values.dtype)
    return jnp.concatenate([start, values[:, :-1]], axis=1)


def hiding(tokens: Int[Array, "B k"], dtype: jnp.dtype, *, causal: bool = False) -> Float[Array, "B 1 #k k"]:
    """What is added to scores: 0 at tokens, very negative elsewhere and, if causal, at later positions."""
    seen = tokens[:, None, None, :] > 0
    if causal:
        length = tokens.shape[1]
        seen = seen & jnp.tril(jnp.ones((1, 1, length, length), bool))
    return jnp.where(seen, jnp.zeros((), dtype), jnp.finfo(dtype).min)


def last_eos(ids: Int[Array, "B T"], mask: Int[Array, "B T"], eos: int | None) -> Int[Array, " B"]:
    """The position of the last EOS token of every sequence; of the last token where there is none."""
    places = jnp.broadcast_to(jnp.arange(ids.shape[1])[None, :], ids.shape)
    last_token = jnp.max(jnp.where(mask > 0, places, 0), axis=1)
    if eos is None:
        return last_token
    found = jnp.max(jnp.where((ids == eos) & (mask > 0), places, -1), axis=1)
    return jnp.where(found >= 0, found, last_token)


def _dense(features: int, config: SwitchConfig, name: str, *, use_bias: bool = False) -> nn.Dense:
    init = nn.initializers.normal(config.initializer_range)
    return nn.Dense(features, use_bias=use_bias, kernel_init=init, name=name)


def _norm(x: Float[Array, "B q d"], config: SwitchConfig, name: str) -> Float[Array, "B q d"]:
    # float64 stays what it is: reductions are not forced to float32
    normalise = nn.RMSNorm(
        epsilon=config.layer_norm_epsilon, force_float32_reductions=False, param_dtype=x.dtype, name=name
    )
    return normalise(x)


class SwitchTable(nn.Module):
    """One row per word, position bucket, ..."""

    rows: int
    columns: int
    initializer_range: float

    @nn.compact
    def __call__(self) -> Float[Array, "V d"]:
        """The whole table."""
        init = nn.initializers.normal(self.initializer_range)
        return self.param("embedding", init, (self.rows, self.columns), jnp.float32)


class SwitchEmbeddings(nn.Module):
    """The word embeddings: one table for all who read it, or one for each."""

    config: SwitchConfig

    @nn.compact
    def __call__(self) -> dict[Side, Float[Array, "V d"]]:
        """The tables of encoder and decoder."""

        def table(name: str) -> Float[Array, "V d"]:
            config = self.config
            return SwitchTable(config.vocab_size, config.hidden_size, config.initializer_range, name=name)()

        word = table("word")
        if self.config.tie_word_embeddings:
            return {"encoder": word, "decoder": word}
        return {"encoder": table("encoder"), "decoder": table("decoder")}


class SwitchAttention(nn.Module):
    """Multi-head attention with output projection; no biases, no scaling of the scores."""

    config: SwitchConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B q d"],
        source: Float[Array, "B k d"],
        bias: Float[Array, "#B #H #q k"],
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B q d"]:
        """Attend from `x` to `source`; `bias` is added to the scores (very negative to hide)."""

        def project(values: Float[Array, "B p d"], name: str) -> Float[Array, "B p H e"]:
            projected = by_position(_dense(self.config.inner_size, self.config, name), values)
            return projected.reshape(*values.shape[:2], self.config.num_heads, self.config.d_kv)

        query, key, value = project(x, "query"), project(source, "key"), project(source, "value")
        weights = jax.nn.softmax(jnp.einsum("bqhe,bkhe->bhqk", query, key) + bias, axis=-1)
        weights = Dropout(self.config.dropout_rate)(weights, deterministic=deterministic)
        mixed = jnp.einsum("bhqk,bkhe->bqhe", weights, value).reshape(*x.shape[:2], self.config.inner_size)
        return by_position(_dense(self.config.hidden_size, self.config, "output"), mixed)


class SwitchLayer(nn.Module):
    """Self-attention, in a decoder attention to the encoder, and MLP block: each behind a norm, beside a residual."""

    config: SwitchConfig
    mlp_layout: Layout

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B q d"],
        bias: Float[Array, "B H q q"],
        source: Float[Array, "B k d"] | None,
        source_mask: Float[Array, "B 1 1 k"] | None,
        *,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B q d"], Routed | None]:
        """Hidden states of the next layer, and what the router did if there is one."""
        config = self.config

        def dropped(values: Float[Array, "B q d"]) -> Float[Array, "B q d"]:
            return Dropout(config.dropout_rate)(values, deterministic=deterministic)

        read = _norm(x, config, "attention_norm")
        x = x + dropped(SwitchAttention(config, name="attention")(read, read, bias, deterministic=deterministic))
        if source is not None and source_mask is not None:
            attend = SwitchAttention(config, name="cross_attention")
            read = _norm(x, config, "cross_attention_norm")
            x = x + dropped(attend(read, source, source_mask, deterministic=deterministic))
        block = RoutedMLP(self.mlp_layout, config.initializer_range, config.expert_capacity, name="mlp")
        transformed, routed = block(_norm(x, config, "mlp_norm"))
        return x + dropped(transformed), routed


class SwitchStack(nn.Module):
    """The encoder or the decoder."""

    config: SwitchConfig
    side: Side

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B q d"],
        mask: Float[Array, "B 1 #q q"],
        source: Float[Array, "B k d"] | None = None,
        source_mask: Float[Array, "B 1 1 k"] | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B q d"], tuple[Routed, ...]]:
        """Hidden states behind the last norm, and what the routers did."""
        config = self.config
        drop = Dropout(config.dropout_rate)
        bias = self._position_bias(x.shape[1]) + mask
        x = drop(x, deterministic=deterministic)
        before = 0 if self.side == "encoder" else config.num_encoder_layers
        by_layer = []
        for index in range(config.depth(self.side)):
            layer = SwitchLayer(config, config.block_layout(before + index), name=f"layer_{index}")
            x, routed = layer(x, bias, source, source_mask, deterministic=deterministic)
            by_layer.append(routed)
        x = drop(_norm(x, config, "norm"), deterministic=deterministic)
        return x, tuple(routed for routed in by_layer if routed is not None)

    def _position_bias(self, length: int) -> Float[Array, "1 H q q"]:
        config = self.config
        rows = config.relative_attention_num_buckets
        table = SwitchTable(rows, config.num_heads, config.initializer_range, name="position_bias")()
        where = buckets(
            length,
            length,
            both_directions=self.side == "encoder",
            num_buckets=rows,
            max_distance=config.relative_attention_max_distance,
        )
        return jnp.moveaxis(table[where], -1, 0)[None]


class ClassificationHead(nn.Module):
    """Dense + tanh, then one logit per label, of one state (T5's head)."""

    config: SwitchConfig

    @nn.compact
    def __call__(self, state: Float[Array, "B d"], *, deterministic: bool = True) -> Float[Array, "B C"]:
        """The logits."""
        config = self.config
        drop = Dropout(config.classifier_dropout)
        hidden = _dense(config.hidden_size, config, "dense", use_bias=True)(drop(state, deterministic=deterministic))
        read = drop(jnp.tanh(hidden), deterministic=deterministic)
        return _dense(config.num_labels or 1, config, "out_proj", use_bias=True)(read)


class SwitchTransformer(nn.Module):
    """Encoder and decoder with an optional head."""

    config: SwitchConfig

    @nn.compact
    def __call__(self, batch: Batch, *, deterministic: bool = True) -> ModelOutput:
        """Run the network."""
        config = self.config
        tables = SwitchEmbeddings(config, name="embeddings")()
        words = tables["encoder"][batch.input_ids] if batch.inputs_embeds is None else batch.inputs_embeds
        mask = hiding(batch.attention_mask, words.dtype)
        encoder = SwitchStack(config, "encoder", name="encoder")
        states, routed = encoder(words, mask, deterministic=deterministic)
        ids, tokens = decoder_tokens(batch, config.decoder_start_token_id)
        decoder = SwitchStack(config, "decoder", name="decoder")
        x, more = decoder(
            tables["decoder"][ids],
            hiding(tokens, words.dtype, causal=True),
            states,
            mask,
            deterministic=deterministic,
        )
        routed += more
        return ModelOutput(
            last_hidden_state=x,
            encoder_last_hidden_state=states,
            logits=self._logits(x, tables["decoder"], batch, deterministic=deterministic),
            router_logits=tuple(one.logits for one in routed),
            dropped_tokens=tuple(one.dropped for one in routed),
        )

    def _logits(
        self, x: Float[Array, "B U d"], table: Float[Array, "V d"], batch: Batch, *, deterministic: bool
    ) -> Float[Array, "B *out"] | None:
        config = self.config
        if config.head == "seq2seq-lm":
            if config.tie_word_embeddings:
                return (x * config.hidden_size**-0.5) @ table.T
            return _dense(config.vocab_size, config, "lm_head")(x)
        if config.head != "sequence-classification":
            return None
        if batch.input_ids is None or x.shape[1] != batch.shape[1]:
            raise InputError(
                "sequence classification reads the decoder at the last EOS token of input_ids: give input_ids, and as "
                "many decoder_input_ids (or none)"
            )
        place = last_eos(batch.input_ids, batch.attention_mask, config.eos_token_id)
        state = jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]
        return ClassificationHead(config, name="classification_head")(state, deterministic=deterministic)
