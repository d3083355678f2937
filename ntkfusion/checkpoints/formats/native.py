"""The library's native format: ``ntkfusion.json`` and ``ntkfusion.safetensors``, for every kind of block.

First how it is written, then how it is read: everything is compared with what the header says before a number is read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion._version import __version__
from ntkfusion.checkpoints.audit import Audit
from ntkfusion.checkpoints.formats.native_layouts import block_layout, described
from ntkfusion.checkpoints.formats.outgoing import STORED, Outgoing
from ntkfusion.checkpoints.formats.safetensors import SafetensorsFolder, open_file, write_safetensors
from ntkfusion.checkpoints.formats.statement import Statement
from ntkfusion.checkpoints.formats.tensors import (
    FLOATS,
    converted,
    read_json_object,
    underflow_problems,
    value_problems,
)
from ntkfusion.errors import CheckpointError, InputError
from ntkfusion.models.config import JsonObject, ModelConfig, check_head, checked_values
from ntkfusion.models.model import Model, Origin, abstract_params
from ntkfusion.models.registry import ARCHITECTURES, architecture_of
from ntkfusion.utils.digests import canonical, digest_text
from ntkfusion.utils.parameter_paths import Params, path_of, with_subtree

HEADER, WEIGHTS = "ntkfusion.json", "ntkfusion.safetensors"

FORMAT, VERSION = "ntkfusion", 1


def native_tensors(model: Model, dtype: str | None) -> tuple[list[Outgoing], dict[str, str]]:
    """The arrays of a model by their paths.

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
        original = model.origin.dtypes.get(
            architecture_of(model.config).names.tensor_of(name.removeprefix("params/"), 0)
        )
    except KeyError:
        original = None
    if original is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            if np.array_equal(array.astype(FLOATS[original]).astype(array.dtype), array):
                return original
    return STORED[array.dtype.name]


