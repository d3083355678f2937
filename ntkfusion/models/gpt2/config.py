"""The configuration of GPT-2."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ntkfusion.errors import InputError
from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.dense import MLPBlock, dense_layout
from ntkfusion.models.config import (
    LARGEST_SIZE,
    Head,
    JsonObject,
    ModelConfig,
    field_of,
    flag,
    known_values,
    number,
    size,
    text,
    with_real_names,
)

#: Second names that transformers knows for keys of ``config.json``.
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def _check_pad_token(name: str, value: object, values: JsonObject) -> None:
    """Padding may be outside the vocabulary (−1 in some checkpoints), which is no token at all."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > LARGEST_SIZE:
        raise InputError(f"config: {name} must be a token id or null, got {value!r}")


@dataclasses.dataclass(frozen=True)
class GPT2Config(ModelConfig):
    """The shape of a GPT-2 decoder. Field names are those of Hugging Face's ``GPT2Config``, but for `hidden_size`.

    Attributes:
        hidden_size: ``n_embd`` in ``config.json``.
        n_inner: hidden width of the original MLP blocks; None for four times the model width.
        scale_attn_weights: whether attention scores are divided by the square root of a head's width.
        scale_attn_by_inverse_layer_idx: whether those of layer i are also divided by i + 1.
        pad_token_id: the token that fills short inputs; a sequence classification does not read it.
    """

    vocab_size: int = size(50257)
    n_positions: int = size(1024)
    n_layer: int = size(12)
    n_head: int = size(12)
    n_inner: int | None = size(None)
    activation_function: str = text("gelu_new")
    layer_norm_epsilon: float = number(1e-5)
    embd_pdrop: float = number(0.1)
    resid_pdrop: float = number(0.1)
    attn_pdrop: float = number(0.1)
    classifier_dropout: float | None = number(None)
    scale_attn_weights: bool = flag(True)
    scale_attn_by_inverse_layer_idx: bool = flag(False)
    pad_token_id: int | None = field_of(None, _check_pad_token)

    HEADS: ClassVar[tuple[Head, ...]] = (
        "causal-lm",
        "sequence-classification",
        "token-classification",
        "question-answering",
    )
    WIDTH_FIELD: ClassVar[str] = "n_inner"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.n_head:
            raise InputError(f"config: n_embd {self.hidden_size} is not a multiple of n_head {self.n_head}")
        get_activation(self.activation_function)

    @property
    def architecture(self) -> str:
        """``GPT-2``."""
        return "GPT-2"

    @property
    def model_type(self) -> str:
        """``gpt2``."""
        return "gpt2"

    @property
    def num_layers(self) -> int:
        """How many layers data passes through."""
        return self.n_layer

    @property
    def max_length(self) -> int:
        """The number of positions."""
        return self.n_positions

    @property
    def block_paths(self) -> tuple[str, ...]:
        """``layer_0/mlp`` and so on."""
        return tuple(f"layer_{index}/mlp" for index in range(self.n_layer))

    @property
    def table_sizes(self) -> Mapping[str, int]:
        """Words, which segments are too, and positions."""
        return {**super().table_sizes, "token_type_ids": self.vocab_size, "position_ids": self.n_positions}

    @property
    def is_causal(self) -> bool:
        """It is a decoder."""
        return True

    @property
    def readout_token(self) -> Literal["first", "last"]:
        """The last: no other token sees the whole input."""
        return "last"

    def original_layout(self, index: int) -> MLPBlock:
        """A dense block of `n_inner` neurons with biases."""
        neurons = 4 * self.hidden_size if self.n_inner is None else self.n_inner
        return dense_layout(self.hidden_size, neurons, activation=self.activation_function)


def gpt2_config(config: JsonObject) -> GPT2Config:
    """The `GPT2Config` of a Hugging Face configuration dictionary.

    Args:
        config: the contents of ``config.json``. Keys that do not change the computed function are ignored.

    Returns:
        The configuration; without a head (the loader adds one if the file holds its weights).

    Raises:
        InputError: for a missing key, a value out of range, or a variant that is not supported (cross-attention).
    """
    for key in ("add_cross_attention", "is_encoder_decoder"):
        if config.get(key):
            raise InputError(f"config: {key} is not supported: GPT-2 reads one input")
    config = with_real_names(config, ALIASES)
    renamed = {**config, "hidden_size": config.get("n_embd")}
    # transformers falls back to this key too
    renamed["classifier_dropout"] = config.get("classifier_dropout", config.get("hidden_dropout"))
    try:
        return GPT2Config(**known_values(GPT2Config, renamed, ("vocab_size", "n_embd", "n_layer", "n_head")))
    except InputError as error:
        raise InputError(str(error).replace("hidden_size", "n_embd")) from error


def gpt2_hf_config(config: GPT2Config) -> dict[str, Any]:
    """What Hugging Face's ``config.json`` says of a configuration, without ``architectures``.

    Args:
        config: the configuration; its `mlp_layouts` are not looked at.

    Returns:
        Key → value; `gpt2_config` reads it back, but for the head.
    """
    names = {field.name for field in dataclasses.fields(config)} - {*config.NOT_IN_FILE}
    values = {name: getattr(config, name) for name in sorted(names - {"hidden_size"})}
    if config.classifier_dropout is None:
        del values["classifier_dropout"]
    if config.num_labels is not None:
        values["num_labels"] = config.num_labels
    return {"model_type": config.model_type, "n_embd": config.hidden_size, **values}
