"""Who writes a folder: one process at a time, named to the others; a lock whose process is gone is taken over.

A lock is the system's own (``flock``) on a small file beside what it guards, so that it ends with its process, however
that ends; the file says who holds it. Where the system or the file system has no such locks, nothing is locked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from ntkfusion.errors import OutputBusyError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: What file systems without locks answer.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

#: Seconds that a process has to say who it is after it took a lock.
_PATIENCE = 0.5


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        process: its number.
        host: its machine.
        since: when it took the lock, to the second.
        command: its command line.
    """

    process: int
    host: str
    since: str
    command: str

    @classmethod
    def this_process(cls) -> Holder:
        """This process, now."""
        now, program = datetime.datetime.now().isoformat(" ", "seconds"), Path(sys.argv[0])
        name = program.parent.name if program.name == "__main__.py" else program.name
        return cls(os.getpid(), socket.gethostname(), now, shlex.join([name, *sys.argv[1:]]))

    def __str__(self) -> str:
        """Who it is, in the middle of a sentence."""
        where = "" if self.host == socket.gethostname() else f" on {self.host}"
        command = self.command if len(self.command) < 100 else f"{self.command[:99]}…"
        return f"process {self.process}{where} since {self.since} ({command})"


@dataclasses.dataclass
class _Held:
    """A lock of this process: its open file, the folders made for it, and how often it was taken."""

    file: FileIO  # closed, which ends the lock, when nobody has it any more, whatever interrupts us
    made: tuple[Path, ...]
    users: int = 1


_held: dict[Path, _Held] = {}
#: Taken again by what garbage collection releases in the middle of anything.
_guard = threading.RLock()


def hold(folder: Path) -> Callable[[], None]:
    """Keep other processes from writing a folder over time; this one may take it again.

    Args:
        folder: need not exist.

    Returns:
        What releases it; a second call does nothing.

    Raises:
        OutputBusyError: if another process holds it, saying which and since when.
        OSError: if the lock cannot be written.
    """
    path = lock_file(folder)
    with _guard:
        if path in _held:
            _held[path].users += 1
        elif (taken := _acquire(path, wait=False)) is None:
            raise OutputBusyError(
                f"output folder {folder} is being written by {_holder(path)}: wait until it has ended, end it, or "
                "choose another --out"
            )
        else:
            _held[path] = taken
    done = threading.Event()

    def release() -> None:
        if not done.is_set():
            done.set()
            _release(path)

    return release


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process or thread writes this file or folder, and keep them waiting while the block runs."""
    path = lock_file(path)
    taken = _acquire(path, wait=True)
    try:
        yield
    finally:
        if taken is not None:
            _end(path, taken)


def lock_file(path: Path) -> Path:
    """Beside what it guards, whatever links lead there."""
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.lock")


def _acquire(path: Path, *, wait: bool) -> _Held | None:
    """The lock; None if another process has it and we do not wait."""
    while True:
        made = tuple(parent for parent in path.parents if not parent.exists())
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            taken = _Held(path.open("ab", buffering=0), made)
        except FileNotFoundError:  # whoever made the folder for its own lock has just taken it away again
            continue
        ours = False
        try:
            ours = _flock(taken.file, wait=wait)
            if ours and _is_file(path, taken.file):
                taken.file.truncate(0)
                taken.file.write(json.dumps(dataclasses.asdict(Holder.this_process())).encode() + b"\n")
                return taken
        except BaseException:
            _end(path, taken) if ours else taken.file.close()
            raise
        taken.file.close()
        if not ours:
            return None
        # it was deleted between opening and locking: its holder has just ended


def _flock(file: FileIO, *, wait: bool) -> bool:
    """Whether the lock is ours now."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _is_file(path: Path, file: FileIO) -> bool:
    """Whether an open file is the one of that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


def _release(path: Path) -> None:
    with _guard:
        taken = _held[path]
        taken.users -= 1
        if not taken.users:
            try:
                _end(path, taken)
            finally:
                del _held[path]


def _end(path: Path, taken: _Held) -> None:
    """Delete the lock and whatever was made for it, as far as nothing else is there now."""

    def delete() -> None:
        with contextlib.suppress(OSError):
            if _is_file(path, taken.file):
                path.unlink()

    try:
        to_the_end(delete)
    finally:
        taken.file.close()
    for folder in taken.made:
        with contextlib.suppress(OSError):
            folder.rmdir()


def to_the_end(clean: Callable[[], None]) -> None:
    """Clean up; if that is interrupted, once more before the interruption goes on."""
    try:
        clean()
    except BaseException:
        clean()
        raise


def _holder(path: Path) -> str:
    """Who has a lock, in the middle of a sentence."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return str(Holder(**json.loads(path.read_text(encoding="utf-8"))))
        time.sleep(0.02)
    return "another process"