def write_native(
    folder: Path, model: Model, tensors: list[Outgoing], shared: Mapping[str, str], digests: Mapping[str, str]
) -> None:
    """Write both files.

    Args:
        folder: where to.
        model: the model.
        tensors: from `native_tensors`.
        shared: from `native_tensors`.
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


def header_digest(contents: JsonObject) -> str:
    """The digest of everything in ``ntkfusion.json`` but itself."""
    return digest_text(canonical({key: value for key, value in contents.items() if key != "digest"}))


_KEYS = {
    "format": str,
    "version": int,
    "written_by": str,
    "architecture": str,
    "config": dict,
    "blocks": list,
    "shared": dict,
    "digests": dict,
    "origin": dict,
    "digest": str,
}


def read_native(folder: Path, source: str, dtype: str) -> tuple[Model, Audit]:
    """The model in a folder of the native format, with an account of its tensors.

    Args:
        folder: the folder.
        source: how the user called it.
        dtype: what the arrays become.

    Returns:
        The model, without its tokenizer, and the audit.

    Raises:
        CheckpointError: for a version, kind or key that is not known, and if anything was changed.
    """
    contents = _checked(read_json_object(folder / HEADER, source), source)
    opened = open_file(folder / WEIGHTS, source)
    opened = dataclasses.replace(opened, statement=Statement(digests=contents["digests"]))
    try:
        config = _config(contents, len(opened.tensors) + len(contents["shared"]))
        expected = _expected(_with_blocks(config, contents, "float32"))
        config = _with_blocks(config, contents, dtype)
    except InputError as error:
        raise CheckpointError(source, [f"{HEADER}: {error}"]) from error
    arrays = _read(opened, _names(expected), contents["shared"], dtype)
    params, constants = _trees(expected, arrays)
    origin = Origin(contents["origin"]["config"], contents["origin"]["dtypes"])
    model = Model(config, params, constants, source=source, origin=origin)
    infos = opened.tensors.values()
    sizes = sum(math.prod(info.shape) for info in infos)
    return model, Audit(tuple(opened.tensors), {}, sizes, dict(Counter(info.dtype for info in infos)))


def _checked(contents: JsonObject, source: str) -> JsonObject:
    """The header, if this version can read it and nobody changed it."""
    if contents.get("format") != FORMAT or contents.get("version") != VERSION:
        problem = (
            f"{HEADER} has the format {contents.get('format')!r} version {contents.get('version')!r}; this version of "
            f"ntkfusion reads {FORMAT!r} version {VERSION}"
        )
        raise CheckpointError(source, [problem])
    wrong = [key for key, kind in _KEYS.items() if not isinstance(contents.get(key), kind)]
    wrong += sorted(contents.keys() - _KEYS.keys())
    if wrong:
        raise CheckpointError(source, [f"{HEADER}: missing, unknown or of another kind: {', '.join(wrong)[:300]}"])
    if not _unchanged(contents):
        raise CheckpointError(source, [f"{HEADER} was changed since ntkfusion wrote it (its digest differs)"])
    parts = [contents["shared"], contents["digests"], contents["origin"].get("dtypes")]
    texts = all(isinstance(part, dict) and all(isinstance(value, str) for value in part.values()) for part in parts)
    if not texts or not isinstance(contents["origin"].get("config"), dict):
        raise CheckpointError(source, [f"{HEADER}: shared, digests and origin are not what they should be"])
    return contents


def _unchanged(contents: JsonObject) -> bool:
    try:
        return header_digest(contents) == contents["digest"]
    except (ValueError, RecursionError):
        return False


def _config(contents: JsonObject, num_arrays: int) -> ModelConfig:
    """The configuration, its blocks still those of the architecture."""
    name, values = contents["architecture"], contents["config"]
    if name not in ARCHITECTURES:
        raise InputError(f"architecture {name!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
    cls = ARCHITECTURES[name].config
    fields = {field.name for field in dataclasses.fields(cls)} - {"mlp_layouts"}
    if values.keys() != fields:
        raise InputError(f"config has missing or unknown keys: {', '.join(sorted(values.keys() ^ fields))[:300]}")
    given = checked_values(
        cls, {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )
    check_head(given["head"], cls.HEADS, ARCHITECTURES[name].names.architecture)
    try:
        config = cls(**given)
    except TypeError as error:  # values of a kind that nothing can be computed with
        raise InputError(f"config has values that cannot be ({error})") from error
    # before anything is done layer by layer
    if config.num_stored_layers > num_arrays:
        raise InputError(f"config asks for {config.num_stored_layers} layers, the weights have {num_arrays} arrays")
    return config


def _with_blocks(config: ModelConfig, contents: JsonObject, dtype: str) -> ModelConfig:
    layouts = tuple(block_layout(block, dtype=dtype) for block in contents["blocks"])
    return dataclasses.replace(config, mlp_layouts=layouts)


def _expected(config: ModelConfig) -> dict[str, Params]:
    """Shapes of all parameters and constants."""
    constants: Params = {}
    try:
        params = abstract_params(config)
        for path, layout in zip(config.block_paths, config.mlp_layouts, strict=False):
            if layout.constants():
                constants = with_subtree(constants, path, layout.constants())
    # whatever shapes that do not fit together make JAX raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"its blocks do not fit together, or not into the network ({reason})") from error
    return {"params": params, "constants": constants}


def _names(expected: dict[str, Params]) -> dict[str, tuple[int, ...]]:
    return {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}


def _read(
    opened: SafetensorsFolder, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, str], dtype: str
) -> dict[str, jax.Array]:
    """Every array by name, once all of the file is accounted for."""
    problems = _header_problems(opened, shapes, shared)
    arrays: dict[str, jax.Array] = {}
    for name, stored in opened.arrays([] if problems else opened.tensors):
        array = converted(stored, dtype)
        problems += opened.statement.tensor_problems(name, stored) or value_problems(name, array)
        problems += underflow_problems(name, stored, array)
        arrays[name] = jnp.asarray(array)
        del stored, array  # before the next one is read
    if problems:
        raise CheckpointError(opened.source, problems)
    return arrays | {name: arrays[other] for name, other in shared.items()}


def _header_problems(
    opened: SafetensorsFolder, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, str]
) -> list[str]:
    tensors = opened.tensors
    problems = [f"{name} is missing" for name in sorted(shapes.keys() - tensors.keys() - shared.keys())]
    problems += [f"{name} is unexpected" for name in sorted((tensors.keys() | shared.keys()) - shapes.keys())]
    problems += [f"{name} is there twice, also as {shared[name]}" for name in sorted(shared.keys() & tensors.keys())]
    problems += [
        f"{name} is {other}, which is missing or of another shape"
        for name, other in shared.items()
        if other not in tensors or shapes.get(name) != shapes.get(other)
    ]
    for name, info in tensors.items():
        if name in shapes and info.shape != shapes[name]:
            problems.append(f"{name} has shape {info.shape}, expected {shapes[name]}")
        if info.dtype not in FLOATS:
            problems.append(f"{name} is stored as {info.dtype}, expected floats ({', '.join(FLOATS)})")
    if opened.statement.digests.keys() != tensors.keys():
        problems.append(f"{HEADER} has digests of other tensors than {WEIGHTS} holds")
    return problems


def _trees(expected: dict[str, Params], arrays: Mapping[str, jax.Array]) -> tuple[Params, Params]:
    whole = jax.tree_util.tree_map_with_path(lambda path, _: arrays[path_of(path)], expected)
    return whole["params"], whole["constants"]
