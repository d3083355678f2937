"""Name tables: which tensor of a Hugging Face checkpoint is which parameter, as data with one small interpreter.

One table per architecture (`bert_names` is the first). The same table serves both directions: `NameTable.find` when a
file is read, `NameTable.named_tensors` when parameters (or gradients, or anything of their structure) go to PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

#: Stands for the number of a layer in patterns and paths.
LAYER = "{layer}"
# at most nine digits: a longer number is no layer, and Python refuses to convert a very long one
_NUMBER = "(0|[1-9][0-9]{0,8})"


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
        tensor: name of the tensor in the checkpoint, with `LAYER` for the number of the layer.
        path: the parameter's path in the tree, joined by slashes, with `LAYER` likewise.
        transposed: whether the two axes are exchanged: PyTorch's Linear stores (out, in), we store (in, out).
        aliases: older names of the same tensor.
    """

    tensor: str
    path: str
    transposed: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs.

    Attributes:
        path: the parameter's path in the tree.
        transposed: whether its axes are exchanged on the way.
        layer: the layer it is in, or None.
        head: whether it belongs to a head.
    """

    path: str
    transposed: bool
    layer: int | None
    head: bool

    def shape_in_file(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a parameter of shape `shape` has in the checkpoint."""
        return shape[::-1] if self.transposed else shape


@dataclass(frozen=True)
class NameTable:
    """The names of one architecture.

    Attributes:
        architecture: its name, for messages.
        prefix: in front of the names of `base` in checkpoints that have a head; optional in every file.
        base: the tensors of the bare network.
        heads: the tensors of the heads we model.
        left_aside: regular expression of names we know and do not need → the reason.
        unused_head: the reason to leave the tensors of `heads` aside in a model that cannot use them.
    """

    architecture: str
    prefix: str
    base: tuple[Rule, ...]
    heads: tuple[Rule, ...]
    left_aside: Mapping[str, str]
    unused_head: str

    def find(self, name: str) -> Place | None:
        """The place of the tensor `name`, with or without prefix; None if it is no parameter."""
        for rules, plain in ((self.base, name.removeprefix(self.prefix)), (self.heads, name)):
            for rule in rules:
                number = _layer_number((rule.tensor, *rule.aliases), plain)
                if number is not None:
                    layer = int(number) if number else None
                    return Place(rule.path.replace(LAYER, number), rule.transposed, layer, head=rules is self.heads)
        return None

    def reason_to_leave(self, name: str) -> str | None:
        """Why the tensor `name` is left aside on purpose; None if it is not."""
        return next((reason for pattern, reason in self.left_aside.items() if re.fullmatch(pattern, name)), None)

    def named_tensors(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The leaves of a parameter tree by the names, and with the axes, that PyTorch's class of this model has.

        Args:
            params: a tree with the structure of `Model.params`: parameters, gradients, shapes of arrays.

        Returns:
            Tensor name → leaf. The base has the table's prefix if there is a head, as in Hugging Face's files.

        Raises:
            KeyError: for a leaf that the table does not know.
        """
        leaves = [(self._rule_of(path_of(path)), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
        prefix = self.prefix if any(rule in self.heads for (rule, _), _ in leaves) else ""
        return {
            (name if rule in self.heads else prefix + name): leaf.T if rule.transposed else leaf
            for (rule, name), leaf in leaves
        }

    def tensor_of(self, path: str) -> str:
        """The name, without prefix, of the tensor for the parameter at `path`.

        Raises:
            KeyError: for a path that the table does not know.
        """
        return self._rule_of(path)[1]

    def _rule_of(self, path: str) -> tuple[Rule, str]:
        for rule in (*self.base, *self.heads):
            number = _layer_number((rule.path,), path)
            if number is not None:
                return rule, rule.tensor.replace(LAYER, number)
        raise KeyError(f"no {self.architecture} checkpoint has a tensor for the parameter {path}")


def _layer_number(patterns: tuple[str, ...], text: str) -> str | None:
    """The layer's number in a text that one of the patterns describes ("" if it has none); None for other texts."""
    for pattern in patterns:
        found = re.fullmatch(re.escape(pattern).replace(re.escape(LAYER), _NUMBER), text)
        if found:
            return found[1] if found.groups() else ""
    return None


def path_of(path: tuple[Any, ...]) -> str:
    """A key path of a parameter tree as it is written in tables, such as ``layer_0/mlp/w1``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
