"""Few compiled programs at a time: each takes memory maps, and a process that runs out of them dies inside XLA.

Linux allows a process 65530 maps (``vm.max_map_count``), a compiled program takes some dozens, and JAX keeps every
program of every shape it has met. A session that sweeps methods, widths and layers compiles hundreds of them, until
"Cannot allocate memory" kills it, with gigabytes free. So compilations are counted, the maps are looked at now and
then, and when half of them are in use JAX forgets its programs: what is needed again is compiled again.
"""

from __future__ import annotations

import functools
import gc
import logging
from pathlib import Path

import jax

#: The maps are counted after so many compilations: it takes milliseconds, a compilation tens of them.
EVERY = 32

#: What Linux allows where it does not say.
USUAL_LIMIT = 65_530

#: The share of the maps that may be in use.
SHARE = 0.5

_COMPILED = "/jax/core/compile/backend_compile_duration"

_log = logging.getLogger(__name__)


def memory_maps() -> int:
    """How many memory maps this process has; 0 where the system does not say (no /proc)."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return 0


def most_maps() -> int:
    """How many it may have."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return USUAL_LIMIT


def forget_programs_if_many() -> bool:
    """Forget all compiled programs if half of the memory maps are in use.

    Returns:
        Whether they were forgotten.
    """
    before, limit = memory_maps(), most_maps()
    if before <= SHARE * limit:
        return False
    jax.clear_caches()
    gc.collect()
    _log.info(
        "%d of %d memory maps were in use: compiled programs were forgotten, %d are", before, limit, memory_maps()
    )
    return True


class _Watch:
    """Counts compilations, of anybody in this process."""

    def __init__(self) -> None:
        self.compiled = 0

    def __call__(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event != _COMPILED:
            return
        self.compiled += 1
        if self.compiled % EVERY == 0:
            forget_programs_if_many()


@functools.cache
def watch_programs() -> None:
    """From now on keep the number of live programs of this process in bounds; calls after the first do nothing."""
    jax.monitoring.register_event_duration_secs_listener(_Watch())
