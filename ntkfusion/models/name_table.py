"""Name tables: which tensor of a Hugging Face checkpoint is which parameter, as data with one small interpreter.

One table per architecture; its record in `ntkfusion.models.registry` holds it. The same table serves both directions:
`NameTable.find` when a file is read, `NameTable.named_tensors` when parameters (or gradients, or anything of their
structure) go to PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax

from ntkfusion.models.config import Head
from ntkfusion.utils.parameter_paths import Params, path_of

#: Stand for the number of a layer and of an expert in patterns and paths.
LAYER, EXPERT = "{layer}", "{expert}"

# at most nine digits: a longer number is no layer, and Python refuses to convert a very long one
_NUMBER = "(0|[1-9][0-9]{0,8})"


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
        tensor: name of the tensor in the checkpoint, with `LAYER` for the number of the layer; with `EXPERT` for the
            number of an expert, whose tensors are stacked along a first axis.
        path: the parameter's path in the tree, joined by slashes, with `LAYER` likewise.
        transposed: whether the two axes are exchanged: PyTorch's Linear stores (out, in), we store (in, out).
        aliases: older names of the same tensor.
        optional: whether models may lack the parameter (a pooler), so that a file may hold it for nothing.
    """

    tensor: str
    path: str
    transposed: bool = False
    aliases: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs.

    Attributes:
        path: the parameter's path in the tree.
        transposed: whether its axes are exchanged on the way.
        layer: path of the layer it is in, or None.
        expert: the index along the parameter's first axis, or None if it is the whole parameter.
        optional: whether a model may do without it: it belongs to a head, or to a part that some models lack.
    """

    path: str
    transposed: bool = False
    layer: str | None = None
    expert: int | None = None
    optional: bool = False

    @property
    def slot(self) -> str:
        """The parameter, or one expert's part of it."""
        return slot(self.path, self.expert)

    def shape_in_file(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the tensor has in the checkpoint, from that of its slot."""
        return shape[::-1] if self.transposed else shape


def slot(path: str, expert: int | None) -> str:
    """A name for a parameter, or for one expert's part of it."""
    return path if expert is None else f"{path}[{expert}]"


@dataclass(frozen=True)
class NameTable:
    """The names of one architecture.

    Attributes:
        architecture: its name, for messages.
        prefix: in front of the names of `base` in checkpoints that have a head; optional in every file.
        base: the tensors of the bare network.
        heads: head → its own tensors.
        labels: head → path of a parameter of that head that has one column, or entry, per label.
        tied: path → the other path with the same numbers, wherever the former is not a parameter of its own.
        left_aside: regular expression of names we know and do not need → the reason.
    """

    architecture: str
    prefix: str
    base: tuple[Rule, ...]
    heads: Mapping[Head, tuple[Rule, ...]] = field(default_factory=dict)
    labels: Mapping[Head, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    left_aside: Mapping[str, str] = field(default_factory=dict)

    @property
    def head_rules(self) -> tuple[Rule, ...]:
        """The rules of all heads; what two heads have in common is there once."""
        return tuple(dict.fromkeys(rule for rules in self.heads.values() for rule in rules))

    def find(self, name: str) -> Place | None:
        """The place of the tensor `name`, with or without prefix; None if it is no parameter."""
        for rules, plain in ((self.base, name.removeprefix(self.prefix)), (self.head_rules, name)):
            for rule in rules:
                numbers = _numbers((rule.tensor, *rule.aliases), plain)
                if numbers is not None:
                    return _place(rule, numbers, optional=rule.optional or rules is not self.base)
        return None

    def reason_to_leave(self, name: str) -> str | None:
        """Why the tensor `name` is left aside on purpose; None if it is not."""
        return next((reason for pattern, reason in self.left_aside.items() if re.fullmatch(pattern, name)), None)

    def named_tensors(self, params: Params, *, head: Head | None) -> Params:
        """The parameters of a tree by the names, and with the axes, that PyTorch's class of this model has.

        Args:
            params: a tree with the structure of `Model.params`: parameters, gradients, shapes of arrays.
            head: the model's head; with one, the base has the table's prefix, as in Hugging Face's files.

        Returns:
            Tensor name → parameter; of stacked experts one each. Tied tensors are there once.

        Raises:
            KeyError: for a parameter that the table does not know.
        """
        prefix = "" if head is None else self.prefix
        named = {}
        for path, parameter in jax.tree_util.tree_leaves_with_path(params):
            rule, numbers = self._rule_of(path_of(path))
            start = prefix if rule in self.base else ""
            for name, part in _parts(start + _filled(rule.tensor, numbers), parameter):
                named[name] = part.T if rule.transposed else part
        return named

    def tensor_of(self, path: str, expert: int | None = None) -> str:
        """The name, without prefix, of the tensor for the parameter at `path`, or for one expert's part of it.

        Raises:
            KeyError: for a path that the table does not know.
        """
        rule, numbers = self._rule_of(path)
        return _filled(rule.tensor, numbers | ({} if expert is None else {EXPERT: str(expert)}))

    def has_experts(self, path: str) -> bool:
        """Whether the parameter at `path` is stacked from one tensor per expert.

        Raises:
            KeyError: for a path that the table does not know.
        """
        return EXPERT in self._rule_of(path)[0].tensor

    def _rule_of(self, path: str) -> tuple[Rule, dict[str, str]]:
        for rule in (*self.base, *self.head_rules):
            numbers = _numbers((rule.path,), path)
            if numbers is not None:
                return rule, numbers
        raise KeyError(f"no {self.architecture} checkpoint has a tensor for the parameter {path}")


def _place(rule: Rule, numbers: Mapping[str, str], *, optional: bool) -> Place:
    layer = None
    if LAYER in rule.path:
        start, _, rest = rule.path.partition(LAYER)
        layer = _filled(start + LAYER + rest.partition("/")[0], numbers)
    expert = int(numbers[EXPERT]) if EXPERT in numbers else None
    return Place(_filled(rule.path, numbers), rule.transposed, layer, expert, optional)


def _parts(name: str, parameter: Any) -> Iterator[tuple[str, Any]]:
    """The tensors that a parameter is in a checkpoint: itself, or one per expert."""
    if EXPERT not in name:
        yield name, parameter
        return
    for expert in range(parameter.shape[0]):
        yield name.replace(EXPERT, str(expert)), parameter[expert]


def _filled(pattern: str, numbers: Mapping[str, str]) -> str:
    for mark, number in numbers.items():
        pattern = pattern.replace(mark, number)
    return pattern


@lru_cache(maxsize=4096)
def _regex(pattern: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """The pattern as a regular expression, and its marks in order."""
    pieces = re.split(f"({re.escape(LAYER)}|{re.escape(EXPERT)})", pattern)
    marks = tuple(piece for piece in pieces if piece in (LAYER, EXPERT))
    return re.compile("".join(_NUMBER if piece in marks else re.escape(piece) for piece in pieces)), marks


def _numbers(patterns: tuple[str, ...], text: str) -> dict[str, str] | None:
    """The numbers for the marks of the first pattern that describes a text; None if none does."""
    for pattern in patterns:
        regex, marks = _regex(pattern)
        found = regex.fullmatch(text)
        if found:
            return dict(zip(marks, found.groups(), strict=True))
    return None


def linear(
    tensor: str, path: str, weight: str = "kernel", bias: str = "bias", *, optional: bool = False
) -> tuple[Rule, Rule]:
    """PyTorch's Linear."""
    return (
        Rule(f"{tensor}.weight", f"{path}/{weight}", transposed=True, optional=optional),
        Rule(f"{tensor}.bias", f"{path}/{bias}", optional=optional),
    )


def layer_norm(tensor: str, path: str) -> tuple[Rule, Rule]:
    """A LayerNorm."""
    # TensorFlow's names live on in early PyTorch checkpoints
    scale = Rule(f"{tensor}.weight", f"{path}/scale", aliases=(f"{tensor}.gamma",))
    return scale, Rule(f"{tensor}.bias", f"{path}/bias", aliases=(f"{tensor}.beta",))
