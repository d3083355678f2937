"""A contestant's own process: prepare once, then compute on request, and say how long it took and how much it took.

Requests and replies are lines of JSON on standard input and output: first the specification, then any number of
``{"do": "run"}`` and ``{"do": "save", "path": ...}``. Whatever else is printed goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time

import jax
import numpy as np

from experiments.benchmarks.kernels.contestants import CONTESTANTS
from experiments.benchmarks.kernels.outcome import MEMORY_SIGNS
from experiments.benchmarks.process_memory import memory_of, settle
from experiments.common.store import Result


class _Session:
    """One prepared contestant and its last result."""

    def __init__(self, spec: Result) -> None:
        self.compiling = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self.call = CONTESTANTS[spec.pop("contestant")](**spec)
        self.result: object = None
        self.calls, self.held = 0, settle()

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        self.compiling += duration_secs if event.endswith("backend_compile_duration") else 0.0

    def run(self) -> dict[str, object]:
        """Compute once; the peak is that since the start, or since the end of the first call."""
        self.result, self.compiling, self.calls = None, 0.0, self.calls + 1
        if self.calls == 2:
            self.held = settle()
        start = time.perf_counter()
        self.result = jax.block_until_ready(self.call())
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "compiling": self.compiling, "held": self.held, "peak": memory_of()[1]}

    def save(self, path: str) -> dict[str, object]:
        """Write the last result as npy."""
        np.save(path, np.asarray(self.result))
        return {"saved": path}


def failure(error: BaseException) -> dict[str, object]:
    """An error as a reply."""
    text = f"{type(error).__name__}: {error}"
    return {"error": text, "memory": bool(MEMORY_SIGNS.search(text))}


def main() -> None:
    """Serve until standard input ends."""
    with os.fdopen(os.dup(1), "w", buffering=1) as channel:
        os.dup2(2, 1)

        def say(**reply: object) -> None:
            channel.write(json.dumps(reply) + "\n")

        try:
            session = _Session(json.loads(sys.stdin.readline()))
            say(baseline=session.held)
            for line in sys.stdin:
                request = json.loads(line)
                say(**(session.run() if request["do"] == "run" else session.save(request["path"])))
        except Exception as error:
            say(**failure(error))


if __name__ == "__main__":
    main()
