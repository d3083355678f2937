"""The options of ``ntkfusion convert``; nothing heavy is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ntkfusion.checkpoints.formats import Dtype, Format
from ntkfusion.commands.protocol import Flag, ModelArgument


@dataclasses.dataclass(frozen=True)
class Convert:
    """Rewrite a checkpoint in another format, with an account of every tensor.

    Reads Hugging Face safetensors (single or sharded), Flax msgpack and this library's own folders. Torch pickles are
    never opened.

    Attributes:
        model: The checkpoint: `minilm`, a folder, or a hub id such as `org/name`.
        out: Folder to write.
        format: `hf`, `flax` or `ntkfusion`, as for `ntkfusion compress`.
        pad: Fill layers of different widths up to the widest with zero neurons (hf and flax).
        merge: Multiply factorised or coded weights out to dense ones (hf and flax).
        dtype: How weights are stored, such as float16; by default each tensor as in the original's file.
        no_head: Read the network without its head, whatever head it has.
        ignore_adapter: Take the base weights of a folder that holds an adapter beside them.
        overwrite: Replace an earlier result in that folder.
    """

    model: ModelArgument
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    format: Format = "hf"
    pad: Flag = False
    merge: Flag = False
    dtype: Dtype | None = None
    no_head: Flag = False
    ignore_adapter: Flag = False
    overwrite: Flag = False
