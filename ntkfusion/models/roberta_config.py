"""The configurations of RoBERTa and XLM-RoBERTa: BERT with other positions and other heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from ntkfusion.errors import InputError
from ntkfusion.models.bert_config import BertConfig
from ntkfusion.models.config import Head, Index, known_values
from ntkfusion.models.encoder_config import REQUIRED, encoder_hf_config, refuse_variants


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """The shape of a RoBERTa encoder. Field names are those of Hugging Face's ``RobertaConfig``.

    Attributes:
        pad_token_id: the padding token p. Other tokens have the positions p+1, p+2, ...; padding has position p.
    """

    vocab_size: int = 50265
    pad_token_id: Index = 1

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

    vocab_size: int = 30522

    @property
    def architecture(self) -> str:
        """``XLM-RoBERTa``."""
        return "XLM-RoBERTa"

    @property
    def model_type(self) -> str:
        """``xlm-roberta``."""
        return "xlm-roberta"


def roberta_config(config: Mapping[str, Any]) -> RobertaConfig:
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


def hf_config(config: RobertaConfig) -> dict[str, Any]:
    """The contents of a ``config.json``, without ``architectures``, that transformers reads back to this model.

    >>> hf_config(RobertaConfig(pad_token_id=0))["pad_token_id"]
    0
    """
    return encoder_hf_config(config)
