"""What several commands check in a request, and the places that their results have by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntkfusion.compression.contract import Method
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.coded import CodedBlock
from ntkfusion.models.blocks.dense import FactorizedBlock


def check_seed(seed: int) -> None:
    """Refuse a seed that NumPy or JAX would not take.

    Raises:
        InputError: if it is negative or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must be from 0 to {2**32 - 1}, got {seed}")


def check_at_least(options: Any, **least: int) -> None:
    """Refuse numbers that are too small.

    Args:
        options: the dataclass of a command.
        least: field → its smallest value.

    Raises:
        InputError: naming the flag.
    """
    for name, value in least.items():
        if (given := getattr(options, name)) < value:
            raise InputError(f"{flag(name)} must be at least {value}, got {given}")


def flag(field: str) -> str:
    """The flag of a field of options.

    >>> flag("calibration_tokens")
    '--calibration-tokens'
    """
    return f"--{field.replace('_', '-')}"


def check_fits_format(method: Method, asked: str, *, format: str, merge: bool, or_none: bool = False) -> None:  # noqa: A002
    """Refuse a method whose blocks a format cannot hold, before it has run.

    Args:
        method: the method.
        asked: the option that asked for it, such as ``--method svd``.
        format: the format of the saved model.
        merge: whether blocks are multiplied out to dense ones.
        or_none: whether ``--format none`` is another way out.

    Raises:
        InputError: if it does not fit.
    """
    made = method.makes()
    if format not in ("hf", "flax") or merge or made not in (FactorizedBlock, CodedBlock):
        return
    ways = ["--merge to multiply them out to dense ones", "--format ntkfusion to keep them"]
    ways += ["--format none to save no model"] if or_none else []
    raise InputError(
        f"{asked} makes blocks of kind {made.__name__}, which --format {format} has no place for: pass "
        f"{', '.join(ways[:-1])}, or {ways[-1]}"
    )


def results_path(out: Path | None, name: str) -> Path:
    """Where results go: what was asked for, or that name in the folder ``results``."""
    return out or Path("results") / name
