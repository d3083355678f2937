"""Calls as users make them: shapes and types in signatures are checked in tests only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import config


@contextmanager
def as_users() -> Iterator[None]:
    """Nothing but the library itself refuses arguments in this block."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)
