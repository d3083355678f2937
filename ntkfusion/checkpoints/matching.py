"""An account for every tensor of a checkpoint: it is a parameter, it is left aside for a reason, or it is a problem."""

from __future__ import annotations

from dataclasses import dataclass

from ntkfusion.checkpoints.names import NameTable, Place
from ntkfusion.checkpoints.tensors import TensorInfo, TensorSource


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
