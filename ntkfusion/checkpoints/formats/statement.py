"""What files written by this library say about themselves, so that damage and edits are noticed when they are read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping

import numpy as np

from ntkfusion.models.config import JsonObject, ModelConfig
from ntkfusion.utils.digests import canonical, digest

#: Keys of metadata: the fields of the configuration that decide the function, and, in front of a tensor, its digest.
PREFIX = "ntkfusion."

CONFIG_KEY = f"{PREFIX}config"

TENSOR_KEY = f"{PREFIX}digest/"


def function_fields(config: ModelConfig) -> JsonObject:
    """The fields of a configuration that decide what a model computes, by name, as JSON values.

    Dropout and initialisation only matter for training; block layouts are not in ``config.json``.
    """
    names = [field.name for field in dataclasses.fields(config) if field.name != "mlp_layouts"]
    fields = {name: getattr(config, name) for name in names if "drop" not in name and name != "initializer_range"}
    return json.loads(canonical(fields))


@dataclasses.dataclass(frozen=True)
class Statement:
    """What a checkpoint says about itself; empty for one that another program wrote.

    Attributes:
        fields: `function_fields` of the configuration it was written with.
        digests: tensor → digest.
    """

    fields: JsonObject = dataclasses.field(default_factory=dict)
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def config_problems(self, config: ModelConfig) -> list[str]:
        """In which way a configuration is not the one that the checkpoint was written with."""
        found = function_fields(config) if self.fields else {}
        stated = {**{name: self.fields.get(name) for name in found}, **self.fields}
        return [
            f"config.json was changed since ntkfusion wrote this folder: {name} was {json.dumps(value)} and is now "
            f"{json.dumps(found.get(name))}, which is another function; restore it"
            for name, value in stated.items()
            if found.get(name) != value
        ]

    def tensor_problems(self, name: str, stored: np.ndarray) -> list[str]:
        """Whether a tensor is not the one that was written."""
        if not self.digests or self.digests.get(name) == digest(stored):
            return []
        return [f"{name} is not what ntkfusion wrote (its digest differs): the file is damaged, or was changed"]


def read_statement(metadata: Mapping[str, str], tensors: Collection[str], file: str, problems: list[str]) -> Statement:
    """What the metadata of one file say about the tensors in it.

    Args:
        metadata: key → text.
        tensors: the tensors that the file holds.
        file: its name, for problems.
        problems: takes what is wrong.

    Returns:
        The statement; empty if there is none, or something is wrong.
    """
    if not any(key.startswith(PREFIX) for key in metadata):
        return Statement()
    digests = {key.removeprefix(TENSOR_KEY): value for key, value in metadata.items() if key.startswith(TENSOR_KEY)}
    try:
        fields = json.loads(metadata.get(CONFIG_KEY, ""))
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict) and fields and digests.keys() == {*tensors}:
        return Statement(fields, digests)
    problems.append(f"{file}: what ntkfusion noted in it does not fit what it holds: the file is damaged or changed")
    return Statement()


def joined(statements: Mapping[str, Statement], problems: list[str]) -> Statement:
    """What all files of a checkpoint say together.

    Args:
        statements: file → its statement.
        problems: takes what is wrong: files that disagree.

    Returns:
        The statement.
    """
    distinct = {canonical(dict(statement.fields)) for statement in statements.values()}
    if len(distinct) > 1:
        problems.append(f"{', '.join(statements)} were not written together; restore those that were changed")
        return Statement()
    digests = {name: value for statement in statements.values() for name, value in statement.digests.items()}
    return Statement(next(iter(statements.values()), Statement()).fields, digests)
