"""The README.md of a model folder: how the model was made, in plain words."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax

from ntkfusion._version import __version__
from ntkfusion.models.model import Model

#: How a model was made, by name.
Notes: TypeAlias = Mapping[Any, object]

#: Format → what it is, and how it is loaded. `{name}` is the class of transformers.
_FORMATS = {
    "hf": (
        "A Hugging Face folder: `transformers.{name}.from_pretrained(folder)` loads it, and so does "
        "`ntkfusion.load_model(folder)`."
    ),
    "flax": (
        "Flax weights under the names of the Flax classes that transformers had up to version 4: "
        "`transformers.Flax{name}` of those versions loads it, and so does `ntkfusion.load_model(folder)`."
    ),
    "ntkfusion": (
        "A folder in ntkfusion's own format, which keeps compressed blocks as they are: `ntkfusion.load_model(folder)` "
        "loads it. transformers cannot, and refuses because there is no config.json."
    ),
}


def model_card(original: Model, saved: Model, *, kind: str, name: str, num_bytes: int, notes: Notes | None) -> str:
    """The text of README.md.

    Args:
        original: the model that was to be saved.
        saved: the same as it is stored, constants folded.
        kind: a key of `_FORMATS`.
        name: its class in transformers, if it has one.
        num_bytes: what its tensors take.
        notes: how it was made; values may be numbers, texts, lists, mappings and reports of `ntkfusion.compress`.

    Returns:
        Markdown.
    """
    numbers = sum(leaf.size for leaf in jax.tree.leaves(saved.params))
    facts = {
        "architecture": f"{saved.config.architecture}, {saved.config.head or 'without a head'}",
        "made from": f"`{original.source}`",
        "size": f"{numbers:,} parameters, {num_bytes:,} bytes",
        "hidden widths of the MLP blocks": _runs([block.hidden_width for block in saved.mlp_blocks()]),
    }
    made = _lines(notes or {}) or ["Nothing is known beyond where it was made from."]
    return "\n".join(
        [
            "# A model saved by ntkfusion",
            "",
            *(f"- {key}: {value}" for key, value in facts.items()),
            "",
            _FORMATS[kind].format(name=name),
            *_hints(saved, kind, name),
            "",
            "## How it was made",
            "",
            *made,
            "",
            f"Written by ntkfusion {__version__}. The files carry digests, and `ntkfusion.load_model` refuses the",
            "folder if a tensor, or what the configuration says about the computed function, was changed.",
            "",
        ]
    )


def _hints(saved: Model, kind: str, name: str) -> list[str]:
    if kind != "hf" or saved.config.head is not None or getattr(saved.config, "add_pooler", True):
        return []
    return ["", f"It has no pooler: use `{name}.from_pretrained(folder, add_pooling_layer=False)`."]


def _lines(notes: Notes) -> list[str]:
    """A list of what was noted, then a section for everything that has parts."""
    lines = [f"- {_title(key)}: {_text(value)}" for key, value in notes.items() if not _has_parts(value)]
    for key, value in notes.items():
        if _has_parts(value) and (inner := _section(_parts(value))):
            lines += ["", f"### {_title(key)}", "", *inner]
    return lines


def _section(parts: Notes) -> list[str]:
    """A table if all parts have parts themselves, such as a report for every block; else a list."""
    if not parts or not all(map(_has_parts, parts.values())):
        return [f"- {_title(key)}: {_text(value)}" for key, value in parts.items()]
    rows = {_title(key): _flat(_parts(value)) for key, value in parts.items()}
    columns = [*dict.fromkeys(column for row in rows.values() for column in row)]
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[key, *(_text(row.get(column, "")) for column in columns)] for key, row in rows.items()]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]


def _flat(parts: Notes) -> dict[str, object]:
    """Column → value; parts of parts are columns too."""
    flat: dict[str, object] = {}
    for key, value in parts.items():
        flat |= _flat(_parts(value)) if _has_parts(value) else {_title(key): value}
    return flat


def _title(key: object) -> str:
    return f"block {key}" if isinstance(key, int) else str(key).replace("_", " ")


def _has_parts(value: object) -> bool:
    return isinstance(value, Mapping) or dataclasses.is_dataclass(value)


def _parts(value: Any) -> Notes:
    return value if isinstance(value, Mapping) else {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return " ".join(str(value).split())


def _runs(widths: Sequence[int]) -> str:
    return ", ".join(f"{len([*group])} × {width}" for width, group in itertools.groupby(widths))
