"""What is written beside weights so that others can use them: a padding token, and a tokenizer that fits the tables."""

from __future__ import annotations

import copy
import dataclasses
import logging
from typing import Any

from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.indices import padding_id
from ntkfusion.models.model import Model

#: Limits from here on are transformers' word for none.
_NO_LIMIT = 10**20

_log = logging.getLogger(__name__)


def with_padding(model: Model) -> Model:
    """A model whose configuration names the token that fills short inputs, where another class than ours needs it.

    transformers' GPT-2 reads a classification at the last token that is no padding, known by its id: without one it
    takes no batch. It is the token that training fills with.

    Args:
        model: any model.

    Returns:
        The model; itself if there is nothing to change, or no token that could fill.
    """
    config = model.config
    if not isinstance(config, GPT2Config) or config.head != "sequence-classification":
        return model
    token = padding_id(config, model.tokenizer, model.origin.config)
    if token is None or token == config.pad_token_id:
        return model
    return dataclasses.replace(model, config=dataclasses.replace(config, pad_token_id=token))


def fitting_tokenizer(model: Model) -> Any:
    """The tokenizer to be written with a model: of what it gives, nothing is beyond the model's tables.

    The padding token is that of the configuration (`with_padding`), segments are not given to a model that has one or
    none, and a stated maximal length is at most the model's. A larger vocabulary stays (`tell_of_unknown_tokens`).

    Args:
        model: as it is written, with a tokenizer.

    Returns:
        The model's tokenizer, or a changed copy.
    """
    changes = _changes(model)
    if not changes:
        return model.tokenizer
    changed = copy.deepcopy(model.tokenizer)
    for name, value in changes.items():
        setattr(changed, name, value)
        changed.init_kwargs[name] = value  # what is written
    return changed


def tell_of_unknown_tokens(model: Model) -> None:
    """Warn of a tokenizer whose vocabulary is larger than the model's."""
    largest = -1 if model.tokenizer is None else max(model.tokenizer.get_vocab().values(), default=-1)
    if largest >= model.config.vocab_size:
        _log.warning(
            "the tokenizer knows tokens up to %d, the model has embeddings up to %d: texts with the others will fail",
            largest,
            model.config.vocab_size - 1,
        )


def _changes(model: Model) -> dict[str, Any]:
    """Attribute of the tokenizer → the value that fits."""
    tokenizer, config, changes = model.tokenizer, model.config, {}
    if isinstance(config, GPT2Config) and config.head == "sequence-classification":
        pad = config.pad_token_id
        if pad is not None and 0 <= pad < config.vocab_size and tokenizer.pad_token_id != pad:
            changes["pad_token"] = tokenizer.convert_ids_to_tokens(pad)
    names = list(tokenizer.model_input_names)
    if "token_type_ids" in names and config.table_sizes.get("token_type_ids", 0) < 2:
        changes["model_input_names"] = [name for name in names if name != "token_type_ids"]
    limit, longest = tokenizer.model_max_length, config.max_length
    if longest is not None and longest < limit < _NO_LIMIT:
        changes["model_max_length"] = longest
    return changes
