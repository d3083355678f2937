"""A computed kernel with everything one needs to know about it, as one NPZ file that is read without pickle."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ntkfusion.errors import InputError
from ntkfusion.utils.files import Json


@dataclasses.dataclass(frozen=True)
class KernelFile:
    """A kernel, its parts, its inputs and its conditions, as plain arrays.

    Attributes:
        kernel: [N, N] (mean over outputs) of a block, or [N, N, C, C] of a network.
        groups: group of parameters → its kernel; they add up to `kernel`.
        inputs: what the kernel was computed on: `block_inputs` and `tokens` of a block; `input_ids`, `attention_mask`
            and, without classification head, `readout_directions` of a network.
        sentences: the text; those of a network kernel are its examples.
        conditions: model, scope, kind, normalisation, readout, seed, environment, command and more.
    """

    kernel: np.ndarray
    groups: Mapping[str, np.ndarray]
    inputs: Mapping[str, np.ndarray]
    sentences: tuple[str, ...]
    conditions: Json

    @property
    def labels(self) -> tuple[str, ...]:
        """The text of each example: a token of a block kernel, a sentence of a network kernel."""
        return tuple(self.inputs["tokens"].tolist()) if "tokens" in self.inputs else self.sentences


def traced(kernel: np.ndarray) -> np.ndarray:
    """The mean over outputs, [N, N], of a network kernel [N, N, C, C]; a block kernel is traced already."""
    return kernel if kernel.ndim == 2 else np.einsum("nmcc->nm", kernel) / kernel.shape[-1]


def save_kernel_file(file: KernelFile, path: Path) -> None:
    """Write the members ``kernel``, ``group/NAME``, ``inputs/NAME``, ``sentences`` and ``conditions`` (JSON).

    Args:
        file: what to write.
        path: ends in ``.npz``; a file of that name is overwritten.
    """
    members: Json = {
        "kernel": file.kernel,
        **{f"group/{name}": part for name, part in file.groups.items()},
        **{f"inputs/{name}": array for name, array in file.inputs.items()},
        "sentences": np.array(file.sentences, dtype=np.str_),
        "conditions": np.array(json.dumps(file.conditions, ensure_ascii=False)),
    }
    np.savez(path, **members)


def load_kernel_file(path: Path | str) -> KernelFile:
    """Read what ``ntkfusion kernel`` wrote.

    Args:
        path: the ``.npz`` file.

    Returns:
        The `KernelFile`.

    Raises:
        InputError: if there is no such file, or it is not one of these.
    """
    try:
        with np.load(path, allow_pickle=False) as members:
            arrays = {name: members[name] for name in members.files}
        return KernelFile(
            kernel=arrays["kernel"],
            groups=_below("group/", arrays),
            inputs=_below("inputs/", arrays),
            sentences=tuple(arrays["sentences"].tolist()),
            conditions=json.loads(str(arrays["conditions"])),
        )
    except OSError as error:
        raise InputError(f"kernel file {path} cannot be read: {error.strerror or error}") from error
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a kernel file that `ntkfusion kernel` wrote ({error})") from error


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
