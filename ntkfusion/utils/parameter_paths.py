"""Which parameters of a network a kernel is about: selected, and put into groups, by their paths."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array

from ntkfusion.errors import InputError


def path_of(path: tuple[Any, ...]) -> str:
    """A key path of a parameter tree as it is written in tables, such as ``layer_0/mlp/w1``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


#: Which parameters: a pattern of paths such as "layer_3/*" or "*/mlp/*", several, or a function of the path.
Select = str | Sequence[str] | Callable[[str], bool]

#: The name of the only group when none are asked for.
ALL = "all"


def parameter_paths(params: Any) -> list[str]:
    """The path of every parameter, in the order of `jax.tree.leaves`: "layer_0/mlp/w1"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def matches(path: str, select: Select) -> bool:
    """Whether a parameter's path fits.

    >>> matches("layer_0/mlp/w1", "*/mlp/*"), matches("layer_10/mlp/w1", ["layer_1/*", "pooler/*"])
    (True, False)
    """
    if callable(select):
        return bool(select(path))
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in ([select] if isinstance(select, str) else select))


def group_leaves(paths: Sequence[str], select: Select | None, groups: Mapping[str, Select] | None) -> dict[int, str]:
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
    chosen = [leaf for leaf, path in enumerate(paths) if select is None or matches(path, select)]
    if groups is None:
        group_of = dict.fromkeys(chosen, ALL)
    else:
        fits = {leaf: [name for name, group in groups.items() if matches(paths[leaf], group)] for leaf in chosen}
        group_of = {leaf: names[0] for leaf, names in fits.items() if names}
        empty = [name for name in groups if name not in group_of.values()]
        if empty:
            raise InputError(f"group {empty[0]!r} fits no parameter; paths look like {', '.join(paths[:3])}")
    if not group_of:
        raise InputError(f"no parameter is selected by {select!r}; paths look like {', '.join(paths[:3])}")
    return group_of


def hashable(select: Select | None) -> Any:
    """The same choice as a key of a dictionary."""
    return select if select is None or isinstance(select, str) or callable(select) else tuple(select)


Params = dict[str, Any]


def subtree(tree: Params, path: str) -> Params:
    """The part of a nested dictionary below a path such as ``layer_0/mlp``; empty if there is none."""
    for name in path.split("/"):
        tree = tree.get(name, {})
    return tree


def with_subtree(tree: Params, path: str, part: Params) -> Params:
    """A copy of a nested dictionary with another part below a path; the rest is shared."""
    name, _, rest = path.partition("/")
    return {**tree, name: with_subtree(tree.get(name, {}), rest, part) if rest else part}


#: Path of a parameter, such as ``layer_0/mlp/w1`` → its value.
Flat = dict[str, Array]


def flatten(params: Params) -> Flat:
    """Nested dictionaries as one dictionary.

    >>> flatten({"layer_0": {"mlp": {"b1": jnp.ones(())}}})
    {'layer_0/mlp/b1': Array(1., dtype=float32)}
    """
    return dict(zip(parameter_paths(params), jax.tree.leaves(params), strict=True))


def unflatten(flat: Flat) -> Params:
    """The inverse of `flatten`.

    >>> unflatten({"layer_0/mlp/experts/w1": jnp.ones(())})
    {'layer_0': {'mlp': {'experts/w1': Array(1., dtype=float32)}}}
    """
    tree: Params = {}
    for path, leaf in flat.items():
        # arrays of mixtures and of coded blocks have slashes in their names
        above, inside, name = path.partition("/mlp/")
        above, _, name = (f"{above}/mlp", "", name) if inside else path.rpartition("/")
        tree = with_subtree(tree, above, {**subtree(tree, above), name: leaf}) if above else {**tree, name: leaf}
    return tree
