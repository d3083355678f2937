"""The configuration of the Switch Transformer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from ntkfusion.errors import InputError
from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.dense import MLPBlock, dense_layout
from ntkfusion.models.blocks.mixture import MixtureBlock, mixture_layout
from ntkfusion.models.config import (
    LARGEST_SIZE,
    Head,
    JsonObject,
    ModelConfig,
    check_whole,
    index,
    known_values,
    number,
    size,
    text,
    token_id,
    with_real_names,
)

#: The two stacks of layers.
Side: TypeAlias = Literal["encoder", "decoder"]

#: Our fields that have another name in ``config.json``.
_NAMES = {"hidden_size": "d_model", "num_encoder_layers": "num_layers"}

#: Second names that transformers knows for keys of ``config.json``.
ALIASES = {"hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}

_REQUIRED = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "num_experts", "expert_capacity")


@dataclasses.dataclass(frozen=True)
class SwitchConfig(ModelConfig):
    """The shape of a Switch Transformer. Field names are those of Hugging Face's, but for the two with an arrow.

    Attributes:
        hidden_size: d ← ``d_model``.
        d_kv: size of a head's queries, keys and values; heads × d_kv may differ from d.
        d_ff: m, the hidden width of a dense MLP block and of every expert.
        num_encoder_layers: layers of the encoder ← ``num_layers``.
        num_decoder_layers: layers of the decoder.
        encoder_sparse_step: layer i of the encoder is sparse if i mod step = 1, or step = 1; none is if step = 0.
        decoder_sparse_step: the same for the decoder.
        expert_capacity: how many tokens of one sequence an expert takes; later ones are dropped.
        decoder_start_token_id: what a decoder reads first; None if the checkpoint has no such token.
        tie_word_embeddings: whether encoder, decoder and output layer share one table of words. If not, each has its
            own, as in transformers, whose ``shared`` table nothing reads then.
    """

    vocab_size: int = size(32128)
    d_kv: int = size(64)
    d_ff: int = size(2048)
    num_encoder_layers: int = size(12)
    num_decoder_layers: int = size(12)
    num_heads: int = size(12)
    num_experts: int = size(8)
    expert_capacity: int = size(64)
    encoder_sparse_step: int = index(4)
    decoder_sparse_step: int = index(4)
    relative_attention_num_buckets: int = size(32)
    relative_attention_max_distance: int = size(128)
    dropout_rate: float = number(0.1)
    classifier_dropout: float = number(0.0)
    layer_norm_epsilon: float = number(1e-6)
    dense_act_fn: str = text("relu")
    pad_token_id: int | None = token_id(0, optional=True)
    eos_token_id: int | None = token_id(1, optional=True)
    decoder_start_token_id: int | None = token_id(0, optional=True)

    HEADS: ClassVar[tuple[Head, ...]] = ("seq2seq-lm", "sequence-classification")
    WIDTH_FIELD: ClassVar[str] = "d_ff"

    def __post_init__(self) -> None:
        super().__post_init__()
        get_activation(self.dense_act_fn)
        if self.num_heads * self.d_kv > LARGEST_SIZE:
            raise InputError(f"config: num_heads × d_kv must be at most {LARGEST_SIZE}, got {self.inner_size}")
        if self.relative_attention_num_buckets < 4:
            raise InputError("config: relative_attention_num_buckets must be at least 4: two for each direction")
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise InputError(
                "config: relative_attention_max_distance must exceed half of relative_attention_num_buckets"
            )

    @property
    def architecture(self) -> str:
        """``Switch Transformer``."""
        return "Switch Transformer"

    @property
    def model_type(self) -> str:
        """``switch_transformers``."""
        return "switch_transformers"

    @property
    def num_layers(self) -> int:
        """Layers of encoder and decoder."""
        return self.num_encoder_layers + self.num_decoder_layers

    @property
    def inner_size(self) -> int:
        """The size of all heads together."""
        return self.num_heads * self.d_kv

    @property
    def max_length(self) -> None:
        """None: relative positions have no limit."""
        return None

    @property
    def table_sizes(self) -> Mapping[str, int]:
        """Words, of either side."""
        return {**super().table_sizes, "decoder_input_ids": self.vocab_size}

    @property
    def block_paths(self) -> tuple[str, ...]:
        """``encoder/layer_0/mlp`` and so on, then those of the decoder."""
        sides: tuple[Side, ...] = ("encoder", "decoder")
        return tuple(f"{side}/layer_{index}/mlp" for side in sides for index in range(self.depth(side)))

    def depth(self, side: Side) -> int:
        """How many layers the encoder or the decoder has."""
        return self.num_encoder_layers if side == "encoder" else self.num_decoder_layers

    def num_sparse(self, side: Side) -> int:
        """How many layers of the encoder or the decoder are sparse."""
        step, depth = self._step(side), self.depth(side)
        return 0 if step == 0 else depth if step == 1 else (depth - 2 + step) // step

    def is_sparse(self, index: int) -> bool:
        """Whether MLP block `index` is a mixture of experts before any compression."""
        side, place = (
            ("encoder", index) if index < self.num_encoder_layers else ("decoder", index - self.depth("encoder"))
        )
        step = self._step(side)
        return step > 0 and (step == 1 or place % step == 1)

    def _step(self, side: str) -> int:
        return self.encoder_sparse_step if side == "encoder" else self.decoder_sparse_step

    @property
    def fewest_tensors(self) -> int:
        """One per matrix of the attentions and dense blocks, per norm, and two per expert and router."""
        if self.mlp_layouts:
            return self.num_layers
        sparse = self.num_sparse("encoder") + self.num_sparse("decoder")
        return 8 * self.num_encoder_layers + 13 * self.num_decoder_layers + sparse * (2 * self.num_experts - 1)

    def original_layout(self, index: int) -> MLPBlock | MixtureBlock:
        """A dense block, or a mixture of `num_experts` experts, without biases."""
        one = dense_layout(self.hidden_size, self.d_ff, activation=self.dense_act_fn, biases=False)
        return mixture_layout(one, self.num_experts) if self.is_sparse(index) else one


def switch_config(config: JsonObject) -> SwitchConfig:
    """The `SwitchConfig` of a Hugging Face configuration dictionary.

    Args:
        config: the contents of ``config.json``. Keys that do not change the computed function are ignored.

    Returns:
        The configuration; without a head (the loader adds one if the file holds its weights).

    Raises:
        InputError: for a missing key, a value out of range, or a variant that is not supported (a router with biases or
            in half precision, gated MLP blocks, a decoder alone, several EOS tokens).
    """
    config = with_real_names(config, ALIASES)
    _refuse_variants(config)
    missing = [name for name in _REQUIRED if name not in config]
    if missing:
        raise InputError(f"config: missing {', '.join(missing)}")
    translated = {**config, **{ours: config[theirs] for ours, theirs in _NAMES.items()}}
    try:
        return SwitchConfig(**known_values(SwitchConfig, translated | _derived(config), ()))
    except InputError as error:
        raise InputError(_in_their_words(str(error))) from error


def _in_their_words(text: str) -> str:
    for ours, theirs in _NAMES.items():
        text = text.replace(f"config: {ours} ", f"config: {theirs} ")
    return text


def _refuse_variants(config: JsonObject) -> None:
    activation = config.get("dense_act_fn", "relu")
    projection = config.get("feed_forward_proj", activation)
    refused = {
        "router_bias": config.get("router_bias") not in (None, False),
        "router_dtype": config.get("router_dtype", "float32") != "float32",
        "is_encoder_decoder": not config.get("is_encoder_decoder", True),
        "is_gated_act": bool(config.get("is_gated_act")),
        "feed_forward_proj": projection != activation,
        "dense_act_fn": isinstance(activation, str) and activation.startswith("gated-"),
    }
    for name, wrong in refused.items():
        if wrong:
            raise InputError(f"config: {name} {config.get(name)!r} is not supported for Switch Transformers")


def _derived(config: JsonObject) -> dict[str, Any]:
    """Values that follow from others unless they are there, as transformers derives them."""
    layers = config["num_layers"]
    # null stands for as many as in the encoder, no such key for the default
    decoder_layers = config.get("num_decoder_layers", SwitchConfig.num_decoder_layers)
    decoder_layers = layers if decoder_layers is None else decoder_layers
    start = config.get("decoder_start_token_id")
    values = {
        "num_decoder_layers": decoder_layers,
        "encoder_sparse_step": _sparse_step(config, "encoder", layers),
        "decoder_sparse_step": _sparse_step(config, "decoder", decoder_layers),
        "decoder_start_token_id": config.get("pad_token_id", 0) if start is None else start,
    }
    eos = config.get("eos_token_id")
    return values | ({"eos_token_id": eos[0]} if isinstance(eos, list) and len(eos) == 1 else {})


def _sparse_step(config: JsonObject, side: Side, layers: Any) -> Any:
    """The step that is given, or the one that spreads so many sparse layers evenly."""
    given = f"{side}_sparse_step"
    if config.get(given) is not None:
        return config[given]
    name = f"num_sparse_{side}_layers"
    sparse = config.get(name, 3)
    check_whole(name, sparse, 0)
    if not isinstance(layers, int) or sparse == 0:
        return layers
    return layers // sparse


def switch_hf_config(config: SwitchConfig) -> dict[str, Any]:
    """The contents of a ``config.json`` that transformers reads as this configuration.

    Args:
        config: the configuration; layouts of compressed blocks have no place in such a file and are left out.

    Returns:
        Key → value, without ``architectures``.
    """
    left_out = {*SwitchConfig.NOT_IN_FILE, "initializer_range"}
    fields = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in left_out
    }
    contents = {_NAMES.get(name, name): value for name, value in fields.items()}
    return contents | {
        "model_type": config.model_type,
        "is_encoder_decoder": True,
        # the steps say everything; beside them these are for people
        "num_sparse_encoder_layers": config.num_sparse("encoder"),
        "num_sparse_decoder_layers": config.num_sparse("decoder"),
        "router_bias": False,
        "router_dtype": "float32",
    }
