"""Processes that die while they save. Run as ``python kill_while_saving.py FOLDER``.

FOLDER/none: saved twice without dying. FOLDER/kill_i: killed at some moment of the second save. Moments are events that
Python audits (a file opened, renamed, a folder made or deleted), spread over all there are in a whole second save.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from ntkfusion.training.step import TrainState
from ntkfusion.training.store import StateStore, TrainingProgress

MOMENTS = 9


def state(step):
    """A state that differs from update to update."""
    params = {f"w{number}": jnp.full((64, 3), step + number / 8) for number in range(4)}
    return TrainState(params, jax.tree.map(lambda leaf: leaf / 3, params), jnp.int32(step))


def progress(step):
    """Its progress."""
    return TrainingProgress(state(step).params, ({"step": float(step), "accuracy": step / 7},), best_step=step)


def save_twice(folder, last_event):
    """Save, and save again, which `last_event` may interrupt; the number of events of the second save."""
    seen, saving = 0, False

    def count(event, arguments):
        nonlocal seen
        if saving and event.split(".")[0] in ("open", "os", "shutil"):
            seen += 1
            if seen == last_event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    store = StateStore(folder)
    store.save(state(1), progress(1))
    saving = True
    store.save(state(2), progress(2))
    saving = False
    store.close()
    return seen


def in_a_fork(folder, last_event):
    """How a process that saves there ended, and how many events it told."""
    reader, writer = os.pipe()
    child = os.fork()  # nothing is computed before, so JAX has no threads yet
    if not child:
        os.write(writer, str(save_twice(folder, last_event)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    return os.waitpid(child, 0)[1], int(told or 0)


def main(folder):
    status, events = in_a_fork(folder / "none", None)
    assert status == 0
    assert events > MOMENTS
    # other threads tell events too, a few more or less each time: the last moment is well inside
    moments = [1 + index * (4 * events // 5) // (MOMENTS - 1) for index in range(MOMENTS)]
    ends = [in_a_fork(folder / f"kill_{moment}", moment)[0] for moment in moments]
    assert all(os.WIFSIGNALED(end) and os.WTERMSIG(end) == signal.SIGKILL for end in ends), ends
    print(json.dumps({"events": events, "moments": moments}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
