"""Which head a checkpoint has: what the user asks for, what its configuration says, or what its tensors are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeAlias, cast

from ntkfusion.checkpoints.audit import Matching
from ntkfusion.errors import CheckpointError, InputError
from ntkfusion.models.config import LARGEST_SIZE, WITH_LABELS, Head, JsonObject, ModelConfig
from ntkfusion.models.registry import head_of_class

#: What `load_model` takes: a head, None for the bare network, or "auto" for the head that the checkpoint has.
WantedHead: TypeAlias = Head | Literal["auto"] | None


def with_head(config: ModelConfig, matching: Matching, original: JsonObject, wanted: WantedHead) -> ModelConfig:
    """The configuration with the head, and the other optional parts, that the checkpoint is loaded with.

    Args:
        config: the configuration of the bare network.
        matching: the checkpoint's tensors.
        original: the contents of ``config.json``.
        wanted: a head, None, or "auto".

    Returns:
        The configuration.

    Raises:
        CheckpointError: if a head is wanted that the file has no tensors of.
        InputError: if a head is wanted that the architecture does not have.
    """
    head = cast(Head | None, _from_file(config, matching, original) if wanted == "auto" else wanted)
    if head is not None and head not in config.HEADS:
        raise InputError(f"{config.architecture} has no head {head!r}; it has {', '.join(config.HEADS)}")
    if head is not None and not _is_there(config, matching, head):
        problem = f"it has no tensors of the head {head!r}; load another head (or None), and put a fresh one on it"
        raise CheckpointError(matching.source, [problem])
    num_labels = _num_labels(matching, head) if head in WITH_LABELS else None
    return dataclasses.replace(config, head=head, num_labels=num_labels).with_parts(matching.matched.keys())


def _from_file(config: ModelConfig, matching: Matching, original: JsonObject) -> Head | None:
    there: list[Head] = [head for head in config.HEADS if _is_there(config, matching, head)]
    classes = original.get("architectures")
    name = classes[0] if isinstance(classes, Sequence) and classes and isinstance(classes[0], str) else ""
    stated = head_of_class(config, name)
    if stated in there:
        return stated
    own: list[Head] = [head for head in there if _tensors_of(matching, head)]
    if not name and not own and _has_prefix(matching):
        return there[0] if there else None  # a head that is tied leaves nothing of its own
    return next((head for head in own if config.may_have(head, matching.matched.keys())), None)


def _tensors_of(matching: Matching, head: Head) -> list[str]:
    """Paths of a head's own parameters that the file holds."""
    return [rule.path for rule in matching.table.heads.get(head, ()) if rule.path in matching.matched]


def _has_prefix(matching: Matching) -> bool:
    """Whether the names are those of a network with a head."""
    prefix = matching.table.prefix
    return prefix != "" and any(tensor.info.name.startswith(prefix) for tensor in matching.matched.values())


def _is_there(config: ModelConfig, matching: Matching, head: Head) -> bool:
    """Whether the file holds something of a head, or the head needs nothing that the base has not."""
    rules = matching.table.heads.get(head, ())
    tied = config.tie_word_embeddings and bool(rules) and all(rule.path in matching.table.tied for rule in rules)
    return tied or bool(_tensors_of(matching, head))


def _num_labels(matching: Matching, head: Head | None) -> int | None:
    """The labels by the shapes of the head's tensors; wrong ones are the audit's to report."""
    if head is None or head not in matching.table.labels:
        return None
    path = matching.table.labels[head]
    kernel, bias = matching.shape(path), matching.shape(path.replace("kernel", "bias"))
    rows = next((shape[0] for shape in (kernel, bias) if shape), 1)
    return min(max(rows, 1), LARGEST_SIZE)
