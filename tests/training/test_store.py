"""Saved states: bit by bit what was saved, whole or not there, whenever the process died."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion
from ntkfusion.errors import OutputBusyError, OutputWriteError
from ntkfusion.training.store import StateStore
from tests.helpers.kill_while_saving import MOMENTS, progress, state
from tests.helpers.lock_holder import held_by_another

SCRIPT = Path(__file__).parents[1] / "helpers/kill_while_saving.py"


def is_same(one, other):
    """Whether two trees hold the same bits."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


def holds(folder, step):
    """Whether the folder holds what was saved at a step, and takes what is saved next."""
    store = StateStore(folder)
    assert store.step == step
    found, done = store.resume(state(0), progress(0))
    store.save(state(9), progress(9))
    assert store.step == 9
    store.close()
    expected = progress(step)
    facts = (done.history, done.best_step, done.stale, done.finished)
    return (
        is_same(found, state(step))
        and is_same(done.best, expected.best)
        and facts == (expected.history, expected.best_step, expected.stale, expected.finished)
    )


def test_what_is_restored_is_what_was_saved(tmp_path):
    store = StateStore(tmp_path / "new" / "state")
    assert store.step is None
    odd = {"a": jnp.asarray([1e-45, -0.0, 3.3], jnp.float32), "b": jnp.asarray([[1.1]], jnp.bfloat16)}
    one = type(state(1))(odd, ({"count": jnp.int32(7)}, None, odd), jnp.int32(5))
    store.save(one, progress(1))
    store.save(state(5), progress(5))  # the same step: what is there stays
    empty = jax.tree.map(jnp.zeros_like, one)
    found, _ = store.resume(empty, progress(0))
    assert jax.tree.structure(found) == jax.tree.structure(one)
    assert is_same(found, one)
    store.close()
    assert len([path for path in (tmp_path / "new" / "state").iterdir() if path.is_dir()]) == 1


def test_a_full_disk_is_one_error_and_the_last_save_stays(tmp_path, capfd):
    """Orbax's threads tell of every array that could not be written; users hear of it once."""
    resource = pytest.importorskip("resource")
    store = StateStore(tmp_path / "state")
    store.save(state(1), progress(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OutputWriteError, match="state could not be written: File too large"):
            store.save(state(2), progress(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store.close()
    gc.collect()
    assert capfd.readouterr() == ("", "")
    assert holds(tmp_path / "state", 1)


def test_a_state_that_another_process_uses_is_refused(tmp_path):
    with (
        held_by_another(tmp_path / "state") as process,
        pytest.raises(OutputBusyError, match=f"process {process.pid} "),
    ):
        StateStore(tmp_path / "state")
    store = StateStore(tmp_path / "state")
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.wide
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_at_any_moment_of_a_save_the_last_or_the_new_state_is_there(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(ntkfusion.__file__).parents[1])}
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    moments = json.loads(done.stdout.splitlines()[-1])["moments"]
    assert len(set(moments)) == MOMENTS
    found = {moment: StateStore(tmp_path / f"kill_{moment}").step for moment in moments}
    print(f"\nsteps found by moment of death: {found}")
    assert found[moments[0]] == 1  # died before anything was written
    assert {found[moment] for moment in moments} <= {1, 2}
    assert found[moments[-1]] == 2  # the new one was in its place, and the old one being deleted
    assert holds(tmp_path / "none", 2)
    for moment, step in found.items():
        assert holds(tmp_path / f"kill_{moment}", step)
