"""What compression did to the experts of a mixture: each one's own errors, and which tokens another expert gets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntkfusion.compression.block_errors import error_against
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.kernels.kinds import KINDS
from ntkfusion.models.blocks.block import Block, as_dense_weights
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.models.model import Model
from ntkfusion.reporting.results import ExpertErrors, RoutingChange

#: Experts with fewer tokens have no errors: a kernel of one token has no off-diagonal.
MIN_TOKENS = 2

#: The fewest rows that are computed at a time; then powers of two, so that few shapes are compiled.
_FEWEST_ROWS = 16


@dataclasses.dataclass(frozen=True)
class ExpertReference:
    """The experts of one original mixture, each on the held-out tokens that are routed to it.

    Attributes:
        inputs: the tokens of every expert, as rows; filled up with repetitions of the first one.
        counts: how many of those rows are tokens.
        measured: what was measured of every expert by name; None for one with fewer than `MIN_TOKENS` tokens.
    """

    inputs: tuple[Float[Array, "_ d"], ...]
    counts: tuple[int, ...]
    measured: tuple[Mapping[str, Array] | None, ...]

    @classmethod
    def of(cls, block: MixtureBlock, inputs: Float[Array, "N d"]) -> ExpertReference:
        """Route the tokens and measure the original experts."""
        chosen = np.asarray(block.route(inputs)[0])
        places = [np.flatnonzero(chosen == expert) for expert in range(block.num_experts)]
        counts = tuple(len(place) for place in places)
        rows = tuple(inputs[jnp.asarray(_filled_up(place))] for place in places)
        measured = (
            _measure(block.expert(expert), rows[expert], count) if count >= MIN_TOKENS else None
            for expert, count in enumerate(counts)
        )
        return cls(rows, counts, tuple(measured))

    def errors(self, block: Block) -> tuple[ExpertErrors, ...] | None:
        """Relative Frobenius errors of every expert of a compressed mixture; None if the block is no mixture."""
        block = as_dense_weights(block)
        if not isinstance(block, MixtureBlock):
            return None
        return tuple(self._errors(expert, block.expert(expert)) for expert in range(block.num_experts))

    def _errors(self, expert: int, block: Block) -> ExpertErrors:
        count, original = self.counts[expert], self.measured[expert]
        if original is None:
            return ExpertErrors(expert, count, None, None, None)
        found = _measure(block, self.inputs[expert], count)
        errors = {name: error_against(original[name], found[name]) for name in original}
        # an expert that gives 0 has no relative error, as one without tokens has none
        shown = {f"{name}_error": None if math.isnan(error) else error for name, error in errors.items()}
        return ExpertErrors(expert, count, **shown)


def _filled_up(place: Int[np.ndarray, " n"]) -> Int[np.ndarray, " rows"]:
    """The places, the first one repeated until their number is one of few."""
    if not len(place):
        return place
    rows = max(_FEWEST_ROWS, 1 << (len(place) - 1).bit_length())
    return np.concatenate([place, np.full(rows - len(place), place[0])])


def _measure(block: Block, rows: Float[Array, "rows d"], count: int) -> dict[str, Array]:
    """Outputs and kernels of the first `count` rows."""
    kernels = {f"{kind}_kernel": block_kernel(block, rows, kind=kind)[:count, :count] for kind in KINDS}
    return {"output": block(rows)[:count], **kernels}


@dataclasses.dataclass(frozen=True)
class Routes:
    """Where the routers of a network send its tokens.

    Attributes:
        chosen: block of the network → the expert of every token.
        weight: block of the network → that expert's probability.
    """

    chosen: Mapping[int, Int[np.ndarray, " N"]]
    weight: Mapping[int, Float[np.ndarray, " N"]]

    @classmethod
    def of(cls, blocks: Sequence[Block], inputs: Sequence[Float[Array, "N d"]]) -> Routes:
        """The routes of tokens, from all blocks of a network and what reaches each of them."""
        chosen, weight = {}, {}
        for index, (block, x) in enumerate(zip(blocks, inputs, strict=True)):
            if isinstance(block, MixtureBlock):
                expert, p = block.route(x)
                chosen[index], weight[index] = np.asarray(expert), np.asarray(jnp.max(p, axis=-1))
        return cls(chosen, weight)

    def compared_with(self, other: Routes, layers: Sequence[int] | None = None) -> tuple[int, float, float]:
        """How the tokens of this network are routed in another one with the same experts.

        Args:
            other: the routes in a compressed network; mixtures that it does not have are left out.
            layers: which blocks to look at; by default all.

        Returns:
            The number of (token, mixture) pairs; the share whose expert is the same; and of the probability that this
            network's routers give to the experts they choose, the share that is with pairs whose expert changed. NaN
            where there are no pairs.
        """
        shown = [index for index in self.chosen if index in other.chosen and (layers is None or index in layers)]
        if not shown:
            return 0, float("nan"), float("nan")
        same = np.concatenate([self.chosen[index] == other.chosen[index] for index in shown])
        weight = np.concatenate([self.weight[index] for index in shown]).astype(np.float64)
        return same.size, float(same.mean()), float(weight[~same].sum() / weight.sum())

    def change(self, method: str, width: float, other: Routes) -> RoutingChange:
        """The change of the whole network, and of every mixture."""
        pairs, agreement, flipped = self.compared_with(other)
        layers = {str(layer): self.compared_with(other, [layer])[1] for layer in self.chosen if layer in other.chosen}
        return RoutingChange(method, width, pairs, agreement, flipped, layers)


class Mixtures:
    """The mixtures of experts of one model on held-out tokens; nothing happens to a model without any.

    Attributes:
        routing: what became of the routing, one entry per method and width so far.
    """

    def __init__(
        self,
        model: Model,
        layers: Sequence[int],
        held_out: Sequence[Float[Array, "N d"]],
        read: Callable[[Model], Sequence[Float[Array, "N d"]]],
    ) -> None:
        """Measure the original.

        Args:
            model: the original.
            layers: the layers that are compressed.
            held_out: what reaches each of its blocks.
            read: gives the same of another model.
        """
        blocks = model.mlp_blocks()
        self._model, self._layers, self._read = model, tuple(layers), read
        self._routes = Routes.of(blocks, held_out)
        self._experts: dict[int, ExpertReference] = {}
        for layer in layers:
            block = blocks[layer]
            if isinstance(block, MixtureBlock):
                self._experts[layer] = ExpertReference.of(block, held_out[layer])
        self.routing: list[RoutingChange] = []

    def errors(self, layer: int, block: Block) -> tuple[ExpertErrors, ...] | None:
        """The errors of every expert of a compressed layer; None if it is no mixture."""
        return self._experts[layer].errors(block) if layer in self._experts else None

    def add(self, method: str, width: float, blocks: Sequence[Block]) -> None:
        """Run the network with all compressed blocks and see where its tokens go."""
        if not self._routes.chosen:
            return
        small = self._model.replace_mlp_blocks(dict(zip(self._layers, blocks, strict=True)))
        self.routing.append(self._routes.change(method, width, Routes.of(small.mlp_blocks(), self._read(small))))
