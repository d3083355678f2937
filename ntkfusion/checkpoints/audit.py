"""The audit: every tensor of a checkpoint against every parameter of the model, all problems in one error.

Shapes and dtypes are compared from the headers; only tensors that passed are read, and then searched for NaN and Inf.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.checkpoints.matching import Found, Matching
from ntkfusion.checkpoints.names import path_of
from ntkfusion.checkpoints.safetensors_reader import FLOATS, SafetensorsFolder
from ntkfusion.errors import CheckpointError
from ntkfusion.models.config import BertConfig
from ntkfusion.models.model import Params, abstract_params


@dataclasses.dataclass(frozen=True)
class Audit:
    """What became of every tensor of a checkpoint that passed.

    Attributes:
        loaded: tensors that are parameters now.
        left_aside: tensors that are not needed → why.
        num_parameters: numbers loaded.
        dtypes: how the loaded tensors were stored → how many of them.
    """

    loaded: tuple[str, ...]
    left_aside: dict[str, str]
    num_parameters: int
    dtypes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """What the headers alone say: parameters that can be read, heads that cannot be used, and problems."""

    readable: dict[str, Found]
    unused: tuple[str, ...]
    problems: tuple[str, ...]


def read_parameters(
    opened: SafetensorsFolder, matching: Matching, config: BertConfig, dtype: str = "float32"
) -> tuple[Params, Audit]:
    """Read the parameters of a model after comparing every tensor with what its configuration expects.

    Args:
        opened: the checkpoint.
        matching: its tensors' accounts.
        config: the configuration, heads included.
        dtype: what the parameters become; whatever float is stored is converted.

    Returns:
        The parameter tree and the audit.

    Raises:
        CheckpointError: with everything that is missing, unexpected, mis-shaped, not a float, NaN or infinite.
    """
    _refuse_absurd_depth(opened, matching, config)
    expected = abstract_params(config)
    comparison = _compare(matching, expected, config)
    problems = list(comparison.problems)
    places = {found.info.name: found.place for found in comparison.readable.values()}
    arrays: dict[str, jax.Array] = {}
    for name, stored in opened.arrays(places):
        array = _converted(stored, dtype)
        problems += _value_problems(name, array)
        if not problems:
            arrays[places[name].path] = jnp.asarray(array.T if places[name].transposed else array)
    if problems:
        raise CheckpointError(opened.source, problems)
    params = jax.tree_util.tree_map_with_path(lambda path, _: arrays[path_of(path)], expected)
    return params, _audit(matching, comparison)


def _audit(matching: Matching, comparison: _Comparison) -> Audit:
    infos = [found.info for found in comparison.readable.values()]
    return Audit(
        loaded=tuple(info.name for info in infos),
        left_aside=matching.left_aside | dict.fromkeys(comparison.unused, matching.table.unused_head),
        num_parameters=sum(math.prod(info.shape) for info in infos),
        dtypes=dict(Counter(info.dtype for info in infos)),
    )


def _refuse_absurd_depth(opened: SafetensorsFolder, matching: Matching, config: BertConfig) -> None:
    """Raise for more layers than the file has tensors: to compare them one by one would take forever."""
    if config.num_hidden_layers > max(len(opened.tensors), 1):
        problem = f"config.json asks for {config.num_hidden_layers} layers, the weights have {len(matching.layers)}"
        raise CheckpointError(opened.source, [*matching.problems, problem])


def _compare(matching: Matching, expected: Params, config: BertConfig) -> _Comparison:
    shapes = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}
    known = {path: found for path, found in matching.found.items() if path in shapes}
    extra = [found for path, found in matching.found.items() if path not in shapes]
    defects = {path: _defects(found, shapes[path]) for path, found in known.items()}
    unused = tuple(found.info.name for found in extra if found.place.head)
    problems = [
        *matching.problems,
        *_layer_problems(matching, config.num_hidden_layers),
        *_missing(matching, shapes),
        *_unexpected(extra, config.num_hidden_layers),
        *(defect for found in defects.values() for defect in found),
    ]
    readable = {path: found for path, found in known.items() if not defects[path]}
    return _Comparison(readable, unused, tuple(problems))


def _layer_problems(matching: Matching, asked: int) -> list[str]:
    """Layers that are missing or too many as a whole: one sentence, not one per tensor."""
    missing, surplus = set(range(asked)) - matching.layers, {layer for layer in matching.layers if layer >= asked}
    return [
        f"config.json asks for {asked} layers; {word}: {', '.join(map(str, sorted(layers)))}"
        for word, layers in (("missing", missing), ("unexpected", surplus))
        if layers
    ]


def _missing(matching: Matching, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    problems = []
    for path in shapes.keys() - matching.found.keys():
        name = matching.table.tensor_of(path)
        place = matching.table.find(name)
        if place is not None and (place.layer is None or place.layer in matching.layers):
            problems.append(f"{name} is missing, expected shape {place.shape_in_file(shapes[path])}")
    return sorted(problems)


def _unexpected(extra: list[Found], num_layers: int) -> list[str]:
    """Parameters of the architecture that this configuration does not have; surplus layers are reported elsewhere."""
    return [
        f"{found.info.name} is unexpected: a model of this configuration does not have it"
        for found in extra
        if not found.place.head and (found.place.layer is None or found.place.layer < num_layers)
    ]


def _defects(found: Found, shape: tuple[int, ...]) -> list[str]:
    """What the header says is wrong with one tensor."""
    info, wanted = found.info, found.place.shape_in_file(shape)
    defects = []
    if info.shape != wanted:
        hint = "; it looks transposed" if info.shape == wanted[::-1] else ""
        defects.append(f"{info.name} has shape {info.shape}, expected {wanted}{hint}")
    if info.dtype not in FLOATS:
        defects.append(f"{info.name} is stored as {info.dtype}, expected floats ({', '.join(FLOATS)})")
    return defects


def _converted(stored: np.ndarray, dtype: str) -> np.ndarray:
    # float64 beyond the range of float32 becomes Inf, which the audit then reports
    with np.errstate(over="ignore", invalid="ignore"):
        return stored.astype(dtype)


def _value_problems(name: str, array: np.ndarray) -> list[str]:
    finite = np.isfinite(array)
    if finite.all():
        return []
    nan = int(np.isnan(array).sum())
    return [f"{name} holds {nan} NaN and {array.size - int(finite.sum()) - nan} infinite of {array.size} values"]
