"""One record per architecture: everything that the rest of the library has to look up by a model's kind.

A new architecture is a folder with ``config.py``, ``network.py`` and ``names.py``, and a record here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn

from ntkfusion.errors import InputError
from ntkfusion.models.albert.config import AlbertConfig, albert_config, albert_hf_config
from ntkfusion.models.albert.names import ALBERT
from ntkfusion.models.albert.network import Albert
from ntkfusion.models.bert.config import (
    BertConfig,
    RobertaConfig,
    XlmRobertaConfig,
    bert_config,
    bert_hf_config,
    roberta_config,
    roberta_hf_config,
)
from ntkfusion.models.bert.names import BERT, ENCODER_MATRICES, ROBERTA, XLM_ROBERTA
from ntkfusion.models.bert.network import Bert
from ntkfusion.models.config import Head, JsonObject, ModelConfig
from ntkfusion.models.gpt2 import network as gpt2_network
from ntkfusion.models.gpt2.config import GPT2Config, gpt2_config, gpt2_hf_config
from ntkfusion.models.gpt2.names import GPT2, GPT2_MATRICES
from ntkfusion.models.name_table import NameTable
from ntkfusion.models.switch.config import SwitchConfig, switch_config, switch_hf_config
from ntkfusion.models.switch.names import SWITCH
from ntkfusion.models.switch.network import SwitchTransformer

_ENCODER_ENDINGS: dict[Head | None, str] = {
    None: "Model",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "masked-lm": "ForMaskedLM",
}

#: Every class of an encoder has a Flax class in transformers 4.
_ENCODER_FLAX_HEADS = (*_ENCODER_ENDINGS,)

_ENCODER_OTHERS: dict[str, Head] = {"ForPreTraining": "masked-lm"}

_DECODER_ENDINGS: dict[Head | None, str] = {
    None: "Model",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "causal-lm": "LMHeadModel",
}

_DECODER_OTHERS: dict[str, Head] = {"DoubleHeadsModel": "causal-lm", "ForCausalLM": "causal-lm"}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What there is to know about one architecture.

    Attributes:
        config: the class of its configurations.
        read: a configuration from the contents of ``config.json``.
        write: what ``config.json`` says of a configuration, without ``architectures``: the inverse of `read`.
        network: the linen module of a configuration: ``network(config)(batch, deterministic=True)`` of a `Batch` gives
            a `ModelOutput`.
        names: which tensor of a Hugging Face checkpoint is which parameter.
        class_prefix: how the names of its classes in transformers begin.
        class_endings: head → how they end.
        other_endings: how the names of further classes end, whose checkpoints can be read → the head they have.
        flax_heads: heads with which transformers 4 has a Flax class of it (None: the bare network).
        matrices: kind of weight matrix → its path among the parameters, ``{layer}`` standing for the layer's number.
            Empty where matrices cannot be chosen by kind.
    """

    config: type[ModelConfig]
    read: Callable[[JsonObject], ModelConfig]
    write: Callable[[Any], dict[str, Any]]
    network: Callable[[Any], nn.Module]
    names: NameTable
    class_prefix: str
    class_endings: Mapping[Head | None, str]
    other_endings: Mapping[str, Head] = dataclasses.field(default_factory=dict)
    flax_heads: Collection[Head | None] = ()
    matrices: Mapping[str, str] = dataclasses.field(default_factory=dict)


