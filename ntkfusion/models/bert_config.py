"""The configuration of BERT."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from ntkfusion.models.config import known_values
from ntkfusion.models.encoder_config import REQUIRED, EncoderConfig, encoder_hf_config, refuse_variants


@dataclasses.dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """The shape of a BERT encoder. Field names are those of Hugging Face's ``BertConfig``.

    Attributes:
        classifier_dropout: dropout in front of a classification head; None for `hidden_dropout_prob`.
    """

    classifier_dropout: float | None = None

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
    refuse_variants(config, "BERT")
    return BertConfig(**known_values(BertConfig, config, REQUIRED))


def hf_config(config: BertConfig) -> dict[str, Any]:
    """The contents of a ``config.json``, without ``architectures``, that transformers reads back to this model.

    >>> hf_config(BertConfig(num_hidden_layers=3, head="token-classification", num_labels=5))["num_labels"]
    5
    """
    return encoder_hf_config(config)
