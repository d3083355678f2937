"""Programs are forgotten before the process runs out of memory maps, and not before that."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import ntkfusion as nf
from ntkfusion.utils import programs
from tests.helpers.blocks import dense_block, normal

HAS_MAPS = Path("/proc/self/maps").exists()


@pytest.fixture
def few_maps(monkeypatch):
    """As if the system allowed a process no more maps than this one has."""
    monkeypatch.setattr(programs, "most_maps", programs.memory_maps)


def test_nothing_is_forgotten_while_there_is_room(monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: pytest.fail("there was room"))
    assert not programs.forget_programs_if_many()


@pytest.mark.skipif(not HAS_MAPS, reason="the system does not say how many maps there are")
def test_programs_are_forgotten_when_half_of_the_maps_are_in_use(few_maps, caplog):
    caplog.set_level("INFO", "ntkfusion")
    assert programs.forget_programs_if_many()
    assert "compiled programs were forgotten" in caplog.text


def test_without_proc_nothing_happens(monkeypatch):
    monkeypatch.setattr(programs, "Path", lambda _: Path("/nowhere/at/all"))
    assert programs.memory_maps() == 0
    assert programs.most_maps() == programs.USUAL_LIMIT
    assert not programs.forget_programs_if_many()


def test_only_compilations_count(monkeypatch):
    looked = []
    monkeypatch.setattr(programs, "forget_programs_if_many", lambda: looked.append(True))
    watch = programs._Watch()
    for _ in range(programs.EVERY):
        watch("/jax/core/compile/jaxpr_trace_duration", 0.1)
    assert not looked
    for _ in range(2 * programs.EVERY):
        watch("/jax/core/compile/backend_compile_duration", 0.1, fun_name="f")
    assert len(looked) == 2


def test_a_compilation_is_seen(monkeypatch):
    """JAX reports it under the name that is listened to."""
    seen = []
    monkeypatch.setattr(programs, "forget_programs_if_many", lambda: seen.append(True))
    monkeypatch.setattr(programs, "EVERY", 1)
    programs.watch_programs()
    jax.block_until_ready(jax.jit(lambda x: x + 1.2345)(jnp.ones(3)))
    assert seen


@pytest.mark.skipif(not HAS_MAPS, reason="the system does not say how many maps there are")
def test_forgetting_in_the_middle_of_anything_changes_no_number(few_maps, monkeypatch):
    """Programs are forgotten from within a compilation, which may be within a trace."""
    block, x = dense_block(5, 13), normal(7, 6, 5)
    before = nf.block_kernel(block, x, kind="sign")
    monkeypatch.setattr(programs, "EVERY", 1)
    programs.watch_programs()
    jax.clear_caches()
    again = nf.block_kernel(block, x, kind="sign")
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jax.jit(jnp.tanh)(block(x)))))(x)
    assert jnp.array_equal(before, again)
    assert bool(jnp.all(jnp.isfinite(gradient)))


LOOP = """
    import ctypes, mmap, sys

    import jax, numpy as np
    import ntkfusion as nf
    from ntkfusion.utils import programs

    nf.MLPBlock, nf.block_kernel  # names are imported when they are used, and with them the watch begins
    if "watched" not in sys.argv:
        jax.monitoring.clear_event_listeners()  # as it was
    # ballast, so that the end is near: pages of alternating rights are maps of their own
    room = {room}
    count = programs.most_maps() - programs.memory_maps() - room
    pages = mmap.mmap(-1, count * mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for page in range(0, count, 2):
        assert protect(start + page * mmap.PAGESIZE, mmap.PAGESIZE, mmap.PROT_READ) == 0
    rng = np.random.default_rng(0)
    for width in range(2, {widths}):
        w1, w2 = rng.normal(size=(3, width)), rng.normal(size=(width, 3))
        block = nf.MLPBlock(*(jax.numpy.float32(a) for a in (w1, w1[0], w2, w2[0])))
        x = jax.numpy.float32(rng.normal(size=(width, 3)))
        nf.kernel_distance(*(nf.block_kernel(block, x, kind=kind) for kind in ("sgd", "sign")))
    print("done")
"""


def sweep(*arguments):
    """A session that compiles several programs for each of many widths, with room for few of them."""
    script = textwrap.dedent(LOOP).format(room=800, widths=26)
    environment = {"JAX_COMPILATION_CACHE_DIR": ""}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.slow
@pytest.mark.skipif(not HAS_MAPS, reason="the system does not say how many maps there are")
def test_a_long_session_does_not_run_out_of_memory_maps():
    """It died in XLA: "Cannot allocate memory"."""
    done = sweep("watched")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("done\n")
    assert sweep().returncode != 0  # the loop would die: the test is one
