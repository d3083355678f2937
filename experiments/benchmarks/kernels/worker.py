"""A contestant's own process: prepare once, then compute on request, and say how long it took and how much it took.

Requests and replies are lines of JSON on standard input and output: first the specification, then any number of
``{"do": "run"}`` and ``{"do": "save", "path": ...}``. Whatever else is printed goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

#: What the messages of allocators have in common.
MEMORY_SIGNS = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|bad_alloc|MemoryError|memory_limit")


def memory_of(process: int | str = "self") -> tuple[int, int]:
    """Resident bytes of a process, now and at most; (0, 0) for one that is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    now, most = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
    return (int(now[1]) * 1024, int(most[1]) * 1024) if now and most else (0, 0)


def settle() -> int:
    """Give freed memory back, forget earlier peaks, and return the resident bytes that are left."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    now, most = memory_of()
    # where the peak cannot be reset, that of the preparation is the baseline
    return now if most < 1.05 * now else most


class _Session:
    """One prepared contestant and its last result."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import jax

        from kernel_benchmark.contestants import CONTESTANTS

        self.compiling = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self.block_until_ready = jax.block_until_ready
        self.call = CONTESTANTS[spec.pop("contestant")](**spec)
        self.result: Any = None
        self.calls, self.held = 0, settle()

    def _listen(self, event: str, seconds: float, **_: Any) -> None:
        self.compiling += seconds if event.endswith("backend_compile_duration") else 0.0

    def run(self) -> dict[str, Any]:
        """Compute once; the peak is that since the start, or since the end of the first call."""
        self.result, self.compiling, self.calls = None, 0.0, self.calls + 1
        if self.calls == 2:
            self.held = settle()
        start = time.perf_counter()
        self.result = self.block_until_ready(self.call())
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "compiling": self.compiling, "held": self.held, "peak": memory_of()[1]}

    def save(self, path: str) -> dict[str, Any]:
        """Write the last result as npy."""
        import numpy as np

        np.save(path, np.asarray(self.result))
        return {"saved": path}


def failure(error: BaseException) -> dict[str, Any]:
    """An error as a reply."""
    text = f"{type(error).__name__}: {error}"
    return {"error": text, "memory": bool(MEMORY_SIGNS.search(text))}


def main() -> None:
    """Serve until standard input ends."""
    with os.fdopen(os.dup(1), "w", buffering=1) as channel:
        os.dup2(2, 1)

        def say(**reply: Any) -> None:
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
