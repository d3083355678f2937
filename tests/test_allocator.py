"""Freed memory is kept, and settings of the user are left alone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import jax  # noqa: F401
import pytest

from ntkfusion.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

#: Pages that 256 MiB cost the second time that they are asked for.
FAULTS = """
import resource, sys
from ntkfusion.allocator import keep_freed_memory

assert "jax" not in sys.modules
taken = keep_freed_memory() if sys.argv[1] == "keep" else False
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(2**28)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(taken, faults())
"""


def run(word, **environment):
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, word], env=bare | environment, capture_output=True, text=True, check=True
    )
    taken, faults = done.stdout.split()
    return taken == "True", int(faults)


def test_memory_is_asked_for_once():
    taken, kept = run("keep")
    assert taken
    assert run("leave")[1] > 1000 + 10 * kept


def test_it_is_too_late_once_jax_is_there():
    assert "jaxlib" in sys.modules
    assert keep_freed_memory() is False


def test_settings_of_the_user_are_left_alone():
    assert run("keep", MALLOC_ARENA_MAX="2")[0] is False
