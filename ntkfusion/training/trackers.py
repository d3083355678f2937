"""Where the numbers of a run go: a file, a live line, TensorBoard, or anything with two methods."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ntkfusion.errors import InputError
from ntkfusion.utils.extras import how_to_install
from ntkfusion.utils.files import new_files, writing

#: What a tracker gets: names such as ``loss`` or ``dev/accuracy``.
Values = Mapping[str, float]


@runtime_checkable
class Tracker(Protocol):
    """What `fit` gives its numbers to."""

    def log(self, step: int, values: Values) -> None:
        """Take the numbers of a moment.

        Args:
            step: updates done.
            values: name → number.
        """

    def close(self) -> None:
        """Write what is not written yet."""


class JsonLines:
    """A file with one JSON object per line, flushed line by line; numbers that are none are written as null."""

    def __init__(self, path: Path) -> None:
        """Append to a file, which is made if need be."""
        self._path = path
        with writing(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)

    def log(self, step: int, values: Values) -> None:
        """Write a line, all of it or nothing.

        Raises:
            OutputWriteError: if the system refuses, as on a full disk.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = f"{json.dumps({'step': step, **finite})}\n".encode()
        whole = self._file.seek(0, os.SEEK_END)
        with writing(str(self._path)):
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                self._file.truncate(whole)
                raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard, written by tensorboardX (an optional dependency)."""

    def __init__(self, folder: Path, done: int = 0) -> None:
        """Write to a folder.

        Args:
            folder: is made if need be.
            done: updates of a run that goes on; TensorBoard then shows nothing that was written of later ones before.

        Raises:
            InputError: if tensorboardX is not installed.
        """
        self._folder = folder
        with writing(f"TensorBoard files in {folder}"):
            self._writer: Any = summary_writer()(str(folder), purge_step=done + 1 if done else None)

    def log(self, step: int, values: Values) -> None:
        """Write scalars."""
        with writing(f"TensorBoard files in {self._folder}"):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        with writing(f"TensorBoard files in {self._folder}"):
            self._writer.close()


def summary_writer() -> Any:
    """The class of writers of tensorboardX.

    Raises:
        InputError: if it is not installed.
    """
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"TensorBoard files need tensorboardX, which is not installed: run {how_to_install('tensorboard')}"
        ) from error
    return SummaryWriter


class Several:
    """Trackers that all get the same."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        """Pass numbers on to all of these."""
        self._trackers = tuple(trackers)

    def log(self, step: int, values: Values) -> None:
        """Pass on to every one."""
        for tracker in self._trackers:
            tracker.log(step, values)

    def close(self) -> None:
        """Close every one."""
        for tracker in self._trackers:
            tracker.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that `JsonLines` wrote; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of later steps, which a run that goes on from `step` writes again; the file is whole at any time.

    Args:
        path: the file; nothing happens if there is none.
        step: the last step that stays.
    """
    if not path.exists():
        return
    kept = [line for line in read_lines(path) if line["step"] <= step]
    with new_files([path], overwrite=True) as (new,):
        new.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
