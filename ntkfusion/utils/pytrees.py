"""Frozen dataclasses as JAX pytrees."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T", bound=type)


def static(**kwargs: Any) -> Any:
    """A dataclass field that is part of the tree's structure, not of its leaves."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: T) -> T:
    """Make a class a frozen dataclass and a JAX pytree; fields made by `static` are structure.

    Unflattening bypasses ``__init__``: inside JAX transformations the leaves may be tracers, shapes or sentinels, which
    no shape check of the constructor should see.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    leaves = tuple(field.name for field in fields if not field.metadata.get("static"))
    structure = tuple(field.name for field in fields if field.metadata.get("static"))

    def flatten_with_keys(tree: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in leaves]
        return children, tuple(getattr(tree, name) for name in structure)

    def unflatten(aux: tuple[Any, ...], children: Any) -> Any:
        tree = object.__new__(cls)
        for name, value in zip((*leaves, *structure), (*children, *aux), strict=True):
            object.__setattr__(tree, name, value)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    return cls
