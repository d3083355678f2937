"""Every architecture by its name in ``config.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ntkfusion.errors import InputError
from ntkfusion.models.albert_config import albert_config
from ntkfusion.models.bert_config import bert_config
from ntkfusion.models.config import ModelConfig
from ntkfusion.models.gpt2_config import gpt2_config
from ntkfusion.models.roberta_config import roberta_config
from ntkfusion.models.switch_config import switch_config

#: ``model_type`` in config.json → its reader.
CONFIG_READERS: dict[str, Callable[[Mapping[str, Any]], ModelConfig]] = {
    "bert": bert_config,
    "roberta": roberta_config,
    "xlm-roberta": roberta_config,
    "albert": albert_config,
    "gpt2": gpt2_config,
    "switch_transformers": switch_config,
}


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a Hugging Face configuration dictionary.

    Args:
        config: the contents of ``config.json``. Keys that do not change the computed function are ignored.

    Returns:
        The configuration; without a head (the loader adds one if the file holds its weights).

    Raises:
        InputError: for an unknown architecture, a missing key, a value out of range, an unsupported variant, or one
            that asks to run code from the checkpoint.

    >>> sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> read_config({"model_type": "bert", "intermediate_size": 12, **sizes}).block_paths
    ('layer_0/mlp',)
    """
    if "auto_map" in config:
        raise InputError("config: 'auto_map' asks to run code from the checkpoint, which is never done")
    name = config.get("model_type")
    reader = CONFIG_READERS.get(name) if isinstance(name, str) else None
    if reader is None:
        raise InputError(f"config: model_type {name!r} is not supported; supported: {', '.join(CONFIG_READERS)}")
    return reader(config)
