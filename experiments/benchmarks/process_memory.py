"""Resident memory of a process as Linux counts it, and its peak since a moment of one's choice."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from pathlib import Path


def memory_of(process: int | str = "self") -> tuple[int, int]:
    """Resident bytes of a process, now and at most; (0, 0) for one that is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    now, most = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
    return (int(now[1]) * 1024, int(most[1]) * 1024) if now and most else (0, 0)


def forget_peak() -> None:
    """Count the peak of this process from now on.

    Raises:
        OSError: if the system does not do so.
    """
    Path("/proc/self/clear_refs").write_text("5")


def settle() -> int:
    """Give freed memory back, forget earlier peaks, and return the resident bytes that are left."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        forget_peak()
    now, most = memory_of()
    # where the peak cannot be reset, that of the preparation is the baseline
    return now if most < 1.05 * now else most
