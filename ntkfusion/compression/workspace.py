"""What the methods of one run share."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jaxtyping import Array, Float

from ntkfusion.errors import InputError

T = TypeVar("T")


class Workspace:
    """What the methods of one run share: randomness, calibration inputs, and intermediate results.

    Several methods need the same expensive thing, say the same clustering. `reuse` computes it once and charges its
    time to each of them, so that reported seconds stay what the method would take alone. Results are kept by the index
    of a block: one workspace is for one list of blocks, and other blocks need another workspace.
    """

    def __init__(
        self,
        seed: int = 0,
        inputs: Sequence[Float[Array, "N d"]] | None = None,
        *,
        squared_gradients: Sequence[Mapping[str, Array]] | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        """What a run has.

        Args:
            seed: drives all randomness.
            inputs: calibration inputs per block, in the order of the blocks.
            squared_gradients: per block, the mean over examples of a task's squared gradients, under the names of the
                block's parameters (the diagonal of its empirical Fisher information).
            progress: called by long work with what it is doing and which fraction of it is done.
        """
        self.seed = seed
        self._inputs = inputs
        self._squared_gradients = squared_gradients
        self._progress = progress
        self._results: dict[Hashable, tuple[Any, float]] = {}
        self._charged = 0.0

    def key(self, purpose: str, index: int) -> Array:
        """A random key that depends on the seed, a purpose and the index of a block only."""
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(purpose.encode()))
        return jax.random.fold_in(key, index)

    def inputs(self, index: int) -> Float[Array, "N d"]:
        """Calibration inputs of block `index`.

        Raises:
            InputError: if the run has none.
        """
        if self._inputs is None:
            raise InputError("this method needs calibration inputs; pass calibration texts")
        return self._inputs[index]

    def check_inputs(self, model_widths: Sequence[int]) -> None:
        """Find out, before any work, whether calibration inputs fit blocks of these model widths; none always do.

        Raises:
            InputError: if there are fewer inputs than blocks, or inputs that are no rows of a block's width.
        """
        if self._inputs is None:
            return
        if len(self._inputs) < len(model_widths):
            raise InputError(f"calibration inputs: one array per block, {len(model_widths)}; got {len(self._inputs)}")
        for index, width in enumerate(model_widths):
            shape = self._inputs[index].shape
            if len(shape) != 2 or shape[1] != width or not shape[0]:
                raise InputError(
                    f"calibration inputs of block {index} must be at least one row of {width} numbers; got {shape}"
                )

    def squared_gradients(self, index: int) -> Mapping[str, Array] | None:
        """Mean squared gradients of a task at block `index`, by parameter; None if the run has none."""
        return None if self._squared_gradients is None else self._squared_gradients[index]

    def progress(self, what: str, fraction: float) -> None:
        """Say how far long work has come, to whoever listens."""
        if self._progress is not None:
            self._progress(what, fraction)

    def reuse(self, name: Hashable, compute: Callable[[], T]) -> T:
        """The result of `compute`, from an earlier call of the same name if there was one."""
        if name in self._results:
            result, seconds = self._results[name]
            self._charged += seconds
            return result
        start = time.perf_counter()
        result = jax.block_until_ready(compute())
        self._results[name] = (result, time.perf_counter() - start)
        return result

    def charged(self) -> float:
        """Seconds of reused work since the last call of this function."""
        seconds, self._charged = self._charged, 0.0
        return seconds
