"""A parameter's path, such as ``layer_0/mlp/w1``: how it is written, selected, grouped, and found in a tree.

A parameter tree is a nested dictionary, as Flax makes them; functions that only list paths take any pytree. The same
parameters by path, in one dictionary, are called flat.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.tree_util import KeyPath
from jaxtyping import Array

from ntkfusion.errors import InputError

#: A parameter tree, or a part of one: nested dictionaries of arrays.
Params = dict[str, Any]

#: Path of a parameter → the array.
Flat = dict[str, Array]

#: Which parameters: a pattern of paths such as "layer_3/*" or "*/mlp/*", several, or a function of the path.
Select = str | Sequence[str] | Callable[[str], bool]

#: The name of the only group when none are asked for.
ALL = "all"

_Tree = TypeVar("_Tree")


def path_of(path: KeyPath) -> str:
    """A key path of JAX as it is written in tables: ``layer_0/mlp/w1``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parameter_paths(params: object) -> list[str]:
    """The path of every parameter, in the order of `jax.tree.leaves`."""
    return [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def matches(path: str, select: Select) -> bool:
    """Whether a parameter's path fits.

    >>> matches("layer_0/mlp/w1", "*/mlp/*"), matches("layer_10/mlp/w1", ["layer_1/*", "pooler/*"])
    (True, False)
    """
    if callable(select):
        return bool(select(path))
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in ([select] if isinstance(select, str) else select))


def group_parameters(
    paths: Sequence[str], select: Select | None, groups: Mapping[str, Select] | None
) -> dict[int, str]:
    """The group of every selected parameter, by its place among `paths`.

    Args:
        paths: from `parameter_paths`.
        select: which parameters; None for all.
        groups: name → which of them, the first that fits counts; None for one group, `ALL`.

    Returns:
        Place → name of the group; parameters that are not selected or fit no group are left out.

    Raises:
        InputError: if nothing is selected, or a group stays empty.
    """
    chosen = [place for place, path in enumerate(paths) if select is None or matches(path, select)]
    if groups is None:
        group_of = dict.fromkeys(chosen, ALL)
    else:
        fits = {place: [name for name, group in groups.items() if matches(paths[place], group)] for place in chosen}
        group_of = {place: names[0] for place, names in fits.items() if names}
        empty = [name for name in groups if name not in group_of.values()]
        if empty:
            raise InputError(f"group {empty[0]!r} fits no parameter; paths look like {', '.join(paths[:3])}")
    if not group_of:
        raise InputError(f"no parameter is selected by {select!r}; paths look like {', '.join(paths[:3])}")
    return group_of


def hashable(select: Select | None) -> Hashable:
    """The same choice as a key of a dictionary."""
    return select if select is None or isinstance(select, str) or callable(select) else tuple(select)


def subtree(tree: Params, path: str) -> Params:
    """The part of a parameter tree below a path such as ``layer_0/mlp``; empty if there is none."""
    for name in path.split("/"):
        tree = tree.get(name, {})
    return tree


def with_subtree(tree: Params, path: str, part: Params) -> Params:
    """A copy of a parameter tree with another part below a path; the rest is shared."""
    name, _, rest = path.partition("/")
    return {**tree, name: with_subtree(tree.get(name, {}), rest, part) if rest else part}


def flatten(params: object) -> Flat:
    """A parameter tree, or any other pytree of arrays, by path.

    >>> import jax.numpy as jnp
    >>> flatten({"layer_0": {"mlp": {"b1": jnp.ones(())}}})
    {'layer_0/mlp/b1': Array(1., dtype=float32)}
    """
    return dict(zip(parameter_paths(params), jax.tree.leaves(params), strict=True))


def unflatten(flat: Flat) -> Params:
    """The parameter tree of parameters by path: the inverse of `flatten`.

    >>> import jax.numpy as jnp
    >>> unflatten({"layer_0/mlp/experts/w1": jnp.ones(())})
    {'layer_0': {'mlp': {'experts/w1': Array(1., dtype=float32)}}}
    """
    tree: Params = {}
    for path, value in flat.items():
        # arrays of mixtures and of coded blocks have slashes in their names
        above, inside, name = path.partition("/mlp/")
        above, _, name = (f"{above}/mlp", "", name) if inside else path.rpartition("/")
        tree = with_subtree(tree, above, {**subtree(tree, above), name: value}) if above else {**tree, name: value}
    return tree


def exchanged(tree: _Tree, flat: Mapping[str, object]) -> _Tree:
    """A pytree with what is at some paths exchanged, and nothing else looked at.

    Constructors are not called: arrays may be replaced by tracers, shapes, or arrays with a leading axis.
    """
    return jax.tree_util.tree_map_with_path(lambda path, value: flat.get(path_of(path), value), tree)
