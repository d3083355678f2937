"""How much memory there is, and how much a request may take."""

from __future__ import annotations

import os
import re
from pathlib import Path

import jax

from ntkfusion.errors import InputError

#: Share of the available memory that a kernel takes when nobody sets a limit.
SAFE_SHARE = 0.6

_UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}

_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_size(text: str | int) -> int:
    """A number of bytes from a number or a text such as "8GiB".

    Raises:
        InputError: if it is neither, or not positive.

    >>> parse_size("1.5 KiB")
    1536
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]*)\s*", str(text).lower())
    try:
        size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    except (KeyError, OverflowError, ValueError):
        size = 0
    if size <= 0:
        raise InputError(f"a memory limit is a positive size such as 8GiB or 500MB; got {text!r}")
    return size


def show_size(size: int | float) -> str:
    """A number of bytes for people.

    >>> show_size(3 * 2**30)
    '3.0 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def available_memory() -> int:
    """Bytes that the default device, or the machine in the case of CPUs, can still give."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return int(statistics["bytes_limit"] - statistics.get("bytes_in_use", 0))
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
        if found:
            return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_limit(limit: int | str | None) -> int:
    """The limit in bytes: what was asked for, or a safe share of what is available.

    Raises:
        InputError: for a limit that is no size.
    """
    return int(SAFE_SHARE * available_memory()) if limit is None else parse_size(limit)
