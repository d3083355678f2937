"""What is measured before training: errors of blocks and of the whole network's kernels, on texts of the dev set."""

from __future__ import annotations

from functools import cached_property

import jax
import numpy as np
from jaxtyping import Array

from experiments.kernel_vs_finetuning.lab import TaskLab
from ntkfusion.commands.kernel.problem import NetworkOnText
from ntkfusion.compression.block_errors import Reference
from ntkfusion.data.block_inputs import collect_block_inputs
from ntkfusion.kernels.distance.kernel_distance import relative_error
from ntkfusion.kernels.kinds import KINDS
from ntkfusion.models.model import Model
from ntkfusion.utils.memory import memory_limit

#: Name → what it is, in the order of the tables.
MEASURES = {
    "output_error": "output of blocks",
    "sgd_kernel_error": "SGD kernel of blocks",
    "sign_kernel_error": "sign kernel of blocks",
    "readouts": "readouts of the network",
    "network_sgd": "SGD kernel of the network",
    "network_sign": "sign kernel of the network",
}


class Measures:
    """The original on some dev texts, measured once."""

    def __init__(self, lab: TaskLab) -> None:
        """Measure on a lab's texts."""
        self.lab, self.options = lab, lab.options
        self.texts = lab.task.dev.first

    @cached_property
    def _references(self) -> list[Reference]:
        options, original = self.options, self.lab.original
        held = collect_block_inputs(
            original,
            self.texts,
            max_tokens=options.tokens,
            seed=0,
            max_length=options.max_length,
            unlike=self.lab.task.train.first,
        )
        return [Reference.of(block, x) for block, x in zip(original.mlp_blocks(), held.inputs, strict=True)]

    @cached_property
    def _network(self) -> dict[str, Array]:
        return self._network_of(self.lab.original)

    def of(self, model: Model) -> dict[str, float]:
        """Relative Frobenius errors of a compressed model: of blocks, means over layers; of the network."""
        pairs = zip(self._references, model.mlp_blocks(), strict=True)
        rows = [reference.errors(block) for reference, block in pairs]
        found = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        network = self._network_of(model)
        return found | {name: relative_error(network[name], self._network[name]) for name in network}

    def _network_of(self, model: Model) -> dict[str, Array]:
        """Readouts of a network, and its kernels with respect to all its own parameters."""
        options = self.options
        problem = NetworkOnText.of(
            model,
            "network",
            list(self.texts[: options.kernel_texts]),
            max_length=options.kernel_length,
            readouts=2,
            seed=0,
        )
        outputs = jax.jit(jax.vmap(problem.f, in_axes=(None, 0)))(problem.params, problem.examples)
        found = {"readouts": outputs}
        for kind in KINDS:
            parts = list(problem.groups(kind, memory_limit(None)).values())
            found[f"network_{kind}"] = sum(parts[1:], start=parts[0])
        return found
