"""Results that survive an interruption: one small file each, with the settings under which it holds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ntkfusion.errors import InputError, OutputExistsError
from ntkfusion.utils.files import MARKER, check_files, mark, new_files, writing
from ntkfusion.utils.locks import hold

#: What a job finds out, as it stands in its file: names → numbers, text, lists and tables of them.
Result = dict[str, Any]

#: Field or class of a method → its name in stored settings, which keep the spelling of the first results.
STORED_NAMES = {"keep_ratio": "width", "AutoencoderTraining": "Training"}


def stored_repr(value: object) -> str:
    """A method, or what holds methods, with all settings: results of older defaults are not taken for new ones.

    Fields and classes that were renamed since have their old names, so that earlier results are found again.

    >>> from ntkfusion.compression.registry import build_method
    >>> stored_repr(build_method("svd", 0.5))
    "SVD(width=0.5, split='balanced')"
    """
    text = repr(value)
    for name, stored in STORED_NAMES.items():
        text = re.sub(rf"\b{name}(?=[=(])", stored, text)
    return text


@dataclasses.dataclass(frozen=True)
class Job:
    """One result to be had.

    Attributes:
        section: which part of the experiment.
        name: of its file, without ending.
        settings: everything the result depends on, as plain values.
    """

    section: str
    name: str
    settings: Mapping[str, object]

    @property
    def digest(self) -> str:
        """The settings as a short text that is another one for other settings."""
        text = json.dumps(self.settings, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class ResultStore:
    """A folder with a file for every finished job."""

    def __init__(self, folder: Path, overwrite: bool) -> None:
        """Check the folder, and keep other processes out of it while this store is there; nothing is written yet.

        Raises:
            OutputExistsError: if it holds other files than those of a store.
            OutputBusyError: if another process uses it.
            InputError, OutputWriteError: if it cannot be written to.
        """
        self.folder, self.overwrite = folder, overwrite
        check_files([folder / "table.md"], overwrite=True)
        if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
            raise OutputExistsError(f"output folder {folder} holds other files than results of ntkfusion; choose --out")
        with writing(f"output folder {folder}"):
            weakref.finalize(self, hold(folder))

    def find(self, job: Job) -> Result | None:
        """The result of a job if it was done before.

        Raises:
            OutputExistsError: if the file is of other settings and may not be overwritten.
            InputError: if it is no file of ours.
        """
        path = self._path(job)
        if not path.exists():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            digest, result = data["digest"], data["result"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is not a result of this experiment: {error}; remove it") from error
        if digest == job.digest:
            return result
        if not self.overwrite:
            raise OutputExistsError(f"{path} was made with other settings; pass --overwrite, or another --out")
        return None

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that are not done; raises as `find`."""
        return [job for job in jobs if self.find(job) is None]

    def put(self, job: Job, result: Mapping[str, object]) -> None:
        """Write a result; the file is whole or not there."""
        data = {"digest": job.digest, "settings": job.settings, "result": _finite(result)}
        with new_files([self._path(job)], overwrite=True) as (path,):
            path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        self.mark()

    def mark(self) -> None:
        """Make the folder known as one of ours, which may be written to again."""
        mark(self.folder)

    def _path(self, job: Job) -> Path:
        return self.folder / job.section / f"{job.name}.json"


def _finite(value: object) -> object:
    """Numbers that are not finite become null, as JSON has no other word for them."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None) -> float:
    """A number as `ResultStore.find` gives it; what was not finite is NaN."""
    return math.nan if value is None else value
