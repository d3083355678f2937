"""Tensors on their way to a file: names, shapes and dtypes now, numbers one tensor at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from ntkfusion.checkpoints.formats.tensors import FLOATS, lost_share
from ntkfusion.errors import InputError
from ntkfusion.models.model import Model
from ntkfusion.models.registry import architecture_of
from ntkfusion.utils.digests import digest

#: Dtypes that weights can be stored in, by numpy's names → by safetensors' names.
STORED = {np.dtype(numpy).name: name for name, numpy in FLOATS.items()}


#: A tensor of which a larger share becomes 0 is told about.
TOLD_SHARE = 0.01

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outgoing:
    """One tensor to be written.

    Attributes:
        name: its name in the file.
        array: its numbers, in the dtype that they have in memory; a view wherever it can be one.
        dtype: how they are stored, in safetensors' words.
        is_embedding: whether it is a table whose rows are looked up.
    """

    name: str
    array: np.ndarray
    dtype: str
    is_embedding: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape

    @property
    def num_bytes(self) -> int:
        """What it takes in the file."""
        return math.prod(self.shape) * np.dtype(FLOATS[self.dtype]).itemsize

    def stored(self) -> np.ndarray:
        """The numbers as they are stored."""
        with np.errstate(over="ignore"):  # what becomes infinite is reported by `digests_of`
            return self.array.astype(FLOATS[self.dtype], order="C", copy=False)


def check_dtype(dtype: str | None) -> None:
    """Refuse a dtype that weights cannot be stored in.

    Raises:
        InputError: if it is none of `STORED`.
    """
    if dtype is not None and dtype not in STORED:
        raise InputError(f"dtype must be one of {', '.join(STORED)}, or None for that of the original; got {dtype!r}")


def named_outgoing(model: Model, dtype: str | None) -> list[Outgoing]:
    """The parameters of an exportable model by the names that PyTorch's class has.

    Args:
        model: a model whose blocks are those of its architecture.
        dtype: how to store every tensor; None for how the original's was stored, or else how it is in memory.

    Returns:
        The tensors, in the order of the network; nothing is copied where NumPy can look at an array's own memory.
    """
    views, table = jax.tree.map(np.asarray, model.params), architecture_of(model.config).names
    plain = table.named_tensors(views, head=None)
    named = table.named_tensors(views, head=model.config.head)
    outgoing = []
    for (name, array), origin in zip(named.items(), plain, strict=True):
        place, stored = table.find(name), _stored_dtype(dtype, array, _original_dtype(model, origin))
        outgoing.append(Outgoing(name, array, stored, place is not None and place.path.endswith("embedding")))
    return outgoing


def _original_dtype(model: Model, name: str) -> str | None:
    """How a tensor was stored, or else the one that it was tied to in its file."""
    dtypes, table = model.origin.dtypes, architecture_of(model.config).names
    place = table.find(name)
    other = table.tied.get(place.path) if place is not None else None
    return dtypes.get(name) or (dtypes.get(table.tensor_of(other)) if other is not None else None)


def _stored_dtype(wanted: str | None, array: np.ndarray, original: str | None) -> str:
    return STORED[wanted] if wanted is not None else original or STORED[array.dtype.name]


def digests_of(tensors: Sequence[Outgoing]) -> Mapping[str, str]:
    """The digest of every tensor as it will be stored; tensors that lose many of their numbers to 0 are told about.

    Raises:
        InputError: naming every tensor that holds NaN or Inf, numbers that are too large for how they are stored, or
            a matrix whose numbers are all too small for it.
    """
    digests, problems, lost = {}, [], {}
    for tensor in tensors:
        stored = tensor.stored()
        if not np.isfinite(stored).all():
            problems.append(_not_finite(tensor, stored))
        share = lost_share(tensor.array, stored)
        if share == 1 and tensor.array.ndim > 1:
            largest = float(np.abs(tensor.array).max())
            where = f"{tensor.name} holds numbers up to {largest:.2g}, which are all 0 in {tensor.dtype}"
            problems.append(f"{where}, choose dtype='float32'")
        elif share > TOLD_SHARE:
            lost[f"{tensor.name} ({tensor.dtype})"] = share
        digests[tensor.name] = digest(stored)
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise InputError(f"the model cannot be saved: {shown}")
    if lost:
        worst = sorted(lost, key=lambda name: -lost[name])[:6]
        shown = "; ".join(f"{100 * lost[name]:.0f} % of {name}" for name in worst)
        _log.warning("numbers too small for how they are stored become 0 in %d tensors: %s", len(lost), shown)
    return digests


def _not_finite(tensor: Outgoing, stored: np.ndarray) -> str:
    if np.isfinite(tensor.array).all():
        return f"{tensor.name} has numbers too large for {tensor.dtype}, choose dtype='float32'"
    return f"{tensor.name} holds NaN or infinite numbers ({int((~np.isfinite(stored)).sum())} of {stored.size})"
