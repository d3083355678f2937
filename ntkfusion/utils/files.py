"""Results that are whole or not there: a folder, or files of one folder that belong together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from ntkfusion.errors import InputError, NTKFusionError, OutputExistsError, OutputWriteError
from ntkfusion.utils.locks import alone, hold, to_the_end

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
    def reserved(self) -> Iterator[None]:
        """Keep other processes out of a folder that grows, while the block runs.

        Raises:
            OutputBusyError: if another process writes it.
            OutputWriteError: if the lock cannot be written.
        """
        if not self.grows:
            yield
            return
        with writing(f"output folder {self.folder}"):
            release = hold(self.folder)
        try:
            yield
        finally:
            release()

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


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Say in one sentence what the system refuses while the block writes something.

    Args:
        what: is written; of blocks in each other the outermost one names it.

    Raises:
        OutputWriteError: for every error of the system, also one that a library says in its own words.
    """
    try:
        yield
    except OutputWriteError as error:
        raise OutputWriteError(what, error.reason) from error
    except NTKFusionError:
        raise
    except Exception as error:
        if (reason := system_reason(error)) is None:
            raise
        raise OutputWriteError(what, reason) from error


def system_reason(error: BaseException) -> str | None:
    """Why the system refused to read or write; None for errors of other kinds.

    >>> system_reason(RuntimeError("No space left on device (os error 28)"))
    'No space left on device'
    """
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    # libraries in Rust (tokenizers) and C++ (tensorstore, below orbax) have errors of no particular class
    number = re.search(r"\bos[ _]error\D{0,10}(\d+)", str(error), re.IGNORECASE)
    if number:
        return os.strerror(int(number[1]))
    return None if error.__cause__ is None else system_reason(error.__cause__)


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that cannot or must not be written, before any long work.

    Raises:
        OutputExistsError: if it exists and may not be overwritten, or was not written by this library.
        OutputBusyError: if it may be overwritten, but another process writes into it over time.
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
    with writing(f"output folder {folder}"):
        hold(folder)()  # not while somebody writes into it


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
        OutputWriteError: for errors of the system in the block, as on a full disk.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 (resolve would follow links)
    check_output(folder, overwrite=overwrite)
    with writing(f"output folder {folder}"), _temporary_folder(folder.parent, folder.name) as temporary:
        written = temporary / "new"
        written.mkdir()
        yield written
        (written / MARKER).touch()
        release = hold(folder)
        try:
            check_output(folder, overwrite=overwrite)
            _swap_folder(written, folder, temporary / "old")
        finally:
            release()


@contextmanager
def _temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder, made if need be, and in it one that is gone after the block; so are new folders if it fails."""
    made = [folder for folder in [parent, *parent.parents] if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    try:
        yield temporary
    finally:
        to_the_end(lambda: shutil.rmtree(temporary, ignore_errors=True))
        for folder in made:  # only empty ones can go
            with contextlib.suppress(OSError):
                folder.rmdir()


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
        OutputWriteError: for errors of the system in the block, as on a full disk.
    """
    check_files(paths, overwrite=overwrite)
    folder = paths[0].absolute().parent
    with writing(f"output file {paths[0]}"), _temporary_folder(folder, paths[0].stem) as temporary:
        for name in ("new", "old"):
            (temporary / name).mkdir()
        yield tuple(temporary / "new" / path.name for path in paths)
        with alone(paths[0]):  # two processes would mix their files
            check_files(paths, overwrite=overwrite)
            _swap_files(temporary, [path.absolute() for path in paths])


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


def mark(folder: Path) -> None:
    """Make a folder, if need be, and make it known as one of ours, which may be written to again.

    Raises:
        OutputWriteError: if the system refuses.
    """
    with writing(f"output folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()


def write_contents(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder: path in it, with slashes, → contents."""
    for name, contents in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)


def write_json(path: Path, values: Any) -> None:
    """Write a file in one step, in the place of an earlier one."""
    with new_files([path], overwrite=True) as (new,):
        new.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Json:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
