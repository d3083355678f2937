"""A fresh head on a pretrained network, for fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntkfusion.errors import InputError
from ntkfusion.models.config import WITH_LABELS, Head, JsonObject, ModelConfig
from ntkfusion.models.model import Model, Origin, abstract_params, example_batch
from ntkfusion.models.registry import build_network
from ntkfusion.utils.parameter_paths import Flat, flatten, parameter_paths, unflatten

#: What a config.json says about the outputs of a head.
_OF_OUTPUTS = ("id2label", "label2id", "problem_type")

#: What stands there for a fresh head, whose outputs mean nothing yet; it is never written to a config.json.
_NOTHING_YET: JsonObject = {"id2label": {}}


def with_new_head(model: Model, head: Head, *, num_labels: int | None = None, seed: int = 0) -> Model:
    """A model with a freshly initialised head; everything else is shared with this one.

    A head that the model has already is replaced, and the names of its outputs are forgotten. A pooler, where the head
    reads one, is kept if the model has it and made afresh if it has not; where the head reads none, it is left out.

    Args:
        model: any model, compressed or not.
        head: one of the architecture's heads.
        num_labels: outputs of a classification head; None for all others.
        seed: of the fresh weights.

    Returns:
        The new model, its parameters in the dtype of the old ones.

    Raises:
        InputError: for a head that the architecture does not have, or labels that do not go with it.

    >>> from ntkfusion.models.bert.config import BertConfig
    >>> from ntkfusion.models.model import random_model
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    >>> classifier = with_new_head(random_model(tiny), "sequence-classification", num_labels=3)
    >>> classifier.params["classifier"]["kernel"].shape
    (8, 3)
    """
    config = _with_head(model.config, head, num_labels)
    bare = _bare_paths(config)
    kept = {path: array for path, array in flatten(model.params).items() if path in bare}
    dtype = next(array.dtype for array in kept.values() if jnp.issubdtype(array.dtype, jnp.floating))

    @jax.jit
    def fresh(key: jax.Array) -> Flat:
        # compiled, so that weights which nobody asks for are never made
        made = flatten(build_network(config).init(key, example_batch(config))["params"])
        return {path: array.astype(dtype) for path, array in made.items() if path not in kept}

    params = unflatten(kept | fresh(jax.random.key(seed)))
    facts = _NOTHING_YET if head in WITH_LABELS else {}
    return dataclasses.replace(model, config=config, params=params, origin=_with_facts(model, facts))


def with_label_names(model: Model, names: Sequence[str]) -> Model:
    """A model that says what its outputs mean; its saved ``config.json`` says it too.

    Args:
        model: one with a sequence classification head.
        names: of the classes in the order of the outputs; none if the output is a score.

    Returns:
        The model with these names in place of those that its checkpoint came with. A head that gives several classes
        at once (``problem_type``) stays one.

    Raises:
        InputError: unless there is one name for every output, each another.
    """
    shown = [*names] or ["LABEL_0"]
    if len({*shown}) != len(shown) or model.config.num_labels != len(shown):
        raise InputError(
            f"the head has {model.config.num_labels or 0} outputs, and each needs a name of its own; got "
            f"{', '.join(map(repr, names)) or 'no names, which is for the one output of a score'}"
        )
    kind = "single_label_classification" if names else "regression"
    several = "multi_label_classification"
    facts: dict[str, Any] = {
        "id2label": {str(place): name for place, name in enumerate(shown)},
        "label2id": {name: place for place, name in enumerate(shown)},
        "problem_type": several if names and model.origin.config.get("problem_type") == several else kind,
    }
    return dataclasses.replace(model, origin=_with_facts(model, facts))


def output_names(model: Model) -> tuple[str, ...] | None:
    """What a model says the outputs of its classification head mean.

    Args:
        model: one with a classification head.

    Returns:
        Names in the order of the outputs: ``LABEL_0``, ``LABEL_1``, … where its checkpoint gives none, as transformers
        has it. None for a head that no checkpoint came with: a fresh one means nothing yet.
    """
    config, count = model.origin.config, model.config.num_labels or 0
    if not config or config.get("id2label") == {}:
        return None
    by_output = _numbered(config.get("id2label"))
    by_name = config.get("label2id")
    if not by_output and isinstance(by_name, Mapping):
        by_output = _numbered({place: name for name, place in by_name.items()})
    if sorted(by_output) != list(range(count)):
        return tuple(f"LABEL_{place}" for place in range(count))
    return tuple(by_output[place] for place in range(count))


def _numbered(names: object) -> dict[int, str]:
    """Output → name, of a mapping whose keys JSON has made text; empty for anything else."""
    try:
        return {int(place): str(name) for place, name in names.items()} if isinstance(names, Mapping) else {}
    except (TypeError, ValueError):
        return {}


def _with_facts(model: Model, facts: JsonObject) -> Origin:
    """The origin with these facts about outputs in place of those that an old head had."""
    kept = {key: value for key, value in model.origin.config.items() if key not in _OF_OUTPUTS}
    return dataclasses.replace(model.origin, config={**kept, **facts})


def head_paths(model: Model) -> frozenset[str]:
    """Paths of the parameters that the head has and the bare network has not.

    >>> from ntkfusion.models.bert.config import BertConfig
    >>> from ntkfusion.models.model import random_model
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    >>> sorted(head_paths(with_new_head(random_model(tiny), "sequence-classification", num_labels=3)))
    ['classifier/bias', 'classifier/kernel']
    """
    return frozenset(parameter_paths(model.params)) - _bare_paths(model.config)


def _bare_paths(config: ModelConfig) -> frozenset[str]:
    """Paths of the parameters that a network without a head has: they are no part of the head."""
    return frozenset(parameter_paths(abstract_params(dataclasses.replace(config, head=None, num_labels=None))))


def _with_head(config: ModelConfig, head: Head, num_labels: int | None) -> ModelConfig:
    if head not in config.HEADS:
        raise InputError(f"{config.architecture} has no head {head!r}; it has {', '.join(config.HEADS)}")
    if head in WITH_LABELS and num_labels is None:
        raise InputError(f"head {head!r} needs num_labels, the number of its outputs")
    return dataclasses.replace(config, head=head, num_labels=num_labels)
