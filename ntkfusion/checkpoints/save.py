"""`save_model`: a model of any kind → a folder that can be loaded elsewhere, with a README.md of how it was made."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, get_args

import jax

from ntkfusion._version import __version__
from ntkfusion.checkpoints.companions import Companions
from ntkfusion.checkpoints.export import exportable
from ntkfusion.checkpoints.fitting_tokenizer import tell_of_unknown_tokens, with_padding
from ntkfusion.checkpoints.flax_classes import (
    check_flax_export,
    check_transformers_export,
    flax_tensors,
    with_one_bias,
)
from ntkfusion.checkpoints.formats import Format
from ntkfusion.checkpoints.formats.hf_folder import OutgoingModel, write_hf
from ntkfusion.checkpoints.formats.msgpack import write_flax
from ntkfusion.checkpoints.formats.native import native_tensors, write_native
from ntkfusion.checkpoints.formats.outgoing import Outgoing, check_dtype, digests_of, named_outgoing
from ntkfusion.checkpoints.other_files import CARD_TITLE
from ntkfusion.errors import InputError
from ntkfusion.models.model import Model
from ntkfusion.models.registry import transformers_class
from ntkfusion.utils.files import check_output, new_folder

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


def model_card(
    original: Model,
    saved: Model,
    companions: Companions,
    *,
    kind: str,
    name: str,
    num_bytes: int,
    notes: Notes | None,
) -> str:
    """The text of README.md.

    Args:
        original: the model that was to be saved.
        saved: the same as it is stored, constants folded.
        companions: what is written beside it.
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
            CARD_TITLE,
            "",
            *(f"- {key}: {value}" for key, value in facts.items()),
            "",
            _FORMATS[kind].format(name=name),
            *_hints(saved, kind, name),
            "",
            "## How it was made",
            "",
            *made,
            *_files_section(companions),
            "",
            f"Written by ntkfusion {__version__}. The files carry digests, and `ntkfusion.load_model` refuses the",
            "folder if a tensor, or what the configuration says about the computed function, was changed.",
            "",
        ]
    )


def _files_section(companions: Companions) -> list[str]:
    lines = companions.lines()
    return ["", "## Other files", "", *(f"- {_text(line)}" for line in lines)] if lines else []


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


_WRITERS: dict[str, Callable[[Path, OutgoingModel], None]] = {"hf": write_hf, "flax": write_flax}

#: Bytes of tensors above which weights are split over several files.
MAX_SHARD_SIZE = 5 * 10**9


def save_model(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    format: Format = "hf",  # noqa: A002 (the word that users know)
    dtype: str | None = None,
    pad: bool = False,
    merge: bool = False,
    overwrite: bool = False,
    notes: Notes | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> Path:
    """Write a model: weights, configuration, and a README.md that says how it was made.

    Whatever else the original's folder held (its tokenizer's own files, sentence-transformers' pooling, a licence) is
    written back byte for byte, but for old weights and what can run code; README.md says which files that concerns. The
    original's README.md becomes README.original.md. A tokenizer that was changed or exchanged is written anew.

    The folder is whole or not there. Constants of compressed blocks are folded into the weights and masks applied
    (formats "hf" and "flax"): the function stays, its kernels may not. What `load_model` read is written back bit for
    bit.

    Args:
        model: the model.
        folder: where to; its parents are made if need be.
        format: ``"hf"``: a Hugging Face folder, which transformers loads. ``"flax"``: a Flax msgpack file with Hugging
            Face's names. ``"ntkfusion"``: this library's native format, which keeps compressed blocks as they are.
        dtype: how tensors are stored, such as ``"float16"``; by default each as the original's file stored it, and
            single or double precision, as in memory, if there was none.
        pad: fill MLP blocks of different widths up to the widest with zero neurons ("hf" and "flax").
        merge: multiply factorised and coded weights out to dense ones ("hf" and "flax").
        overwrite: whether an earlier result in that folder may be replaced.
        notes: how the model was made, for README.md: name → number, text, list, mapping, or reports of `compress`.
        max_shard_size: bytes of tensors in one file, above which there are several ("hf" and "flax").

    Returns:
        The folder.

    Raises:
        InputError: if the model holds NaN or Inf, or blocks or a head that the format has no place for; for an unusable
            folder or option.
        OutputExistsError: if the folder is there and may not be replaced.
    """
    check_request(Path(folder), format=format, dtype=dtype, overwrite=overwrite, max_shard_size=max_shard_size)
    if format == "ntkfusion":
        files = _native(model, dtype)
    else:
        files = _hugging_face(model, format, dtype, pad, merge, max_shard_size)
    tell_of_unknown_tokens(model)
    companions = Companions.of(model, format)
    card = model_card(
        model, files.saved, companions, kind=format, name=files.name, num_bytes=files.num_bytes, notes=notes
    )
    with new_folder(Path(folder), overwrite=overwrite) as new:
        companions.write(new)
        files.write(new)
        (new / "README.md").write_text(card, encoding="utf-8")
    return Path(folder)


@dataclasses.dataclass(frozen=True)
class _Files:
    """What will be written: the model as it is stored, its class in transformers, its bytes, and how to write it."""

    saved: Model
    name: str
    num_bytes: int
    write: Callable[[Path], None]


def _native(model: Model, dtype: str | None) -> _Files:
    tensors, shared = native_tensors(model, dtype)
    digests = digests_of(tensors)
    return _Files(model, "", _size(tensors), lambda folder: write_native(folder, model, tensors, shared, digests))


def _hugging_face(model: Model, kind: str, dtype: str | None, pad: bool, merge: bool, max_shard_size: int) -> _Files:
    check_exportable(model, kind)
    saved = with_one_bias(with_padding(exportable(model, pad=pad, merge=merge)))
    name = transformers_class(saved.config)
    tensors = named_outgoing(saved, dtype)
    if kind == "flax":
        tensors = flax_tensors(saved.config, tensors)
    outgoing = OutgoingModel(saved, tensors, digests_of(tensors), max_shard_size)
    return _Files(saved, name, _size(tensors), lambda folder: _WRITERS[kind](folder, outgoing))


def check_exportable(model: Model, format: str) -> None:  # noqa: A002 (the word that users know)
    """Refuse a model that no class in the format's library computes, before any long work.

    Args:
        model: the model; what its MLP blocks are is not looked at (see `exportable`).
        format: as for `save_model`.

    Raises:
        InputError: with every reason, and what to do.
    """
    if format == "flax":
        check_flax_export(model.config)
    elif format == "hf":
        check_transformers_export(model.config)


def _size(tensors: Sequence[Outgoing]) -> int:
    return sum(tensor.num_bytes for tensor in tensors)


def check_request(
    folder: Path,
    *,
    format: str = "hf",  # noqa: A002
    dtype: str | None = None,
    overwrite: bool = False,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Refuse what cannot be written whatever the model is, before any long work.

    Args:
        folder: as for `save_model`.
        format: as for `save_model`.
        dtype: as for `save_model`.
        overwrite: as for `save_model`.
        max_shard_size: as for `save_model`.

    Raises:
        InputError: for an unusable folder or option.
        OutputExistsError: if the folder is there and may not be replaced.
    """
    if format not in get_args(Format):
        raise InputError(f"format must be one of {', '.join(get_args(Format))}, got {format!r}")
    if isinstance(max_shard_size, bool) or not isinstance(max_shard_size, int) or max_shard_size < 1:
        raise InputError(f"max_shard_size must be a positive number of bytes, got {max_shard_size!r}")
    check_dtype(dtype)
    check_output(folder, overwrite=overwrite)