#: ``model_type`` in ``config.json`` → the architecture.
ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(
        config=BertConfig,
        read=bert_config,
        write=bert_hf_config,
        network=Bert,
        names=BERT,
        class_prefix="Bert",
        class_endings=_ENCODER_ENDINGS,
        other_endings=_ENCODER_OTHERS,
        flax_heads=_ENCODER_FLAX_HEADS,
        matrices=ENCODER_MATRICES,
    ),
    "roberta": Architecture(
        config=RobertaConfig,
        read=roberta_config,
        write=roberta_hf_config,
        network=Bert,
        names=ROBERTA,
        class_prefix="Roberta",
        class_endings=_ENCODER_ENDINGS,
        other_endings=_ENCODER_OTHERS,
        flax_heads=_ENCODER_FLAX_HEADS,
        matrices=ENCODER_MATRICES,
    ),
    "xlm-roberta": Architecture(
        config=XlmRobertaConfig,
        read=roberta_config,
        write=roberta_hf_config,
        network=Bert,
        names=XLM_ROBERTA,
        class_prefix="XLMRoberta",
        class_endings=_ENCODER_ENDINGS,
        other_endings=_ENCODER_OTHERS,
        flax_heads=_ENCODER_FLAX_HEADS,
        matrices=ENCODER_MATRICES,
    ),
    "albert": Architecture(
        config=AlbertConfig,
        read=albert_config,
        write=albert_hf_config,
        network=Albert,
        names=ALBERT,
        class_prefix="Albert",
        class_endings=_ENCODER_ENDINGS,
        other_endings=_ENCODER_OTHERS,
        flax_heads=_ENCODER_FLAX_HEADS,
        matrices={"embeddings": ENCODER_MATRICES["embeddings"]},
    ),
    "gpt2": Architecture(
        config=GPT2Config,
        read=gpt2_config,
        write=gpt2_hf_config,
        network=gpt2_network.GPT2,
        names=GPT2,
        class_prefix="GPT2",
        class_endings=_DECODER_ENDINGS,
        other_endings=_DECODER_OTHERS,
        flax_heads=(None, "causal-lm"),
        matrices=GPT2_MATRICES,
    ),
    "switch_transformers": Architecture(
        config=SwitchConfig,
        read=switch_config,
        write=switch_hf_config,
        network=SwitchTransformer,
        names=SWITCH,
        class_prefix="SwitchTransformers",
        class_endings={None: "Model", "seq2seq-lm": "ForConditionalGeneration"},
        # transformers has no such class; folders of others may say so
        other_endings={"ForSequenceClassification": "sequence-classification"},
    ),
}


def architecture_of(config: ModelConfig) -> Architecture:
    """The record of a configuration's architecture."""
    return ARCHITECTURES[config.model_type]


def build_network(config: ModelConfig) -> nn.Module:
    """The linen module of a configuration: ``module(batch, deterministic=True)`` of a `Batch` gives a `ModelOutput`."""
    return architecture_of(config).network(config)


def read_config(config: JsonObject) -> ModelConfig:
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
    architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if name is None:
        raise InputError(f"config: it has no model_type; {_model_type_remedy(config)}")
    if architecture is None:
        raise InputError(f"config: model_type {name!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    return architecture.read(config)


def _model_type_remedy(config: JsonObject) -> str:
    """What to write where old checkpoints have nothing, by the class that they say they are of, if they do."""
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else ""
    for model_type, architecture in ARCHITECTURES.items():
        if name.startswith(architecture.class_prefix):
            return f'it says that it is a {name}: add "model_type": "{model_type}"'
    return f"add the one that fits the weights: {', '.join(ARCHITECTURES)}"


def write_config(config: ModelConfig) -> dict[str, Any]:
    """What ``config.json`` says of a configuration, without ``architectures``: the inverse of `read_config`."""
    return architecture_of(config).write(config)


def transformers_class(config: ModelConfig) -> str:
    """The name of the class in transformers for a model of this architecture and head.

    Raises:
        InputError: if transformers has none.
    """
    architecture = architecture_of(config)
    if config.head not in architecture.class_endings:
        raise InputError(
            f"transformers has no {config.architecture} with a head for {config.head}; "
            "format='ntkfusion' keeps it, or load the model with head=None to save the network without it"
        )
    return architecture.class_prefix + architecture.class_endings[config.head]


def head_of_class(config: ModelConfig, name: str) -> Head | None:
    """The head of models of a class in transformers.

    Args:
        config: a configuration of the architecture.
        name: the class, as ``architectures`` in ``config.json`` has it.

    Returns:
        The head; None for the bare network.

    Raises:
        InputError: for a class that this library does not have: it may compute something else from the same tensors.

    >>> head_of_class(BertConfig(), "BertForPreTraining")
    'masked-lm'
    """
    known = _heads_by_class(config)
    plain = name.removeprefix("Flax").removeprefix("TF")
    if plain not in known:
        own = [cls for cls in known if cls.startswith(architecture_of(config).class_prefix)]
        raise InputError(f"the class {name} is not modelled; of {config.architecture} there are {', '.join(own)}")
    return known[plain]


def _heads_by_class(config: ModelConfig) -> dict[str, Head | None]:
    """Class in transformers → its head; classes of an architecture with the same heads (XLM-RoBERTa) are among them."""
    own = architecture_of(config)
    alike = [
        own,
        *(other for other in ARCHITECTURES.values() if other.names.heads is own.names.heads and other is not own),
    ]
    known: dict[str, Head | None] = {}
    for architecture in alike:
        endings: dict[str, Head | None] = {ending: head for head, ending in architecture.class_endings.items()}
        endings |= dict(architecture.other_endings)
        known |= {architecture.class_prefix + ending: head for ending, head in endings.items()}
    return known
