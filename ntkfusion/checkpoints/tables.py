"""The name table of every architecture."""

from __future__ import annotations

from ntkfusion.checkpoints.albert_names import ALBERT
from ntkfusion.checkpoints.bert_names import BERT
from ntkfusion.checkpoints.gpt2_names import GPT2
from ntkfusion.checkpoints.names import NameTable
from ntkfusion.checkpoints.roberta_names import ROBERTA, XLM_ROBERTA
from ntkfusion.checkpoints.switch_names import SWITCH
from ntkfusion.models.config import ModelConfig

_TABLES: dict[str, NameTable] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
    "albert": ALBERT,
    "gpt2": GPT2,
    "switch_transformers": SWITCH,
}


def table_of(config: ModelConfig) -> NameTable:
    """The names of a configuration's tensors in Hugging Face's checkpoints."""
    return _TABLES[config.model_type]
