"""Hugging Face ``config.json`` → frozen dataclass, with every value checked before anything is allocated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ntkfusion.errors import InputError
from ntkfusion.models.activations import get_activation
from ntkfusion.models.mlp import dense_layout

#: The largest value any size in a configuration may have: beyond it a file is damaged, not large.
LARGEST_SIZE = 2**24


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT encoder. Field names are those of Hugging Face's ``BertConfig``.

    Attributes:
        num_labels: outputs of the sequence classification head, or None for a bare encoder.
        add_pooler: whether the encoder has a pooler (dense + tanh on the first token).
        mlp_layouts: one `layout` per layer; empty for dense blocks of `intermediate_size` everywhere. Compressed models
            have layers of different shapes.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    num_labels: int | None = None
    add_pooler: bool = True
    mlp_layouts: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        _check_values(vars(self))
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"config: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        get_activation(self.hidden_act)
        if self.mlp_layouts and len(self.mlp_layouts) != self.num_hidden_layers:
            raise InputError(f"config: {len(self.mlp_layouts)} block layouts for {self.num_hidden_layers} layers")

    def block_layout(self, layer: int) -> Any:
        """The layout of layer `layer`'s MLP block."""
        if self.mlp_layouts:
            return self.mlp_layouts[layer]
        return dense_layout(self.hidden_size, self.intermediate_size, activation=self.hidden_act)


def _check_values(values: Mapping[str, Any]) -> None:
    """Check every given value by itself, before anything is computed with it."""
    for field in dataclasses.fields(BertConfig):
        value = values.get(field.name, field.default)
        if field.type == "int":
            _check_size(field.name, value)
        elif field.type == "float" and not (isinstance(value, (int, float)) and 0 <= value < 1e3):
            raise InputError(f"config: {field.name} must be a small non-negative number, got {value!r}")
        elif field.type == "str" and not isinstance(value, str):
            raise InputError(f"config: {field.name} must be a string, got {value!r}")


def _check_size(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST_SIZE:
        raise InputError(f"config: {name} must be a whole number from 1 to {LARGEST_SIZE}, got {value!r}")


def bert_config(config: Mapping[str, Any]) -> BertConfig:
    """The `BertConfig` of a Hugging Face configuration dictionary.

    Args:
        config: the contents of ``config.json``. Keys that do not change the computed function are ignored.

    Returns:
        The configuration; without a classification head (the loader adds one if the file holds its weights).

    Raises:
        InputError: for another architecture, a missing key, a value out of range, or a variant that is not BERT's
            (relative position embeddings, decoder, remote code).
    """
    if "auto_map" in config:
        raise InputError("config: 'auto_map' asks to run code from the checkpoint, which is never done")
    if config.get("model_type") != "bert":
        raise InputError(f"config: model_type {config.get('model_type')!r} is not supported; supported: 'bert'")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"config: position_embedding_type {config['position_embedding_type']!r} is not supported")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise InputError("config: BERT as a decoder is not supported")
    required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    missing = [name for name in required if name not in config]
    if missing:
        raise InputError(f"config: missing {', '.join(missing)}")
    own = {"num_labels", "add_pooler", "mlp_layouts"}
    names = {field.name for field in dataclasses.fields(BertConfig)} - own
    values = {name: config[name] for name in names if name in config}
    _check_values(values)
    return BertConfig(**values)
