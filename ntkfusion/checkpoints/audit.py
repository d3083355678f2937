"""The audit: every tensor of a checkpoint against every parameter of the model, all problems in one error.

First by names alone: a tensor is a parameter, is left aside for a reason, or is a problem (`match_tensors`). Then
shapes and dtypes are compared from the headers; only tensors that passed are read, and searched for NaN and Inf.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.checkpoints.formats.tensors import (
    FLOATS,
    TensorInfo,
    TensorSource,
    converted,
    empty,
    underflow_problems,
    value_problems,
)
from ntkfusion.errors import CheckpointError
from ntkfusion.models.config import ModelConfig
from ntkfusion.models.model import abstract_params
from ntkfusion.models.name_table import NameTable, Place, slot
from ntkfusion.utils.parameter_paths import Params, path_of


@dataclass(frozen=True)
class MatchedTensor:
    """A tensor of the file and the place it belongs to."""

    info: TensorInfo
    place: Place


#: The paths where word embeddings are: an output layer is tied to one of them if its configuration says so.
_TABLES = "embeddings/"

#: Tensors with the one that holds the same numbers.
_Ties: TypeAlias = tuple[tuple[MatchedTensor, MatchedTensor], ...]


@dataclass(frozen=True)
class Matching:
    """The accounts of one checkpoint, from names alone.

    Attributes:
        source: the checkpoint in the user's words.
        table: the names it was matched with.
        matched: slot of a parameter (its path, or one expert's part of it) → its tensor.
        left_aside: tensor → why it is not needed.
        problems: tensors with no account.
    """

    source: str
    table: NameTable
    matched: dict[str, MatchedTensor]
    left_aside: dict[str, str]
    problems: tuple[str, ...]

    @property
    def layers(self) -> set[str]:
        """Paths of the layers that the file has tensors of."""
        return {tensor.place.layer for tensor in self.matched.values() if tensor.place.layer is not None}

    def shape(self, path: str) -> tuple[int, ...] | None:
        """The shape in the file of the tensor for the parameter `path`; None if there is none."""
        return self.matched[path].info.shape if path in self.matched else None


def match_tensors(opened: TensorSource, table: NameTable) -> Matching:
    """Match the tensors of a file with an architecture.

    Args:
        opened: the checkpoint, of which only the headers are looked at.
        table: the architecture's names.

    Returns:
        The accounts. Unknown names and two names of one parameter are among its problems.
    """
    matched: dict[str, MatchedTensor] = {}
    left_aside: dict[str, str] = {}
    problems: list[str] = []
    for name, info in sorted(opened.tensors.items()):
        place, reason = table.find(name), table.reason_to_leave(name)
        if reason is not None:
            left_aside[name] = reason
        elif place is None:
            problems.append(f"{name} is unexpected: {table.architecture} has no parameter of this name")
        elif place.slot in matched:
            problems.append(f"{name} and {matched[place.slot].info.name} are the same parameter, expected one of them")
        else:
            matched[place.slot] = MatchedTensor(info, place)
    return Matching(opened.source, table, matched, left_aside, tuple(problems))


@dataclass(frozen=True)
class Audit:
    """What became of every tensor of a checkpoint that passed.

    Attributes:
        loaded: tensors that are parameters now.
        left_aside: tensors that are not needed → why.
        num_parameters: numbers loaded.
        dtypes: how the loaded tensors were stored → how many of them.
        notes: what else was done to make parameters of the tensors, such as names that lost their beginning.
    """

    loaded: tuple[str, ...]
    left_aside: dict[str, str]
    num_parameters: int
    dtypes: dict[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Comparison:
    """What the headers alone say: slots that can be read, tensors that are not needed, tied ones, and problems.

    One tensor may be in two slots: where a file has it once, because the two are tied there.
    """

    readable: dict[str, MatchedTensor]
    unused: dict[str, str]
    ties: _Ties
    problems: tuple[str, ...]


def read_parameters(
    opened: TensorSource, matching: Matching, config: ModelConfig, dtype: str = "float32"
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
        CheckpointError: with everything that is missing, unexpected, mis-shaped, not a float, NaN or infinite, and
            with tied tensors that differ, or that differ from what this library wrote.
    """
    _refuse_absurd_sizes(opened, matching, config)
    expected = abstract_params(config)
    comparison = _compare(_with_stand_ins(matching, _slot_shapes(matching, expected), config), expected, config)
    problems = [*comparison.problems, *_differing_ties(opened, comparison.ties, dtype)]
    places: dict[str, list[Place]] = {}
    for tensor in comparison.readable.values():
        places.setdefault(tensor.info.name, []).append(tensor.place)
    assembly = _Assembly(expected, dtype)
    for name, stored in opened.arrays(places):
        problems += opened.statement.tensor_problems(name, stored)
        for place in places[name] if not problems else places[name][:1]:
            array = converted(stored, dtype, transposed=place.transposed)
            problems += value_problems(name, array) + underflow_problems(name, stored, array)
            if not problems:
                assembly.add(place.path, place.expert, array)
            del array
        del stored  # before the next one is read
    if problems:
        raise CheckpointError(opened.source, problems)
    return assembly.params(), _audit(matching, comparison)


def _with_stand_ins(matching: Matching, shapes: Mapping[str, tuple[int, ...]], config: ModelConfig) -> Matching:
    """The accounts, with the tensor of a tied parameter in the place of one that is needed and not in the file.

    Transformers 4 and its Flax classes store a decoder's two biases once, whether its matrix is tied or not; some
    savers keep the output layer's name of a tied matrix and drop the embedding's.
    """
    found = dict(matching.matched)
    for one, other in matching.table.tied.items():
        if other.startswith(_TABLES) and not config.tie_word_embeddings:
            continue
        for needed, there in ((one, other), (other, one)):
            if needed in shapes and needed not in found and there in found:
                tensor = found[there] if there in shapes else found.pop(there)
                found[needed] = MatchedTensor(tensor.info, _place_of(matching, needed))
    return replace(matching, matched=found)


def _place_of(matching: Matching, path: str) -> Place:
    place = matching.table.find(matching.table.tensor_of(path))
    assert place is not None  # the name is the table's own
    return place


class _Assembly:
    """Parameters from tensors: most as they come, stacked ones expert by expert."""

    def __init__(self, expected: Params, dtype: str) -> None:
        self._expected, self._dtype = expected, dtype
        self._shapes = {
            path_of(path): parameter.shape for path, parameter in jax.tree_util.tree_leaves_with_path(expected)
        }
        self._whole: dict[str, jax.Array] = {}
        self._stacks: dict[str, np.ndarray] = {}

    def add(self, path: str, expert: int | None, array: np.ndarray) -> None:
        """Put an array at a path, or in its place in a stack."""
        if expert is None:
            self._whole[path] = jnp.asarray(array)
            return
        if path not in self._stacks:
            self._stacks[path] = empty(self._shapes[path], self._dtype)
        self._stacks[path][expert] = array

    def params(self) -> Params:
        """The tree; everything must have been added."""
        whole = self._whole | {path: jnp.asarray(self._stacks.pop(path)) for path in [*self._stacks]}
        return jax.tree_util.tree_map_with_path(lambda path, _: whole[path_of(path)], self._expected)


def _audit(matching: Matching, comparison: _Comparison) -> Audit:
    slots = [tensor.info for tensor in comparison.readable.values()]
    infos = [*{info.name: info for info in slots}.values()]
    ties = {tensor.info.name: f"the same numbers as {other.info.name}" for tensor, other in comparison.ties}
    return Audit(
        loaded=tuple(info.name for info in infos),
        left_aside=matching.left_aside | comparison.unused | ties,
        num_parameters=sum(math.prod(info.shape) for info in slots),
        dtypes=dict(Counter(info.dtype for info in infos)),
    )


def _refuse_absurd_sizes(opened: TensorSource, matching: Matching, config: ModelConfig) -> None:
    """Raise for more layers or experts than the file has tensors: to compare them one by one would take forever."""
    there = max(len(opened.tensors), 1)
    if config.num_stored_layers > there:
        problem = f"config.json asks for {config.num_stored_layers} layers, the weights have {len(matching.layers)}"
    elif config.fewest_tensors > there:
        problem = f"config.json asks for at least {config.fewest_tensors} tensors, the weights have {there}"
    else:
        return
    raise CheckpointError(opened.source, [*matching.problems, problem])


def _compare(matching: Matching, expected: Params, config: ModelConfig) -> _Comparison:
    shapes = _slot_shapes(matching, expected)
    known = {key: tensor for key, tensor in matching.matched.items() if key in shapes}
    extra = [tensor for key, tensor in matching.matched.items() if key not in shapes]
    defects = {key: _defects(tensor, shapes[key]) for key, tensor in known.items()}
    sound = {key for key, problems in defects.items() if not problems}
    # an output layer that is not tied is a head's own, which the model may be loaded without
    candidates = [tensor for tensor in extra if config.tie_word_embeddings or not tensor.place.optional]
    ties = _ties(matching, candidates, sound)
    tied = {tensor.info.name for tensor, _ in ties}
    untied = [tensor for tensor in extra if tensor.info.name not in tied]
    problems = [
        *matching.problems,
        *_layer_problems(matching, config),
        *_missing(matching, shapes),
        *_unexpected(untied, {*config.layer_paths}),
        *(defect for each in defects.values() for defect in each),
    ]
    readable = {key: tensor for key, tensor in known.items() if not defects[key]}
    reason = f"the model is loaded with {f'the head {config.head!r}' if config.head else 'no head'}, without this part"
    unused = {tensor.info.name: reason for tensor in untied if tensor.place.optional}
    return _Comparison(readable, unused, ties, tuple(problems))


def _slot_shapes(matching: Matching, expected: Params) -> dict[str, tuple[int, ...]]:
    """Slot → shape of everything the model needs, in our axes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        path = path_of(key_path)
        if matching.table.has_experts(path):
            shapes |= {slot(path, expert): leaf.shape[1:] for expert in range(leaf.shape[0])}
        else:
            shapes[path] = leaf.shape
    return shapes


def _ties(
    matching: Matching, extra: list[MatchedTensor], sound: set[str]
) -> tuple[tuple[MatchedTensor, MatchedTensor], ...]:
    """Tensors that the model takes from another one, with that one."""
    tied = matching.table.tied
    return tuple(
        (tensor, matching.matched[tied[tensor.place.path]])
        for tensor in extra
        if tensor.place.path in tied and tied[tensor.place.path] in sound
    )


def _differing_ties(
    opened: TensorSource, ties: tuple[tuple[MatchedTensor, MatchedTensor], ...], dtype: str
) -> list[str]:
    problems = []
    for tensor, other in ties:
        arrays = dict(opened.arrays([tensor.info.name, other.info.name]))
        one, two = (converted(arrays[info.name], dtype) for info in (tensor.info, other.info))
        if not np.array_equal(one, two, equal_nan=True):
            problems.append(f"{tensor.info.name} differs from {other.info.name}, though config.json ties them")
    return problems


def _layer_problems(matching: Matching, config: ModelConfig) -> list[str]:
    """Layers that are missing or too many as a whole: one sentence, not one per tensor."""
    asked = [*config.layer_paths]
    missing = [layer for layer in asked if layer not in matching.layers]
    surplus = sorted(matching.layers - {*asked}, key=lambda path: (len(path), path))
    return [
        f"config.json asks for {len(asked)} layers; {word}: {', '.join(map(_short, layers))}"
        for word, layers in (("missing", missing), ("unexpected", surplus))
        if layers
    ]


def _short(layer: str) -> str:
    return layer.removeprefix("layer_")


def _missing(matching: Matching, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    problems = []
    for key in shapes.keys() - matching.matched.keys():
        path, _, expert = key.removesuffix("]").partition("[")
        name = matching.table.tensor_of(path, int(expert) if expert else None)
        place = matching.table.find(name)
        if place is not None and (place.layer is None or place.layer in matching.layers):
            problems.append(f"{name} is missing, expected shape {place.shape_in_file(shapes[key])}")
    return sorted(problems)


def _unexpected(extra: list[MatchedTensor], layers: set[str]) -> list[str]:
    """Parameters of the architecture that this configuration does not have; surplus layers are reported elsewhere."""
    return [
        f"{tensor.info.name} is unexpected: a model of this configuration does not have it"
        for tensor in extra
        if not tensor.place.optional and (tensor.place.layer is None or tensor.place.layer in layers)
    ]


def _defects(tensor: MatchedTensor, shape: tuple[int, ...]) -> list[str]:
    """What the header says is wrong with one tensor."""
    info, wanted = tensor.info, tensor.place.shape_in_file(shape)
    defects = []
    if info.shape != wanted:
        hint = "; it looks transposed" if info.shape == wanted[::-1] else ""
        defects.append(f"{info.name} has shape {info.shape}, expected {wanted}{hint}")
    if info.dtype not in FLOATS:
        defects.append(f"{info.name} is stored as {info.dtype}, expected floats ({', '.join(FLOATS)})")
    return defects
