"""The classes of transformers that a model of each architecture and head is."""

from __future__ import annotations

from ntkfusion.errors import InputError
from ntkfusion.models.config import Head, ModelConfig

_ENCODER: dict[Head | None, str] = {
    None: "Model",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "masked-lm": "ForMaskedLM",
}
_DECODER: dict[Head | None, str] = {**_ENCODER, "causal-lm": "LMHeadModel"}
del _DECODER["masked-lm"]

#: ``model_type`` → how the names of its classes begin, and how they end for each head.
_CLASSES: dict[str, tuple[str, dict[Head | None, str]]] = {
    "bert": ("Bert", _ENCODER),
    "roberta": ("Roberta", _ENCODER),
    "xlm-roberta": ("XLMRoberta", _ENCODER),
    "albert": ("Albert", _ENCODER),
    "gpt2": ("GPT2", _DECODER),
    "switch_transformers": ("SwitchTransformers", {None: "Model", "seq2seq-lm": "ForConditionalGeneration"}),
}


def transformers_class(config: ModelConfig) -> str:
    """The name of the class in transformers for a model of this architecture and head.

    Raises:
        InputError: if transformers has none.
    """
    start, endings = _CLASSES[config.model_type]
    if config.head not in endings:
        raise InputError(
            f"transformers has no {config.architecture} with a head for {config.head}; "
            "format='ntkfusion' keeps it, or load the model with head=None to save the network without it"
        )
    return start + endings[config.head]
