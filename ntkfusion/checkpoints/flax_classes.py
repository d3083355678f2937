"""What transformers 4's Flax classes can express: asked when Flax files are read, and before they are written.

They ignore parts of a configuration, know fewer activations, and exist for fewer heads than PyTorch's classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ntkfusion.checkpoints.audit import Matching
from ntkfusion.checkpoints.formats.outgoing import Outgoing
from ntkfusion.checkpoints.formats.tensors import TensorSource
from ntkfusion.errors import InputError
from ntkfusion.models.activations import ALIASES
from ntkfusion.models.config import ModelConfig
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.model import Model
from ntkfusion.models.registry import architecture_of, transformers_class
from ntkfusion.utils.parameter_paths import flatten, unflatten

#: Activations that the Flax classes have, by the names they have there.
FLAX_ACTIVATIONS = ("gelu", "relu", "silu", "swish", "gelu_new", "gelu_pytorch_tanh")

#: The fields of configurations that name it.
_ACTIVATION_FIELDS = ("hidden_act", "activation_function", "dense_act_fn")

#: The two biases of a masked language model's decoder. PyTorch's classes in transformers 5 read the first where the
#: decoder is untied, and keep the other for nothing; the Flax classes have the second only.
DECODER_BIAS, HEAD_BIAS = "lm_head/decoder/bias", "lm_head/bias"


def computed_otherwise(config: ModelConfig) -> tuple[str, ...]:
    """What the Flax class of a configuration computes in another way than its configuration says.

    Args:
        config: a model's configuration.

    Returns:
        One clause each, such as ``ignores ...``; none if it computes the same.
    """
    if not isinstance(config, GPT2Config):
        return ()
    ignored = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
    values = {name: getattr(config, name) for name in ignored}
    return tuple(
        f"ignores {name}, which is {str(value).lower()} here"
        for name, value in values.items()
        if value != ignored[name]
    )


def check_flax_export(config: ModelConfig) -> None:
    """Refuse to write what no Flax class of transformers 4 computes.

    Args:
        config: the configuration of the model that is to be saved.

    Raises:
        InputError: with every reason, and what to do.
    """
    reasons = [f"transformers' Flax class of it {clause}" for clause in computed_otherwise(config)]
    if config.head not in architecture_of(config).flax_heads:
        reasons.append(f"transformers has no Flax class of a {config.architecture} with {_head(config)}")
    reasons += _unknown_activation(config, "Flax classes", FLAX_ACTIVATIONS)
    if reasons:
        kept = "format='hf' and format='ntkfusion' keep the model"
        raise InputError(f"format='flax' cannot hold this model: {'; '.join(reasons)}. {kept}")


def check_transformers_export(config: ModelConfig) -> None:
    """Refuse to write what no PyTorch class of transformers computes.

    Args:
        config: the configuration of the model that is to be saved.

    Raises:
        InputError: for a head that no class has, or an activation that has another name there.
    """
    transformers_class(config)
    problems = _unknown_activation(config, "classes", (*FLAX_ACTIVATIONS, "gelu_fast", "gelu_python"))
    if problems:
        raise InputError(f"format='hf' cannot hold this model: {problems[0]}. format='ntkfusion' keeps the model")


def flax_tensors(config: ModelConfig, tensors: Sequence[Outgoing]) -> list[Outgoing]:
    """The tensors that the Flax class of a configuration has: of a decoder's two biases the head's."""
    table = architecture_of(config).names
    places = ((tensor, table.find(tensor.name)) for tensor in tensors)
    return [tensor for tensor, place in places if place is None or place.path != DECODER_BIAS]


def _head(config: ModelConfig) -> str:
    return f"a head for {config.head}" if config.head else "no head"


def _unknown_activation(config: ModelConfig, classes: str, known: Sequence[str]) -> list[str]:
    """Whether the activation has a name that these classes do not know, and which one they know it by."""
    name = next((getattr(config, field) for field in _ACTIVATION_FIELDS if hasattr(config, field)), None)
    if not isinstance(name, str) or name in known:
        return []
    same = ALIASES.get(name, name)
    others = [other for other in known if ALIASES.get(other, other) == same]
    hint = f" ({others[0]} is the same function: name that in config.json, and load again)" if others else ""
    return [f"transformers' {classes} have no activation of the name {name}{hint}"]


def import_problems(config: ModelConfig, matching: Matching, opened: TensorSource) -> list[str]:
    """Why a Flax checkpoint does not say what its model computes.

    Args:
        config: its configuration, with the head.
        matching: its tensors' accounts.
        opened: its tensors.

    Returns:
        The problems: what its Flax class ignores though the configuration says it, and two biases of one decoder.
    """
    problems = [
        f"transformers' Flax class of these weights {clause}: what they compute there is not what config.json says. "
        "Change config.json to what they were trained with, or load PyTorch's weights (safetensors)"
        for clause in computed_otherwise(config)
    ]
    both = [matching.matched.get(path) for path in (DECODER_BIAS, HEAD_BIAS)]
    names = [tensor.info.name for tensor in both if tensor is not None]
    if len(names) == 2 and config.head == "masked-lm" and not config.tie_word_embeddings:
        one, two = (array for _, array in sorted(opened.arrays(names)))
        if not np.array_equal(one, two):
            problems.append(
                f"{names[0]} differs from {names[1]}, and transformers' Flax class reads the latter alone: delete "
                "the one that does not belong there, or load PyTorch's weights (safetensors)"
            )
    return problems


def with_one_bias(model: Model) -> Model:
    """An untied masked language model that computes the same wherever it is loaded.

    Transformers 5 reads the decoder's own bias, transformers 4 has the head's in its place, in Flax and in PyTorch:
    training one of them must not make two models of one folder.

    Args:
        model: any model.

    Returns:
        The model; if it is an untied masked language model, with the bias that counts in both places.
    """
    flat = flatten(model.params)
    if DECODER_BIAS not in flat:
        return model
    return dataclasses.replace(model, params=unflatten({**flat, HEAD_BIAS: flat[DECODER_BIAS]}))
