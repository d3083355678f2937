"""The configuration of ALBERT: layers in groups that share their weights, embeddings of a width of their own."""

from __future__ import annotations

import dataclasses
from typing import Any

from ntkfusion.errors import InputError
from ntkfusion.models.config import JsonObject, known_values, number, size, text
from ntkfusion.models.layers.encoder_config import REQUIRED, EncoderConfig, encoder_hf_config, refuse_variants

#: More layers than any model has; shared ones cost a file nothing, so that its size does not bound them.
MOST_LAYERS = 512


@dataclasses.dataclass(frozen=True)
class AlbertConfig(EncoderConfig):
    """The shape of an ALBERT encoder. Field names are those of Hugging Face's ``AlbertConfig``.

    Attributes:
        embedding_size: e, the width of the embeddings, which are then mapped to the model width.
        num_hidden_groups: G groups; layer i of L has the weights of group ⌊i G / L⌋.
        classifier_dropout_prob: dropout in front of a classification head.
    """

    vocab_size: int = size(30000)
    embedding_size: int = size(128)
    hidden_size: int = size(4096)
    num_hidden_groups: int = size(1)
    num_attention_heads: int = size(64)
    intermediate_size: int = size(16384)
    hidden_act: str = text("gelu_new")
    hidden_dropout_prob: float = number(0.0)
    attention_probs_dropout_prob: float = number(0.0)
    classifier_dropout_prob: float = number(0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_hidden_layers > MOST_LAYERS:
            raise InputError(f"config: num_hidden_layers must be at most {MOST_LAYERS}, got {self.num_hidden_layers}")
        if self.num_hidden_groups > self.num_hidden_layers:
            raise InputError(
                f"config: num_hidden_groups {self.num_hidden_groups} is more than "
                f"num_hidden_layers {self.num_hidden_layers}: some groups would never be used"
            )

    @property
    def architecture(self) -> str:
        """``ALBERT``."""
        return "ALBERT"

    @property
    def model_type(self) -> str:
        """``albert``."""
        return "albert"

    @property
    def block_paths(self) -> tuple[str, ...]:
        """``group_0/mlp`` and so on."""
        return tuple(f"group_{index}/mlp" for index in range(self.num_hidden_groups))

    @property
    def applications(self) -> tuple[int, ...]:
        """The group of every layer."""
        layers, groups = self.num_hidden_layers, self.num_hidden_groups
        # with PyTorch's rounding: the exact quotient would differ for some sizes
        return tuple(int(index / (layers / groups)) for index in range(layers))

    @property
    def num_stored_layers(self) -> int:
        """How many groups there are."""
        return self.num_hidden_groups

    @property
    def fewest_tensors(self) -> int:
        """Sixteen in every group."""
        return 16 * self.num_hidden_groups

    @property
    def embedding_width(self) -> int:
        """The width of the embeddings."""
        return self.embedding_size

    @property
    def mlp_dropout(self) -> float:
        """None: PyTorch's class has no dropout there."""
        return 0.0

    @property
    def head_dropout(self) -> float:
        """The probability with which inputs of a classification head are dropped."""
        return self.classifier_dropout_prob


def albert_config(config: JsonObject) -> AlbertConfig:
    """The `AlbertConfig` of a Hugging Face configuration dictionary.

    Args:
        config: the contents of ``config.json``. Keys that do not change the computed function are ignored.

    Returns:
        The configuration; without a head (the loader adds one if the file holds its weights).

    Raises:
        InputError: for a missing key, a value out of range, or a variant that is not modelled (groups of several
            layers, relative position embeddings).
    """
    refuse_variants(config, "ALBERT")
    inner = config.get("inner_group_num", 1)
    if inner != 1:
        raise InputError(f"config: inner_group_num must be 1 (one layer in a group), got {inner!r}")
    return AlbertConfig(**known_values(AlbertConfig, config, (*REQUIRED, "embedding_size")))


def albert_hf_config(config: AlbertConfig) -> dict[str, Any]:
    """The contents of a ``config.json``, without ``architectures``, that transformers reads back to this model.

    >>> albert_hf_config(AlbertConfig(num_hidden_groups=2))["num_hidden_groups"]
    2
    """
    return {**encoder_hf_config(config), "inner_group_num": 1}
