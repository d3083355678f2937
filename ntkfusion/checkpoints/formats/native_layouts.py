"""Layouts of MLP blocks as JSON values and back; what a name means is looked up in one table, nothing is imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeAlias, get_type_hints

import jax
import numpy as np

from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block, Layout
from ntkfusion.models.blocks.coded import Affine, CodedBlock, KroneckerMatrix, LatentMatrix, LowRankMatrix, MatrixCode
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.gated import GatedBlock
from ntkfusion.models.blocks.masked import MaskedBlock
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.models.config import LARGEST_SIZE, JsonObject

#: What a block can be, and what its parts can be.
BLOCKS: dict[str, type[Block]] = {
    "dense": MLPBlock,
    "factorised": FactorizedBlock,
    "masked": MaskedBlock,
    "coded": CodedBlock,
    "gated": GatedBlock,
    "mixture": MixtureBlock,
}

PARTS: dict[str, type[MatrixCode | Affine]] = {
    "latent": LatentMatrix,
    "kronecker": KroneckerMatrix,
    "low-rank": LowRankMatrix,
    "affine": Affine,
}

#: A block or a part of one.
Part: TypeAlias = Block | MatrixCode | Affine

_KINDS: dict[str, type[Part]] = {**BLOCKS, **PARTS}

_NAMES = {cls: name for name, cls in _KINDS.items()}

#: Axes of an array, and blocks within blocks.
_MOST_AXES, _MOST_DEPTH = 5, 5


def described(layout: Any) -> Any:
    """A layout as JSON values: ``{"kind": ..., field: ...}`` with a shape and a dtype for every array."""
    if isinstance(layout, tuple):
        return [described(part) for part in layout]
    if isinstance(layout, jax.ShapeDtypeStruct):
        return {"shape": list(layout.shape), "dtype": np.dtype(layout.dtype).name}
    if type(layout) in _NAMES:
        fields = {field.name: described(getattr(layout, field.name)) for field in dataclasses.fields(layout)}
        return {"kind": _NAMES[type(layout)], **fields}
    return layout


def block_layout(description: Any, *, dtype: str) -> Layout:
    """The inverse of `described` for a block.

    Args:
        description: JSON values.
        dtype: the widest dtype that the arrays may have in memory.

    Returns:
        The layout; whether its arrays fit together is not looked at.

    Raises:
        InputError: for an unknown kind or key, and for shapes and values that cannot be.
    """
    kind = description.get("kind") if isinstance(description, dict) else None
    if not isinstance(kind, str) or kind not in BLOCKS:
        raise InputError(f"a block of the kind {kind!r}; this version knows {', '.join(BLOCKS)}")
    return _node(description, dtype, 0)


def _node(description: Any, dtype: str, depth: int) -> Any:
    if depth > _MOST_DEPTH:
        raise InputError(f"a block with parts more than {_MOST_DEPTH} deep")
    if description is None:
        return None
    if isinstance(description, list):
        return tuple(_node(part, dtype, depth + 1) for part in description)
    if not isinstance(description, dict):
        raise InputError(f"a block with {description!r} where a part was expected")
    return _part(description, dtype, depth) if "kind" in description else _array(description, dtype)


def _part(description: JsonObject, dtype: str, depth: int) -> Part:
    kind = description["kind"]
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(f"a part of the kind {kind!r}; this version knows {', '.join(_KINDS)}")
    cls = _KINDS[kind]
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if description.keys() != {"kind", *fields}:
        raise InputError(f"a {kind} part with the keys {_listed(description)}, expected {_listed({'kind', *fields})}")
    # field by field: the constructor would look at shapes, and these are arrays that are not there yet
    part = object.__new__(cls)
    static = static_types(cls)
    for name in fields:
        value = description[name]
        if name not in static:
            value = _node(value, dtype, depth + 1)
        elif not _FITS[static[name]](value):
            raise InputError(f"a block whose {name} is {value!r}")
        object.__setattr__(part, name, value)
    return part


@cache
def static_types(cls: type[Part]) -> Mapping[str, object]:
    """The fields of a kind of block or part that are no arrays → their types."""
    types = get_type_hints(cls)
    return {field.name: types[field.name] for field in dataclasses.fields(cls) if field.metadata.get("static")}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


#: Type of a field that is no array → whether it can have a value.
_FITS: dict[object, Callable[[object], bool]] = {
    str: lambda value: isinstance(value, str),
    bool: lambda value: isinstance(value, bool),
    int | None: lambda value: value is None or _is_count(value),
}


def _array(description: JsonObject, dtype: str) -> jax.ShapeDtypeStruct:
    shape, stored = description.get("shape"), description.get("dtype")
    if description.keys() != {"shape", "dtype"} or not isinstance(shape, list) or stored not in ("float32", "float64"):
        raise InputError(f"a block with an array described as {str(description)[:100]}")
    if len(shape) > _MOST_AXES or not all(map(_is_size, shape)):
        raise InputError(f"a block with an array of the shape {str(shape)[:100]}")
    return jax.ShapeDtypeStruct(tuple(shape), min(np.dtype(dtype), np.dtype(stored), key=lambda one: one.itemsize))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_SIZE


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, keys)))[:200]
