"""Results that are whole or not there: a folder, or files of one folder that belong together."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from ntkfusion.errors import InputError, OutputExistsError

#: An object as JSON has it.
Json: TypeAlias = dict[str, Any]

#: Inside a folder written by this library; `--overwrite` replaces no other kind of folder.
MARKER = ".ntkfusion"


@dataclasses.dataclass(frozen=True)
class Output:
    """Where results go.

    Attributes:
        folder: the folder that is written, or that the files are in.
        files: names of files that are replaced together; none for a whole folder.
        overwrite: whether earlier results may be replaced.
        grows: whether the folder fills while the work goes on, and keeps what an interruption leaves.
    """

    folder: Path
    files: tuple[str, ...] = ()
    overwrite: bool = False
    grows: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, or the folder."""
        return tuple(self.folder / name for name in self.files) or (self.folder,)

    def check(self) -> None:
        """Refuse what cannot or must not be written, before any long work.

        Raises:
            OutputExistsError, InputError: as `check_output` and `check_files`.
        """
        if self.files:
            check_files(self.paths, overwrite=self.overwrite)
        else:
            check_output(self.folder, overwrite=self.overwrite)

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """The folder to write into; what was written takes its place when the block ends without an error.

        A folder that grows is written in place.

        Raises:
            OutputExistsError, InputError: as `new_folder` and `new_files`.
        """
        if self.grows:
            yield self.folder
        elif self.files:
            with new_files(self.paths, overwrite=self.overwrite) as written:
                yield written[0].parent
        else:
            with new_folder(self.folder, overwrite=self.overwrite) as written:
                yield written


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
        _swap_folder(written, folder, temporary / "old")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap_folder(written: Path, folder: Path, old: Path) -> None:
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
        _swap_files(temporary, [path.absolute() for path in paths])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap_files(temporary: Path, paths: Sequence[Path]) -> None:
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


def write_json(path: Path, values: Any) -> None:
    """Write a file in one step, in the place of an earlier one."""
    with new_files([path], overwrite=True) as (new,):
        new.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Json:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
