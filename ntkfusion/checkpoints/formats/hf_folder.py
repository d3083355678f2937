"""Hugging Face folders: what stands in config.json, and the weights in either of two file formats."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntkfusion.checkpoints.formats.outgoing import Outgoing
from ntkfusion.checkpoints.formats.safetensors import write_sharded
from ntkfusion.checkpoints.formats.statement import CONFIG_KEY, function_fields
from ntkfusion.checkpoints.formats.tensors import FLOATS
from ntkfusion.models.config import JsonObject
from ntkfusion.models.model import Model
from ntkfusion.models.registry import transformers_class, write_config
from ntkfusion.utils.digests import canonical


@dataclasses.dataclass(frozen=True)
class OutgoingModel:
    """A model that is ready to be written.

    Attributes:
        model: with the blocks that its architecture has.
        tensors: its tensors by PyTorch's names.
        digests: of every tensor.
        max_shard_size: bytes of tensors in one file.
    """

    model: Model
    tensors: Sequence[Outgoing]
    digests: Mapping[str, str]
    max_shard_size: int


def write_hf(folder: Path, outgoing: OutgoingModel) -> None:
    """Write config.json and safetensors weights."""
    write_config_file(folder, outgoing)
    metadata = {"format": "pt", CONFIG_KEY: canonical(function_fields(outgoing.model.config))}
    write_sharded(folder, outgoing.tensors, outgoing.digests, metadata, outgoing.max_shard_size)


def write_config_file(folder: Path, outgoing: OutgoingModel) -> None:
    """Write config.json."""
    contents = config_contents(outgoing.model, [tensor.dtype for tensor in outgoing.tensors])
    text = json.dumps(contents, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def config_contents(model: Model, dtypes: Sequence[str]) -> dict[str, Any]:
    """The contents of ``config.json``: the original's, with everything that this library models set anew.

    Args:
        model: an exportable model.
        dtypes: how its tensors are stored.

    Returns:
        Key → value.

    Raises:
        InputError: if transformers has no class for the model.
    """
    config = model.config
    original = {key: value for key, value in model.origin.config.items() if key not in ("auto_map", "torch_dtype")}
    if original.get("id2label") == {}:  # a fresh head, which names nothing
        del original["id2label"]
    # transformers loads a whole model in this dtype: the widest loses nothing
    widest = max({*dtypes}, key=lambda name: (np.dtype(FLOATS[name]).itemsize, name))
    added = {"architectures": [transformers_class(config)], "dtype": np.dtype(FLOATS[widest]).name}
    if len({*dtypes} & {"F16", "BF16"}) == 2 and widest in ("F16", "BF16"):
        added["dtype"] = "float32"
    return original | write_config(config) | _labels(original, config.num_labels) | added


def _labels(original: JsonObject, number: int | None) -> dict[str, Any]:
    """Names for the outputs of a classification head: the original's, if they are as many."""
    if number is None:
        return {}
    names = original.get("id2label")
    if isinstance(names, Mapping) and len(names) == number:
        return {"num_labels": number}
    labels = {str(index): f"LABEL_{index}" for index in range(number)}
    return {"num_labels": number, "id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}
