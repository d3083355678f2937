"""`save_model`: a model of any kind → a folder that can be loaded elsewhere."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from ntkfusion.checkpoints.export import exportable
from ntkfusion.checkpoints.formats import Format
from ntkfusion.checkpoints.formats.hf_folder import OutgoingModel, write_hf
from ntkfusion.checkpoints.formats.msgpack import write_flax
from ntkfusion.checkpoints.formats.native import native_tensors, write_native
from ntkfusion.checkpoints.formats.outgoing import Outgoing, check_dtype, digests_of, named_outgoing
from ntkfusion.checkpoints.model_card import Notes, model_card
from ntkfusion.errors import InputError
from ntkfusion.models.model import Model
from ntkfusion.models.registry import transformers_class
from ntkfusion.utils.files import check_output, new_folder

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
    """Write a model: weights, configuration, tokenizer files, and a README.md that says how it was made.

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
    card = model_card(model, files.saved, kind=format, name=files.name, num_bytes=files.num_bytes, notes=notes)
    with new_folder(Path(folder), overwrite=overwrite) as new:
        files.write(new)
        (new / "README.md").write_text(card, encoding="utf-8")
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(new)
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
    saved = exportable(model, pad=pad, merge=merge)
    name = transformers_class(saved.config)
    tensors = named_outgoing(saved, dtype)
    outgoing = OutgoingModel(saved, tensors, digests_of(tensors), max_shard_size)
    return _Files(saved, name, _size(tensors), lambda folder: _WRITERS[kind](folder, outgoing))


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
