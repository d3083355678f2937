"""How to get what this installation lacks: no package index has this library, so nobody can ask it for extras."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shlex
import sys
from pathlib import Path

#: Where the package's folder is.
_ROOT = Path(__file__).parents[2]


def how_to_install(extra: str, *, alone: bool = False) -> str:
    """A command that brings an extra into this very environment, in backquotes; another one for a checkout with uv.

    Args:
        extra: one of ``pyproject.toml``.
        alone: leave out what its packages depend on, which nobody here imports.
    """
    packages = _requirements(extra)
    if not packages:
        return f"what pyproject.toml has under the extra {extra}"
    # an environment that uv made has no pip
    words = [sys.executable, "-m", "pip", "install"]
    if importlib.util.find_spec("pip") is None:
        words = ["uv", "pip", "install", "--python", sys.executable]
    command = f"`{shlex.join([*words, *(['--no-deps'] if alone else []), *packages])}`"
    return f"{command}, or `uv run --extra {extra} ...` in {_ROOT}" if (_ROOT / "pyproject.toml").exists() else command


def _requirements(extra: str) -> list[str]:
    """The packages of an extra, as the installed metadata has them."""
    try:
        everything = importlib.metadata.requires("ntkfusion") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    split = [line.partition(";") for line in everything]
    return [name.strip() for name, _, marker in split if re.fullmatch(rf"""\s*extra == ['"]{extra}['"]\s*""", marker)]
