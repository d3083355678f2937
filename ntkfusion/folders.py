"""Result folders that are either whole or not there."""

from __future__ import annotations

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
        InputError: if it is a file, or lies inside one.
    """
    parent = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not parent.is_dir():
        raise InputError(f"output folder {folder}: {parent} is a file")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise OutputExistsError(f"output folder {folder} exists; pass --overwrite to replace it, or another --out")
    if not (folder / MARKER).exists():
        raise OutputExistsError(f"output folder {folder} holds other files than results of ntkfusion; not replaced")


@contextmanager
def new_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends without an error.

    An interruption at any moment leaves either the old result or the new one, never a part.

    Raises:
        OutputExistsError, InputError: as `check_output`.
    """
    check_output(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        written = temporary / "new"
        written.mkdir()
        yield written
        (written / MARKER).touch()
        if folder.exists():
            folder.rename(temporary / "old")
        written.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
