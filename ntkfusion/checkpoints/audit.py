"""An account for every tensor of a checkpoint: it is a parameter, it is left aside for a reason, or it is a problem.

The audit: every tensor of a checkpoint against every parameter of the model, all problems in one error.

Shapes and dtypes are compared from the headers; only tensors that passed are read, and then searched for NaN and Inf.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.checkpoints.formats.tensors import FLOATS, TensorInfo, TensorSource, converted, empty, value_problems
from ntkfusion.errors import CheckpointError
from ntkfusion.models.config import ModelConfig
from ntkfusion.models.model import abstract_params
from ntkfusion.models.name_table import NameTable, Place, slot
from ntkfusion.utils.parameter_paths import Params, path_of


@dataclass(frozen=True)
class Found:
    """A tensor of the file and the place it belongs to."""

    info: TensorInfo
    place: Place


@dataclass(frozen=True)
class Matching:
    """The accounts of one checkpoint, from names alone.

    Attributes:
        source: the checkpoint in the user's words.
        table: the names it was matched with.
        found: slot of a parameter (its path, or one expert's part of it) → its tensor.
        left_aside: tensor → why it is not needed.
        problems: tensors with no account.
    """

    source: str
    table: NameTable
    found: dict[str, Found]
    left_aside: dict[str, str]
    problems: tuple[str, ...]

    @property
    def layers(self) -> set[str]:
        """Paths of the layers that the file has tensors of."""
        return {found.place.layer for found in self.found.values() if found.place.layer is not None}

    def shape(self, path: str) -> tuple[int, ...] | None:
        """The shape in the file of the tensor for the parameter `path`; None if there is none."""
        return self.found[path].info.shape if path in self.found else None


def match_tensors(opened: TensorSource, table: NameTable) -> Matching:
    """Match the tensors of a file with an architecture.

    Args:
        opened: the checkpoint, of which only the headers are looked at.
        table: the architecture's names.

    Returns:
        The accounts. Unknown names and two names of one parameter are among its problems.
    """
    found: dict[str, Found] = {}
    left_aside: dict[str, str] = {}
    problems: list[str] = []
    for name, info in sorted(opened.tensors.items()):
        place, reason = table.find(name), table.reason_to_leave(name)
        if reason is not None:
            left_aside[name] = reason
        elif place is None:
            problems.append(f"{name} is unexpected: {table.architecture} has no parameter of this name")
        elif place.slot in found:
            problems.append(f"{name} and {found[place.slot].info.name} are the same parameter, expected one of them")
        else:
            found[place.slot] = Found(info, place)
    return Matching(opened.source, table, found, left_aside, tuple(problems))


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
    """What the headers alone say: slots that can be read, tensors that are not needed, tied ones, and problems."""

    readable: dict[str, Found]
    unused: dict[str, str]
    ties: tuple[tuple[Found, Found], ...]
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
    comparison = _compare(matching, expected, config)
    problems = [*comparison.problems, *_differing_ties(opened, comparison.ties, dtype)]
    places = {found.info.name: found.place for found in comparison.readable.values()}
    assembly = _Assembly(expected, dtype)
    for name, stored in opened.arrays(places):
        place = places[name]
        array = converted(stored, dtype, transposed=place.transposed)
        problems += opened.statement.tensor_problems(name, stored) or value_problems(name, array)
        if not problems:
            assembly.add(place.path, place.expert, array)
        del stored, array  # before the next one is read
    if problems:
        raise CheckpointError(opened.source, problems)
    return assembly.params(), _audit(matching, comparison)


class _Assembly:
    """Parameters from tensors: most as they come, stacked ones expert by expert."""

    def __init__(self, expected: Params, dtype: str) -> None:
        self._expected, self._dtype = expected, dtype
        self._shapes = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(expected)}
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
    infos = [found.info for found in comparison.readable.values()]
    ties = {found.info.name: f"the same numbers as {other.info.name}" for found, other in comparison.ties}
    return Audit(
        loaded=tuple(info.name for info in infos),
        left_aside=matching.left_aside | comparison.unused | ties,
        num_parameters=sum(math.prod(info.shape) for info in infos),
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
    known = {key: found for key, found in matching.found.items() if key in shapes}
    extra = [found for key, found in matching.found.items() if key not in shapes]
    defects = {key: _defects(found, shapes[key]) for key, found in known.items()}
    sound = {key for key, found in defects.items() if not found}
    # an output layer that is not tied is a head's own, which the model may be loaded without
    ties = _ties(matching, [found for found in extra if config.tie_word_embeddings or not found.place.optional], sound)
    tied = {found.info.name for found, _ in ties}
    untied = [found for found in extra if found.info.name not in tied]
    problems = [
        *matching.problems,
        *_layer_problems(matching, config),
        *_missing(matching, shapes),
        *_unexpected(untied, {*config.layer_paths}),
        *(defect for found in defects.values() for defect in found),
    ]
    readable = {key: found for key, found in known.items() if not defects[key]}
    reason = f"the model is loaded with {f'the head {config.head!r}' if config.head else 'no head'}, without this part"
    unused = {found.info.name: reason for found in untied if found.place.optional}
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


def _ties(matching: Matching, extra: list[Found], sound: set[str]) -> tuple[tuple[Found, Found], ...]:
    """Tensors that the model takes from another one, with that one."""
    tied = matching.table.tied
    return tuple(
        (found, matching.found[tied[found.place.path]])
        for found in extra
        if found.place.path in tied and tied[found.place.path] in sound
    )


def _differing_ties(opened: TensorSource, ties: tuple[tuple[Found, Found], ...], dtype: str) -> list[str]:
    problems = []
    for found, other in ties:
        arrays = dict(opened.arrays([found.info.name, other.info.name]))
        one, two = (converted(arrays[info.name], dtype) for info in (found.info, other.info))
        if not np.array_equal(one, two, equal_nan=True):
            problems.append(f"{found.info.name} differs from {other.info.name}, though config.json ties them")
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
    for key in shapes.keys() - matching.found.keys():
        path, _, expert = key.removesuffix("]").partition("[")
        name = matching.table.tensor_of(path, int(expert) if expert else None)
        place = matching.table.find(name)
        if place is not None and (place.layer is None or place.layer in matching.layers):
            problems.append(f"{name} is missing, expected shape {place.shape_in_file(shapes[key])}")
    return sorted(problems)


def _unexpected(extra: list[Found], layers: set[str]) -> list[str]:
    """Parameters of the architecture that this configuration does not have; surplus layers are reported elsewhere."""
    return [
        f"{found.info.name} is unexpected: a model of this configuration does not have it"
        for found in extra
        if not found.place.optional and (found.place.layer is None or found.place.layer in layers)
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
