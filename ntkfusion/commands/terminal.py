"""Standard output: a reader that goes away, a device that is full, and tables that keep their numbers at any width."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console

from ntkfusion.errors import NTKFusionError, OutputWriteError
from ntkfusion.utils.files import system_reason

#: What errors call it.
STANDARD_OUTPUT = "standard output"


class Terminal(Console):
    """A console that tells when its reader has gone; rich would end the process with 1, which means a failed check."""

    def on_broken_pipe(self) -> None:
        """Tell."""
        raise BrokenPipeError


@contextmanager
def standard_output(results: Sequence[Path] = ()) -> Iterator[None]:
    """The block prints; what it printed has left this process at its end.

    A reader that has seen enough, as in ``ntkfusion inspect minilm | head -1``, ends the block and is no error.

    Args:
        results: where the results are that the block tells about.

    Raises:
        OutputWriteError: if it cannot be printed, as on a full disk.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        give_up(sys.stdout)
    except OSError as error:
        if isinstance(error, NTKFusionError):
            raise
        give_up(sys.stdout)
        where = ", ".join(map(str, results))
        advice = f"The results are whole: {where}" if where else "Send it elsewhere"
        raise OutputWriteError(STANDARD_OUTPUT, system_reason(error) or "", advice) from error


def complain(text: str) -> None:
    """Say what went wrong on standard error; if that cannot be written, the exit code says it alone."""
    try:
        print(f"ntkfusion: {text}", file=sys.stderr, flush=True)
    except OSError:
        give_up(sys.stderr)


def give_up(stream: TextIO | None) -> None:
    """Send what is left of a stream nowhere: the interpreter would try once more when it ends, with a traceback."""
    if stream is None:
        return
    with contextlib.suppress(OSError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
