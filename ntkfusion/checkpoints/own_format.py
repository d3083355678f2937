"""Writing the library's own format: ``ntkfusion.json`` and ``ntkfusion.safetensors``, for every kind of block."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntkfusion._version import __version__
from ntkfusion.checkpoints.digests import canonical, digest_text
from ntkfusion.checkpoints.layouts import described
from ntkfusion.checkpoints.names import path_of
from ntkfusion.checkpoints.outgoing import STORED, Outgoing
from ntkfusion.checkpoints.safetensors_writer import write_safetensors
from ntkfusion.checkpoints.tables import table_of
from ntkfusion.checkpoints.tensors import FLOATS
from ntkfusion.models.model import Model

HEADER, WEIGHTS = "ntkfusion.json", "ntkfusion.safetensors"
FORMAT, VERSION = "ntkfusion", 1


def own_tensors(model: Model, dtype: str | None) -> tuple[list[Outgoing], dict[str, str]]:
    """The arrays of a model by our own paths.

    Args:
        model: any model.
        dtype: how to store every array; None for how the original's was stored if that loses nothing, else as it is in
            memory.

    Returns:
        One tensor for every array, and, for arrays that blocks share, the other names → the name that has the tensor.
    """
    trees = {"params": model.params, "constants": model.constants}
    tensors: list[Outgoing] = []
    shared: dict[str, str] = {}
    seen: dict[int, str] = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        name = path_of(key_path)
        if id(leaf) in seen:
            shared[name] = seen[id(leaf)]
            continue
        seen[id(leaf)] = name
        array = np.asarray(leaf)
        stored = STORED[dtype] if dtype is not None else _lossless(model, name, array)
        tensors.append(Outgoing(name, array, stored))
    return tensors, shared


def _lossless(model: Model, name: str, array: np.ndarray) -> str:
    """How the original's file stored this parameter, if that keeps every bit of it."""
    try:
        original = model.origin.dtypes.get(table_of(model.config).tensor_of(name.removeprefix("params/"), 0))
    except KeyError:
        original = None
    if original is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            if np.array_equal(array.astype(FLOATS[original]).astype(array.dtype), array):
                return original
    return STORED[array.dtype.name]


def write_own(folder: Path, model: Model, tensors: list[Outgoing], shared: Mapping[str, str], digests: Any) -> None:
    """Write both files.

    Args:
        folder: where to.
        model: the model.
        tensors: from `own_tensors`.
        shared: from `own_tensors`.
        digests: tensor → digest.
    """
    contents = header(model, shared, digests)
    (folder / HEADER).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    write_safetensors(folder / WEIGHTS, tensors, {})


def header(model: Model, shared: Mapping[str, str], digests: Mapping[str, str]) -> dict[str, Any]:
    """The contents of ``ntkfusion.json``; docs/formats.md explains them."""
    config = model.config
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "mlp_layouts"}
    contents: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": f"ntkfusion {__version__}",
        "architecture": config.model_type,
        "config": fields,
        "blocks": [described(layout) for layout in config.mlp_layouts],
        "shared": dict(shared),
        "digests": dict(digests),
        "origin": {"config": dict(model.origin.config), "dtypes": dict(model.origin.dtypes)},
    }
    return contents | {"digest": header_digest(contents)}


def header_digest(contents: Mapping[str, Any]) -> str:
    """The digest of everything in ``ntkfusion.json`` but itself."""
    return digest_text(canonical({key: value for key, value in contents.items() if key != "digest"}))
