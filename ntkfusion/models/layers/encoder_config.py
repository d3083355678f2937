"""What the configurations of BERT, RoBERTa and ALBERT have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from ntkfusion.errors import InputError
from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.dense import MLPBlock, dense_layout
from ntkfusion.models.config import WITH_LABELS, Head, JsonObject, ModelConfig, flag, index, number, size, text

#: Keys that must be in ``config.json``.
REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclasses.dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """The shape of a post-norm encoder. Field names are those of Hugging Face's configurations.

    Attributes:
        pad_token_id: the token that fills short inputs; its word embedding is not trained.
        add_pooler: whether the encoder has a pooler (dense + tanh on the first token). With a head, it has one if and
            only if the head reads it.
    """

    num_hidden_layers: int = size(12)
    num_attention_heads: int = size(12)
    intermediate_size: int = size(3072)
    hidden_act: str = text("gelu")
    max_position_embeddings: int = size(512)
    type_vocab_size: int = size(2)
    layer_norm_eps: float = number(1e-12)
    hidden_dropout_prob: float = number(0.1)
    attention_probs_dropout_prob: float = number(0.1)
    pad_token_id: int | None = index(0, optional=True)
    add_pooler: bool = flag(True)

    HEADS: ClassVar[tuple[Head, ...]] = (
        "sequence-classification",
        "token-classification",
        "question-answering",
        "masked-lm",
    )
    #: Heads that read the pooler.
    POOLED_HEADS: ClassVar[tuple[Head, ...]] = ("sequence-classification",)
    NOT_IN_FILE: ClassVar[tuple[str, ...]] = (*ModelConfig.NOT_IN_FILE, "add_pooler")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"config: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        get_activation(self.hidden_act)
        if self.head is not None:
            object.__setattr__(self, "add_pooler", self.head in self.POOLED_HEADS)

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

    @property
    def table_sizes(self) -> Mapping[str, int]:
        """Words, segments and positions."""
        sizes = {"token_type_ids": self.type_vocab_size, "position_ids": self.max_position_embeddings}
        return {**super().table_sizes, **sizes}

    @property
    def embedding_width(self) -> int:
        """The width of the embeddings."""
        return self.hidden_size

    @property
    def unplaced_token(self) -> int | None:
        """The token that positions are counted without; None if they are counted from the left."""
        return None

    @property
    def mlp_dropout(self) -> float:
        """The probability with which outputs of an MLP block are dropped."""
        return self.hidden_dropout_prob

    @property
    def head_dropout(self) -> float:
        """The probability with which inputs of a classification head are dropped."""
        return self.hidden_dropout_prob

    @property
    def lm_activation(self) -> str:
        """The activation in the masked language model's head."""
        return self.hidden_act

    def with_parts(self, paths: Collection[str]) -> ModelConfig:
        """Without a head, with a pooler if there is one."""
        return dataclasses.replace(self, add_pooler=_has_pooler(paths))

    def may_have(self, head: Head, paths: Collection[str]) -> bool:
        """A classifier whose pooler is missing reads every token: it is no sequence classification."""
        return head not in self.POOLED_HEADS or _has_pooler(paths)

    def original_layout(self, index: int) -> MLPBlock:
        """A dense block of `intermediate_size` neurons with biases."""
        return dense_layout(self.hidden_size, self.intermediate_size, activation=self.hidden_act)


def _has_pooler(paths: Collection[str]) -> bool:
    return any(path.startswith("pooler/") for path in paths)


def refuse_variants(config: JsonObject, architecture: str) -> None:
    """Refuse what Hugging Face's older classes could do beside a plain encoder.

    Args:
        config: the contents of ``config.json``.
        architecture: its name, for messages.

    Raises:
        InputError: for relative position embeddings, and for decoders.
    """
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"config: position_embedding_type {config['position_embedding_type']!r} is not supported")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise InputError(f"config: {architecture} as a decoder is not supported")


def encoder_hf_config(config: EncoderConfig) -> dict[str, Any]:
    """The keys of ``config.json`` for an encoder.

    Args:
        config: the configuration; its `mlp_layouts` are not looked at.

    Returns:
        Key → value.
    """
    names = [field.name for field in dataclasses.fields(config) if field.name not in config.NOT_IN_FILE]
    values: dict[str, Any] = {"model_type": config.model_type, **{name: getattr(config, name) for name in names}}
    if config.head in WITH_LABELS:
        values["num_labels"] = config.num_labels
    return values
