"""Tensors of a network that something was wrapped around when it was saved: the same without the wrapper's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from ntkfusion.checkpoints.formats.statement import Statement
from ntkfusion.checkpoints.formats.tensors import TensorInfo, TensorSource
from ntkfusion.errors import CheckpointError
from ntkfusion.models.name_table import NameTable

#: What wrappers write in front of every name → who does. None of these words begins a name of an architecture.
WRAPPERS = {
    "module.": "torch.nn.DataParallel",
    "_orig_mod.": "torch.compile",
    "0.auto_model.": "sentence-transformers",
    "auto_model.": "sentence-transformers",
    "base_model.model.": "PEFT",
    "params.": "Flax's variables",
    "model.": "the module or training loop that the network is a part of",
}


@dataclasses.dataclass(frozen=True)
class _Renamed:
    """A checkpoint whose tensors have lost the beginnings of their names."""

    opened: TensorSource
    prefix: str
    tensors: dict[str, TensorInfo]

    @property
    def source(self) -> str:
        return self.opened.source

    @property
    def statement(self) -> Statement:
        return self.opened.statement

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        for name, array in self.opened.arrays([self.prefix + name for name in names]):
            yield name.removeprefix(self.prefix), array


def unwrapped(opened: TensorSource, table: NameTable) -> tuple[TensorSource, str | None]:
    """A checkpoint under its architecture's names.

    Args:
        opened: the checkpoint.
        table: the names.

    Returns:
        The checkpoint, its tensors renamed if all of them have the same beginning that no network has; then also a
        sentence that says so.

    Raises:
        CheckpointError: if some tensors have such a beginning and others have not, or if names are unknown without it
            too.
    """
    strange = [name for name in opened.tensors if not _is_known(table, name)]
    prefix = _common_prefix(opened, table) if len(strange) == len(opened.tensors) else ""
    if prefix:
        _refuse_others(opened, table, prefix)
        tensors = {
            name.removeprefix(prefix): dataclasses.replace(info, name=name.removeprefix(prefix))
            for name, info in opened.tensors.items()
        }
        return _Renamed(opened, prefix, tensors), f"all names begin with {prefix} ({_cause(prefix)}); it is left out"
    _refuse_mixture(opened, table, strange)
    return opened, None


def _is_known(table: NameTable, name: str) -> bool:
    return table.find(name) is not None or table.reason_to_leave(name) is not None


def _wrappers_of(name: str) -> list[str]:
    """The wrappers' beginnings of a name, which may be nested, from the outermost."""
    found, rest = [], name
    while (wrapper := next((each for each in WRAPPERS if rest.startswith(each)), None)) is not None:
        found.append(wrapper)
        rest = rest.removeprefix(wrapper)
    return found


def _wrapper_of(name: str) -> str:
    return "".join(_wrappers_of(name))


def _common_prefix(opened: TensorSource, table: NameTable) -> str:
    """What all names begin with: wrappers that are known, or anything without which all names are known."""
    names = [*opened.tensors]
    wrappers = {_wrapper_of(name) for name in names}
    if len(wrappers) == 1 and wrappers != {""}:
        return wrappers.pop()
    words = names[0].split(".")[:-1] if names else []
    for count in range(1, len(words)):
        prefix = ".".join(words[:count]) + "."
        if not all(name.startswith(prefix) for name in names):
            return ""
        if all(_is_known(table, name.removeprefix(prefix)) for name in names):
            return prefix
    return ""


def _cause(prefix: str) -> str:
    wrappers = _wrappers_of(prefix)
    if "".join(wrappers) != prefix:
        return "from a module that the network is a part of"
    return f"from {' and '.join(WRAPPERS[wrapper] for wrapper in wrappers)}"


def _refuse_others(opened: TensorSource, table: NameTable, prefix: str) -> None:
    """Raise for names that are unknown without their common beginning too."""
    unknown = [name for name in opened.tensors if not _is_known(table, name.removeprefix(prefix))]
    if not unknown:
        return
    problem = (
        f"all names begin with {prefix} ({_cause(prefix)}); without it {len(unknown)} of {len(opened.tensors)} are no "
        f"names of {table.architecture} either ({_some(unknown)})"
    )
    if any(".lora_" in name or ".base_layer." in name for name in unknown):
        problem += ": they are an adapter's; merge it first (merge_and_unload() of PEFT), and save the merged network"
    raise CheckpointError(opened.source, [problem])


def _refuse_mixture(opened: TensorSource, table: NameTable, strange: list[str]) -> None:
    """Raise if the names of some tensors say that they were wrapped, and those of others do not."""
    wrapped = [name for name in strange if _is_known(table, name.removeprefix(_wrapper_of(name)))]
    if not wrapped:
        return
    prefixes = sorted({_wrapper_of(name) for name in wrapped})
    others = [name for name in opened.tensors if name not in {*wrapped}]
    problem = (
        f"the names of {len(wrapped)} tensors begin with {' or '.join(prefixes)} ({_cause(prefixes[0])})"
        + (f", those of {len(others)} others do not ({_some(others)})" if others else "")
        + ": which of them are the network is not clear; save the network alone (its own save_pretrained)"
    )
    raise CheckpointError(opened.source, [problem])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
