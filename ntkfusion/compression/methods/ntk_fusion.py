"""NTK fusion: this project's own method, selected neurons refitted, tuned and given kernel-matched constants.

Not from a paper. Each step is described where it is: `forward_selection`, `refit_output`, `tune`, `match_constants`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.compression.contract import LayerwiseMethod
from ntkfusion.compression.matching.constants import Target, check_target, match_constants
from ntkfusion.compression.matching.refit import refit_output
from ntkfusion.compression.matching.tuning import Tuning, tune
from ntkfusion.compression.neurons import select_neurons
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.kernels.distance.kernel_distance import relative_error
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock

#: Added to the diagonal of the Gram matrix, in units of its mean: what tokens do not determine is not chased.
DAMPING = 1e-4


@dataclasses.dataclass(frozen=True)
class NTKFusion(LayerwiseMethod):
    """Keep output and kernel: select neurons, refit the output weights, tune, match the constants.

    1. The c neurons whose activations explain the outputs best are kept, chosen one after the other.
    2. Ridge regression replaces their output weights.
    3. All parameters are tuned towards the original's outputs and both of its kernels, then step 2 once more.
    4. Constants bring the SGD kernel, the sign kernel or both as close as they can; the function stays.

    Steps 1 to 3 do not depend on `target`. Everything is fitted to calibration inputs and nothing else; how far
    held-out errors are from calibration errors depends on their number (experiments/README.md, "Kernel distances").
    The defaults were chosen on MiniLM at width ¼, calibrated on SST-2's training sentences, by errors on 512 tokens of
    its development sentences.

    Attributes:
        keep_ratio: the kept share of the hidden width.
        target: the kernel that the constants are matched to. One set of constants cannot serve both well: "both" is a
            compromise.
        sgd_share: the weight of the SGD kernel's squared relative error in "both"; the sign kernel has the rest.
        tuning: step 3; ``Tuning(steps=0)`` leaves it out.
        matching_tokens: calibration tokens for step 4, whose cost grows with their square.

    >>> NTKFusion(keep_ratio=0.5, target="sign").tuning.steps
    400
    """

    target: Target = "sgd"
    sgd_share: float = 0.5
    tuning: Tuning = dataclasses.field(default_factory=Tuning)
    matching_tokens: int = 512

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a keep ratio or a number out of range, or an unknown target.
        """
        super().__post_init__()
        check_target(self.target, self.sgd_share)
        if self.matching_tokens < 1:
            raise InputError(f"matching_tokens must be at least 1, got {self.matching_tokens}")

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """The four steps; with all neurons kept there is nothing to do."""
        inputs, count = workspace.inputs(index), self.kept_neurons(block.hidden_width)
        if count == block.hidden_width:
            return block, {}
        student, details = workspace.reuse(
            ("ntk-fusion", index, count, self.tuning), lambda: self._student(block, index, workspace)
        )
        shown = some_inputs(inputs, self.matching_tokens, workspace.key("matching", index))
        matched = match_constants(student, block, shown, target=self.target, sgd_share=self.sgd_share)
        errors = {f"calibration_{kind}_kernel_error": error for kind, error in matched.errors.items()}
        return matched.block, {**details, **errors}

    def _student(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[MLPBlock, dict[str, float]]:
        inputs, count = workspace.inputs(index), self.kept_neurons(block.hidden_width)
        hidden = block.hidden(inputs)
        selected = select_neurons(block, forward_selection(hidden, block.w2, count))
        student, _ = refit_output(selected, block, inputs)
        student, tuning = tune(
            student,
            block,
            inputs,
            workspace.key("tuning", index),
            self.tuning,
            lambda fraction: workspace.progress(f"tuning block {index + 1}", fraction),
        )
        # the losses of the tuning are those before this step
        student, refit = refit_output(student, block, inputs)
        error = relative_error(student(inputs), block(inputs))
        return student, {**refit, **tuning, "calibration_output_error": error}


def some_inputs(inputs: Float[Array, "N d"], count: int, key: Array) -> Float[Array, "n d"]:
    """At most `count` of the inputs, drawn without replacement."""
    return inputs[jax.random.permutation(key, inputs.shape[0])[:count]]


def forward_selection(
    hidden: Float[Array, "N m"], output_weights: Float[Array, "m o"], count: int
) -> Int[Array, " count"]:
    """The neurons with which output weights can be refitted best, chosen greedily.

    Of the neurons not chosen yet, each step takes the one that lowers min_W ‖A V − A_S W‖² most, S being the chosen
    ones and W refitted every time ("orthogonal least squares", Chen, Billings & Luo 1989). With C = AᵀA and B = C V the
    gain of neuron i is ‖B_i‖² / C_ii, and after choosing j both lose a rank-one part, so a step costs O(m (m + o)).

    Args:
        hidden: A, activations on calibration tokens.
        output_weights: V, the original's.
        count: how many neurons.

    Returns:
        Their indices, ascending. Ties go to the lower index.

    Raises:
        InputError: if `count` is not from 1 to m.

    >>> import jax.numpy as jnp
    >>> forward_selection(jnp.eye(3), jnp.array([[1.0], [3.0], [2.0]]), 2)
    Array([1, 2], dtype=int32)
    """
    if not 1 <= count <= hidden.shape[1]:
        raise InputError(f"count must be from 1 to the number of neurons, {hidden.shape[1]}; got {count}")
    with jax.default_matmul_precision("highest"):
        return jnp.sort(_select(hidden, output_weights, count))


@partial(jax.jit, static_argnames="count")
def _select(hidden: Float[Array, "N m"], output_weights: Float[Array, "m o"], count: int) -> Int[Array, " count"]:
    gram = hidden.T @ hidden
    m, unit = gram.shape[0], jnp.trace(gram) / gram.shape[0]
    gram = gram + DAMPING * unit * jnp.eye(m, dtype=gram.dtype)
    least = 1e-6 * jnp.diag(gram)

    def step(index: Int[Array, ""], state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        gram, products, chosen = state
        left = jnp.diag(gram)
        taken = jnp.zeros(m, bool).at[chosen].set(True, mode="drop")
        gains = jnp.sum(products**2, axis=1) / jnp.maximum(left, least)
        best = jnp.argmax(jnp.where(taken, -1.0, gains))
        root = jnp.sqrt(jnp.maximum(left[best], least[best]))
        column, row = gram[:, best] / root, products[best] / root
        gram = gram - column[:, None] * column[None, :]
        products = products - column[:, None] * row[None, :]
        return gram, products, chosen.at[index].set(best.astype(jnp.int32))

    nobody = jnp.full(count, m, jnp.int32)
    return jax.lax.fori_loop(0, count, step, (gram, gram @ output_weights, nobody))[2]
