"""Result files that belong together: all of them are whole, or none is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ntkfusion.errors import InputError, OutputExistsError


def check_files(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse output files that cannot or must not be written, before any long work.

    Args:
        paths: files of one folder.
        overwrite: whether files of these names may be replaced.

    Raises:
        OutputExistsError: if one of them exists and may not be overwritten.
        InputError: if one of them is no file, or their folder is one or cannot be written to.
    """
    for path in paths:
        if os.path.lexists(path) and not path.is_file():
            raise InputError(f"output file {path} exists and is not a file; choose another --out")
        if path.exists() and not overwrite:
            raise OutputExistsError(f"output file {path} exists; pass --overwrite to replace it, or another --out")
    try:
        folder = paths[0].absolute().parent
        place = next(parent for parent in [folder, *folder.parents] if os.path.lexists(parent))
        if not place.is_dir():
            raise InputError(f"output file {paths[0]}: {place} is not a folder")
        Path(tempfile.mkdtemp(prefix=".ntkfusion-", dir=place)).rmdir()
    except OSError as error:
        raise InputError(f"output file {paths[0]} cannot be written: {error.strerror}") from error


@contextmanager
def new_files(paths: Sequence[Path], *, overwrite: bool = False) -> Iterator[tuple[Path, ...]]:
    """Temporary files that take the places of `paths` when the block ends without an error.

    An exception or interruption at any moment leaves the old files, or nothing where there was nothing. (A process that
    is killed outright may leave a temporary folder, whose name begins with a dot.)

    Args:
        paths: files of one folder, which is made if need be.
        overwrite: whether files of these names may be replaced.

    Yields:
        One path to write for each of `paths`, with the same name.

    Raises:
        OutputExistsError, InputError: as `check_files`, also for what appeared there in the meantime.
    """
    check_files(paths, overwrite=overwrite)
    folder = paths[0].absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{paths[0].stem}-", dir=folder))
    try:
        for name in ("new", "old"):
            (temporary / name).mkdir()
        yield tuple(temporary / "new" / path.name for path in paths)
        check_files(paths, overwrite=overwrite)
        _swap(temporary, [path.absolute() for path in paths])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, paths: Sequence[Path]) -> None:
    """Put the new files in place; whatever goes wrong, what was there comes back."""
    existed = [path for path in paths if path.exists()]
    try:
        if len(paths) == 1:  # in one step: there is no moment without a file
            (temporary / "new" / paths[0].name).replace(paths[0])
            return
        for path in existed:
            path.rename(temporary / "old" / path.name)
        for path in paths:
            (temporary / "new" / path.name).rename(path)
    except BaseException as error:
        for path in paths:
            old = temporary / "old" / path.name
            if old.exists():
                old.replace(path)
            elif path not in existed:
                path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputExistsError(f"output file {paths[0]} could not be replaced: {error.strerror}") from error
        raise
