"""The configuration of BERT."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import flax.linen as nn

from ntkfusion.errors import InputError
from ntkfusion.models.activations import get_activation
from ntkfusion.models.config import Head, ModelConfig, known_values
from ntkfusion.models.mlp import dense_layout


@dataclasses.dataclass(frozen=True)
class BertConfig(ModelConfig):
    """The shape of a BERT encoder. Field names are those of Hugging Face's ``BertConfig``.

    Attributes:
        add_pooler: whether the encoder has a pooler (dense + tanh on the first token).
    """

    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    add_pooler: bool = True

    HEADS: ClassVar[tuple[Head, ...]] = ("sequence-classification",)
    OWN_FIELDS: ClassVar[tuple[str, ...]] = (*ModelConfig.OWN_FIELDS, "add_pooler")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"config: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        get_activation(self.hidden_act)

    @property
    def architecture(self) -> str:
        """``BERT``."""
        return "BERT"

    @property
    def model_type(self) -> str:
        """``bert``."""
        return "bert"

    @property
    def num_layers(self) -> int:
        """How many layers data passes through."""
        return self.num_hidden_layers

    @property
    def max_length(self) -> int:
        """The number of positions."""
        return self.max_position_embeddings

    @property
    def block_paths(self) -> tuple[str, ...]:
        """``layer_0/mlp`` and so on."""
        return tuple(f"layer_{index}/mlp" for index in range(self.num_hidden_layers))

    def with_parts(self, paths: Collection[str]) -> BertConfig:
        """With a pooler if there is one."""
        return dataclasses.replace(self, add_pooler=any(path.startswith("pooler/") for path in paths))

    def may_have(self, head: Head, paths: Collection[str]) -> bool:
        """A classifier without a pooler reads every token: it is no sequence classification."""
        return head != "sequence-classification" or any(path.startswith("pooler/") for path in paths)

    def original_layout(self, index: int) -> Any:
        """A dense block of `intermediate_size` neurons with biases."""
        return dense_layout(self.hidden_size, self.intermediate_size, activation=self.hidden_act)

    def build(self) -> nn.Module:
        """The linen module."""
        from ntkfusion.models.bert import Bert  # that module imports this one

        return Bert(self)


def bert_config(config: Mapping[str, Any]) -> BertConfig:
    """The `BertConfig` of a Hugging Face configuration dictionary.

    Args:
        config: the contents of ``config.json``. Keys that do not change the computed function are ignored.

    Returns:
        The configuration; without a head (the loader adds one if the file holds its weights).

    Raises:
        InputError: for a missing key, a value out of range, or a variant that is not BERT's (relative position
            embeddings, decoder).
    """
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"config: position_embedding_type {config['position_embedding_type']!r} is not supported")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise InputError("config: BERT as a decoder is not supported")
    required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return BertConfig(**known_values(BertConfig, config, required))
