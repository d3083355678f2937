"""Another process that holds a folder, as a command does that writes it over time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Holds a folder until its standard input ends; says when it has it. Imports little, so that it starts at once.
HOLD = """
import sys
from pathlib import Path
from ntkfusion.utils.locks import hold
release = hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
release()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen]:
    """A process that holds the folder until it is told to end (`communicate`), or the block does."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        if process.poll() is None:
            process.communicate()
