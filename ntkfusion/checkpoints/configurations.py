"""Configurations by their architecture's name in ``config.json``: the class, and the way back to that file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ntkfusion.models import albert_config, bert_config, gpt2_config, roberta_config, switch_config
from ntkfusion.models.config import ModelConfig

#: ``model_type`` → the class of its configurations, and the function that says it in Hugging Face's words.
CONFIGURATIONS: dict[str, tuple[type[ModelConfig], Callable[[Any], dict[str, Any]]]] = {
    "bert": (bert_config.BertConfig, bert_config.hf_config),
    "roberta": (roberta_config.RobertaConfig, roberta_config.hf_config),
    "xlm-roberta": (roberta_config.XlmRobertaConfig, roberta_config.hf_config),
    "albert": (albert_config.AlbertConfig, albert_config.hf_config),
    "gpt2": (gpt2_config.GPT2Config, gpt2_config.hf_config),
    "switch_transformers": (switch_config.SwitchConfig, switch_config.hf_config),
}


def write_config(config: ModelConfig) -> dict[str, Any]:
    """What ``config.json`` says of a configuration, without ``architectures``: the inverse of `read_config`."""
    return CONFIGURATIONS[config.model_type][1](config)
