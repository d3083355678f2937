"""What a kernel call takes of the memory, known before it runs: XLA's own analysis of the programs that will run.

And how much is done at a time: the largest chunk that fits, and parts of equal length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
from jax.stages import Compiled
from jaxtyping import Array

from ntkfusion.errors import InputError
from ntkfusion.utils.memory import show_size

#: An array, or its shape and type: enough to know what a call takes.
Shaped: TypeAlias = Array | jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The memory of one kernel call, beside its inputs and the parameters; bytes on each device.

    Attributes:
        peak: most that lives at once, the result included.
        result: what is returned.
        chunk: examples (for block kernels: rows of a tile) that are taken at a time.
        limit: what `peak` had to fit into.
    """

    peak: int
    result: int
    chunk: int
    limit: int

    def __str__(self) -> str:
        """One line for people."""
        return f"{show_size(self.peak)} at most (result {show_size(self.result)}), {self.chunk} at a time"


def program_bytes(program: Compiled) -> int:
    """What a compiled program allocates: its results and its temporary arrays."""
    analysis = program.memory_analysis()
    return 0 if analysis is None else int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)


def output_bytes(program: Compiled) -> int:
    """What a compiled program allocates for its results."""
    analysis = program.memory_analysis()
    return 0 if analysis is None else int(analysis.output_size_in_bytes)


def check_result(result: int, limit: int, most: int, unit: str, instead: str = "") -> None:
    """Refuse a result that alone exceeds the limit.

    Args:
        result: bytes.
        limit: bytes.
        most: how many rows and columns fit, if nothing else is kept.
        unit: what they are.
        instead: what else to ask for.

    Raises:
        InputError: saying what would fit.
    """
    if result > limit:
        fewer = f"ask for {most} {unit} or fewer{instead}, or" if most else f"not even one of the {unit} fits:"
        raise InputError(
            f"the kernel alone takes {show_size(result)}, the limit is {show_size(limit)}: {fewer} raise memory_limit"
        )


def largest_that_fits(needs: Callable[[int], int], first: int, limit: int, advice: str) -> tuple[int, int]:
    """The largest chunk, among few that are tried, whose memory fits.

    Args:
        needs: chunk → bytes, by compiling; grows with the chunk.
        first: the chunk to try first; none above it is wanted.
        limit: bytes.
        advice: what else to do when not even a chunk of 1 fits.

    Returns:
        The chunk, and the bytes it needs.

    Raises:
        InputError: if a chunk of 1 does not fit.
    """
    chunk = first
    while True:
        needed = needs(chunk)
        if needed <= limit:
            return chunk, needed
        if chunk == 1:
            raise InputError(
                f"the kernel needs {show_size(needed)} at least, the limit is {show_size(limit)}: {advice}"
            )
        chunk = max(1, min(3 * chunk // 4, int(chunk * limit / needed)))


def even_part(length: int, most: int) -> int:
    """The smallest part of a length that needs no more parts than `most` does.

    >>> even_part(9, 8)
    5
    """
    return -(-length // -(-length // max(1, most)))
