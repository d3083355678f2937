"""Experts one by one: what a method for one dense block makes of a mixture of them, the router untouched."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.mixture import MixtureBlock

T = TypeVar("T")

#: An expert to which fewer calibration tokens are routed is calibrated on all tokens of its layer.
MIN_TOKENS = 16

_EXPERTS = "experts/"


class ExpertWorkspace(Workspace):
    """A run as the experts of one of its mixtures see it: expert e is block e.

    Calibration inputs of an expert are the tokens that the router sends to it, each counted once whatever its
    probability; if they are fewer than `MIN_TOKENS`, all tokens of the layer.

    Attributes:
        on_all_tokens: the experts that were given all tokens so far.
    """

    def __init__(self, run: Workspace, index: int, mixture: MixtureBlock) -> None:
        """The view of `mixture`, block `index` of the run."""
        super().__init__(run.seed)
        self._run, self._index, self._mixture = run, index, mixture
        self.on_all_tokens: set[int] = set()

    def key(self, purpose: str, index: int) -> Array:
        """A random key of one expert; see `Workspace.key`."""
        return jax.random.fold_in(self._run.key(purpose, self._index), index)

    def inputs(self, index: int) -> Float[Array, "N d"]:
        """Calibration inputs of one expert.

        Raises:
            InputError: if the run has none.
        """
        tokens = self._run.inputs(self._index)
        routed = np.flatnonzero(np.asarray(self._mixture.route(tokens)[0]) == index)
        if len(routed) >= MIN_TOKENS:
            return tokens[jnp.asarray(routed)]
        self.on_all_tokens.add(index)
        return tokens

    def squared_gradients(self, index: int) -> Mapping[str, Array] | None:
        """Mean squared gradients of one expert's parameters, ``experts/w1`` [E, d, m] of the run as ``w1`` [d, m]."""
        given = self._run.squared_gradients(self._index)
        if given is None:
            return None
        return {name.removeprefix(_EXPERTS): array[index] for name, array in given.items() if name.startswith(_EXPERTS)}

    def progress(self, what: str, fraction: float) -> None:
        """See `Workspace.progress`."""
        self._run.progress(what, fraction)

    def reuse(self, name: Hashable, compute: Callable[[], T]) -> T:
        """The result of `compute`, shared with other methods that compress the same mixture."""
        return self._run.reuse(("expert", self._index, name), compute)

    def charged(self) -> float:
        """See `Workspace.charged`."""
        return self._run.charged()


def compress_experts(
    compress_one: Callable[[Any, int, Workspace], tuple[Any, Mapping[str, float]]],
    mixture: MixtureBlock,
    index: int,
    workspace: Workspace,
) -> tuple[MixtureBlock, dict[str, float]]:
    """Compress every expert on its own; the router is the same array, trained or not as before.

    Args:
        compress_one: what happens to one block: ``(block, index, workspace) -> (new block, details)``.
        mixture: the original; it is not changed.
        index: which block of the run it is.
        workspace: the run.

    Returns:
        The mixture of the new experts, and the means of their details; beside them, if calibration inputs were used,
        how many experts had to be calibrated on all tokens (``experts_on_all_tokens``).

    Raises:
        InputError: if the new experts differ in kind or shape.
    """
    view = ExpertWorkspace(workspace, index, mixture)
    results = [compress_one(mixture.expert(e), e, view) for e in range(mixture.num_experts)]
    experts, details = [block for block, _ in results], [detail for _, detail in results]
    _check_alike(experts)
    means = {name: float(np.mean([detail[name] for detail in details])) for name in details[0]}
    if view.on_all_tokens:
        means["experts_on_all_tokens"] = float(len(view.on_all_tokens))
    return MixtureBlock.stack(mixture.router, experts, train_router=mixture.train_router), means


def _check_alike(experts: Sequence[Any]) -> None:
    def shapes(expert: Any) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in (expert.parameters() | expert.constants()).items()}

    first = experts[0]
    for e, expert in enumerate(experts):
        if type(expert) is not type(first) or shapes(expert) != shapes(first):
            raise InputError(
                f"the method makes experts that differ in kind or shape and cannot be stacked: expert 0 is a "
                f"{type(first).__name__} of {shapes(first)}, expert {e} a {type(expert).__name__} of {shapes(expert)}. "
                "Choose options that give every expert the same width"
            )
