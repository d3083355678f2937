"""Freed memory is kept or given back, and settings of the user are left alone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import jax
import pytest

from ntkfusion.utils.allocator import give_back_memory, keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

#: Pages that 256 MiB cost the second time that they are asked for.
FAULTS = """
import resource, sys
from ntkfusion.utils.allocator import keep_freed_memory

assert "jax" not in sys.modules
taken = keep_freed_memory() if sys.argv[1] == "keep" else False
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(2**28)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(taken, faults())
"""


#: Mebibytes before and behind the call: 200 of them were freed below a block that is still there.
TRIM = """
from pathlib import Path
from ntkfusion.utils.allocator import give_back_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20
blocks = [b"x" * 100_000 for _ in range(2000)]
last = bytes(100_000)
del blocks
before = resident()
give_back_memory()
print(before, resident())
"""


def words_of(script, *words, **environment):
    """What a script prints in a process of its own."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, env=bare | environment, capture_output=True, text=True, check=True).stdout.split()


def run(word, **environment):
    taken, faults = words_of(FAULTS, word, **environment)
    return taken == "True", int(faults)


def test_what_was_freed_goes_back_and_programs_are_forgotten():
    before, behind = map(int, words_of(TRIM))
    assert before - behind > 150
    traced = []
    double = jax.jit(lambda x: traced.append(x) or 2 * x)
    for _ in range(2):
        double(1.0)
        double(2.0)
        give_back_memory()
    assert len(traced) == 2


def test_memory_is_asked_for_once():
    taken, kept = run("keep")
    assert taken
    assert run("leave")[1] > 1000 + 10 * kept


def test_it_is_too_late_once_jax_is_there():
    assert "jaxlib" in sys.modules
    assert keep_freed_memory() is False


def test_settings_of_the_user_are_left_alone():
    assert run("keep", MALLOC_ARENA_MAX="2")[0] is False
