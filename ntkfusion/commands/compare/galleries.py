"""The kernels that a comparison draws: one layer at one width, on the words of a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ntkfusion.data.block_inputs import collect_block_inputs
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.kernels.kinds import KINDS
from ntkfusion.models.blocks.block import Block, as_dense_weights
from ntkfusion.models.model import Model
from ntkfusion.reporting.results import KernelGallery
from ntkfusion.reporting.summary import nearest_width

#: Tokens whose kernels are drawn.
GALLERY_TOKENS = 32

#: Methods whose kernels are drawn, as far as they were asked for.
GALLERY_METHODS = (
    *("mlp-fusion", "mlp-fusion-v2", "mlp-fusion-v4", "svd", "structured-pruning", "random-neurons"),
    *("ntk-fusion", "ntk-fusion-sign"),
)


class Gallery:
    """Collects the kernels of the middle layer at the width nearest to a quarter."""

    def __init__(
        self,
        model: Model,
        layers: Sequence[int],
        methods: Sequence[str],
        widths: Sequence[float],
        sentences: Sequence[str],
    ) -> None:
        """Measure the original.

        Args:
            model: the original.
            layers: the layers that are compressed, at least one.
            methods: names of the methods that will come.
            widths: their widths.
            sentences: held-out text.
        """
        self.names = [name for name in GALLERY_METHODS if name in methods] or list(methods[:5])
        self.width = nearest_width(widths)
        self.place, self.layer = len(layers) // 2, layers[len(layers) // 2]
        words = collect_block_inputs(model, sentences[:GALLERY_TOKENS], max_tokens=None, seed=0, special_tokens=False)
        self.inputs, self.tokens = words.inputs[self.layer][:GALLERY_TOKENS], words.tokens[:GALLERY_TOKENS]
        self.kernels: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
        self._measure("original", model.mlp_blocks()[self.layer])

    def _measure(self, name: str, block: Block) -> None:
        for kind in KINDS:
            kernel = block_kernel(as_dense_weights(block), self.inputs, kind=kind)
            self.kernels[kind][name] = np.asarray(kernel)

    def add(self, name: str, width: float, blocks: Sequence[Block]) -> None:
        """Measure a method's blocks, if they are among those that are drawn."""
        if width == self.width and name in self.names:
            self._measure(name, blocks[self.place])

    def galleries(self) -> tuple[KernelGallery, ...]:
        """What was collected."""
        return (KernelGallery(self.layer, self.width, self.tokens, self.kernels),)
