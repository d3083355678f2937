"""The configurations of BERT, and of RoBERTa and XLM-RoBERTa: BERT with other positions and other heads."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from ntkfusion.errors import InputError
from ntkfusion.models.config import Head, JsonObject, index, known_values, number, size
from ntkfusion.models.layers.encoder_config import REQUIRED, EncoderConfig, encoder_hf_config, refuse_variants


@dataclasses.dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """The shape of a BERT encoder. Field names are those of Hugging Face's ``BertConfig``.

    Attributes:
        classifier_dropout: dropout in front of a classification head; None for `hidden_dropout_prob`.
    """

    classifier_dropout: float | None = number(None)

    @property
    def architecture(self) -> str:
        """``BERT``."""
        return "BERT"

    @property
    def model_type(self) -> str:
        """``bert``."""
        return "bert"

    @property
    def head_dropout(self) -> float:
        """The probability with which inputs of a classification head are dropped."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout


def bert_config(config: JsonObject) -> BertConfig:
    """The `BertConfig` of a Hugging Face configuration dictionary.

    Args:
        config: the contents of ``config.json``. Keys that do not change the computed function are ignored.

    Returns:
        The configuration; without a head (the loader adds one if the file holds its weights).

    Raises:
        InputError: for a missing key, a value out of range, or a variant that is not BERT's (relative position
            embeddings, decoder).
    """
    refuse_variants(config, "BERT")
    return BertConfig(**known_values(BertConfig, config, REQUIRED))


def bert_hf_config(config: BertConfig) -> dict[str, Any]:
    """The contents of a ``config.json``, without ``architectures``, that transformers reads back to this model.

    >>> bert_hf_config(BertConfig(num_hidden_layers=3, head="token-classification", num_labels=5))["num_labels"]
    5
    """
    return encoder_hf_config(config)


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """The shape of a RoBERTa encoder. Field names are those of Hugging Face's ``RobertaConfig``.

    Attributes:
        pad_token_id: the padding token p. Other tokens have the positions p+1, p+2, ...; padding has position p.
    """

    vocab_size: int = size(50265)
    pad_token_id: int = index(1)

    POOLED_HEADS: ClassVar[tuple[Head, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < 1:
            raise InputError(
                f"config: max_position_embeddings {self.max_position_embeddings} leaves no position behind "
                f"pad_token_id {self.pad_token_id}"
            )

    @property
    def architecture(self) -> str:
        """``RoBERTa``."""
        return "RoBERTa"

    @property
    def model_type(self) -> str:
        """``roberta``."""
        return "roberta"

    @property
    def max_length(self) -> int:
        """The number of positions behind that of padding."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @property
    def unplaced_token(self) -> int:
        """The padding token."""
        return self.pad_token_id

    @property
    def lm_activation(self) -> str:
        """GELU, whatever the blocks have."""
        return "gelu"


@dataclasses.dataclass(frozen=True)
class XlmRobertaConfig(RobertaConfig):
    """The shape of an XLM-RoBERTa encoder: RoBERTa under another name."""

    vocab_size: int = size(30522)

    @property
    def architecture(self) -> str:
        """``XLM-RoBERTa``."""
        return "XLM-RoBERTa"

    @property
    def model_type(self) -> str:
        """``xlm-roberta``."""
        return "xlm-roberta"


def roberta_config(config: JsonObject) -> RobertaConfig:
    """The `RobertaConfig`, or `XlmRobertaConfig`, of a Hugging Face configuration dictionary.

    Args:
        config: the contents of ``config.json``. Keys that do not change the computed function are ignored.

    Returns:
        The configuration; without a head (the loader adds one if the file holds its weights).

    Raises:
        InputError: for a missing key, a value out of range, or a variant that is not RoBERTa's (relative position
            embeddings, decoder).
    """
    cls = XlmRobertaConfig if config.get("model_type") == "xlm-roberta" else RobertaConfig
    refuse_variants(config, "RoBERTa")
    return cls(**known_values(cls, config, REQUIRED))


def roberta_hf_config(config: RobertaConfig) -> dict[str, Any]:
    """The contents of a ``config.json``, without ``architectures``, that transformers reads back to this model.

    >>> roberta_hf_config(RobertaConfig(pad_token_id=0))["pad_token_id"]
    0
    """
    return encoder_hf_config(config)
