"""Result folders that are either whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ntkfusion.errors import InputError, OutputExistsError

#: Inside a folder written by this library; `--overwrite` replaces no other kind of folder.
MARKER = ".ntkfusion"


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that cannot or must not be written, before any long work.

    Raises:
        OutputExistsError: if it exists and may not be overwritten, or was not written by this library.
        InputError: if it is a file, lies inside one, or its place cannot be written to.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 (resolve would follow links)
    try:
        _check_place(folder)
        occupied = folder.exists() and any(folder.iterdir())
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be written: {error.strerror}") from error
    if not occupied:
        return
    if not overwrite:
        raise OutputExistsError(f"output folder {folder} exists; pass --overwrite to replace it, or another --out")
    if not (folder / MARKER).exists():
        raise OutputExistsError(f"output folder {folder} holds other files than results of ntkfusion; not replaced")


def _check_place(folder: Path) -> None:
    """Raise unless a folder can be made there: the nearest parent that exists is one, and takes new entries."""
    if os.path.lexists(folder) and not folder.exists():
        raise InputError(f"output folder {folder} is a link that leads nowhere")
    parent = next(path for path in [folder, *folder.parents] if path.exists())
    if not parent.is_dir():
        raise InputError(f"output folder {folder}: {parent} is a file")
    Path(tempfile.mkdtemp(prefix=".ntkfusion-", dir=parent.parent if parent == folder else parent)).rmdir()


@contextmanager
def new_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends without an error.

    An exception or interruption at any moment leaves either the old result or the new one, never a part. (A process
    that is killed outright may leave the temporary folder, whose name begins with a dot.)

    Raises:
        OutputExistsError, InputError: as `check_output`, also for what appeared there in the meantime.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 (resolve would follow links)
    check_output(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        written = temporary / "new"
        written.mkdir()
        yield written
        (written / MARKER).touch()
        check_output(folder, overwrite=overwrite)
        _swap(written, folder, temporary / "old")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(written: Path, folder: Path, old: Path) -> None:
    """Put `written` in the place of `folder`; whatever goes wrong, what was there stays or comes back."""
    try:
        if folder.exists() and any(folder.iterdir()):
            folder.rename(old)
        # replaces an empty folder, and fails if somebody else has just filled it
        written.rename(folder)
    except BaseException as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        if isinstance(error, OSError):
            raise OutputExistsError(f"output folder {folder} could not be replaced: {error.strerror}") from error
        raise
