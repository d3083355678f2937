"""What ``ntkfusion kernel`` computes: a block on its own inputs, or a network as a function of one sentence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.data.block_inputs import BlockInputs, tokenize
from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel, estimate_block_kernel
from ntkfusion.kernels.estimate import Estimate
from ntkfusion.kernels.kinds import Kind
from ntkfusion.kernels.network.network_kernel import estimate_network_kernel, network_kernel
from ntkfusion.kernels.oracles.dense_jacobian import block_function
from ntkfusion.kernels.oracles.neural_tangents import reference_kernel
from ntkfusion.models.batch import ModelOutput
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.model import Model
from ntkfusion.utils.files import Json
from ntkfusion.utils.parameter_paths import Params, matches, parameter_paths

#: Token ids and attention mask of one sentence.
Sentence: TypeAlias = Mapping[str, Array]

#: A network as a function of its parameters and one sentence.
Network: TypeAlias = Callable[[Params, Sentence], Float[Array, " C"]]


@dataclasses.dataclass(frozen=True)
class BlockOnText:
    """One MLP block on tokens that reach it; the kernel is the mean over outputs.

    Attributes:
        inputs: the arrays that the kernel file keeps.
        facts: what this scope adds to the conditions.
        option: the command line option that says how many examples there are.
    """

    block: Block
    x: Float[Array, "N d"]
    inputs: Mapping[str, np.ndarray]
    facts: Json
    option: str = "tokens"

    @classmethod
    def of(cls, model: Model, layer: int, held: BlockInputs) -> BlockOnText:
        """Layer `layer`'s block on collected inputs."""
        x = held.inputs[layer]
        inputs = {"block_inputs": np.asarray(x), "tokens": np.array(held.tokens, dtype=np.str_)}
        facts = {
            "normalisation": "mean over outputs, sum over parameters",
            "readout": f"the block's {model.config.hidden_size} outputs",
            "tokens": len(held.tokens),
        }
        return cls(model.mlp_blocks()[layer], x, inputs, facts)

    @property
    def count(self) -> int:
        """Tokens."""
        return self.x.shape[0]

    def estimate(self, kind: Kind, limit: int) -> Estimate:
        """The memory it takes, refused if that is more than the limit."""
        return estimate_block_kernel(self.block, self.count, kind=kind, by_parameter=True, memory_limit=limit)

    def groups(self, kind: Kind, limit: int) -> dict[str, Array]:
        """One kernel per parameter, in closed form."""
        found = block_kernel(self.block, self.x, kind=kind, by_parameter=True, memory_limit=limit)
        return {name: found[name] for name in self.block.parameters()}

    def reference_bytes(self, count: int) -> int:
        """Structured derivatives keep ∂f/∂(hidden units), [N, o, m]."""
        numbers = 2 * count * self.block.output_width * self.block.hidden_width + 4 * count**2
        return numbers * self.x.dtype.itemsize

    def reference(self) -> Array:
        """By structured derivatives: the others need N·o·P numbers, 4 GiB for a token of MiniLM."""
        f, params = block_function(self.block)
        return reference_kernel(f, params, self.x, implementation="structured-derivatives")


@dataclasses.dataclass(frozen=True)
class NetworkOnText:
    """A network as ``f(params, sentence) -> [C]``; the kernel is [N, N, C, C].

    Attributes:
        patterns: group of parameters → pattern of their paths.
        inputs: the arrays that the kernel file keeps.
        facts: what this scope adds to the conditions.
        option: the command line option that says how many examples there are.
    """

    f: Network
    params: Params
    examples: Mapping[str, Array]
    patterns: Mapping[str, str]
    inputs: Mapping[str, np.ndarray]
    facts: Json
    option: str = "examples"

    @classmethod
    def of(
        cls, model: Model, scope: str, sentences: Sequence[str], *, max_length: int, readouts: int, seed: int
    ) -> NetworkOnText:
        """The network on sentences, padded to the longest."""
        encodings, _ = tokenize(model, sentences, max_length=max_length)
        longest = max(len(ids) for ids in encodings)
        ids, mask = np.zeros((2, len(encodings), longest), np.int32)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding)] = encoding
            mask[row, : len(encoding)] = 1
        f, readout, directions = network_function(model, readouts, seed)
        facts = {
            "normalisation": "every pair of outputs, sum over parameters, divided by nothing",
            "readout": readout,
            "examples": len(encodings),
            "length": longest,
        }
        inputs = {"input_ids": ids, "attention_mask": mask, **directions}
        examples = {"input_ids": jnp.asarray(ids), "attention_mask": jnp.asarray(mask)}
        return cls(f, model.params, examples, parameter_groups(model, scope), inputs, facts)

    @property
    def count(self) -> int:
        """Sentences."""
        return self.examples["input_ids"].shape[0]

    def groups(self, kind: Kind, limit: int) -> dict[str, Array]:
        """One kernel per group of parameters, from one pass."""
        found = network_kernel(self.f, self.params, self.examples, **self._arguments(kind, limit))
        assert isinstance(found, dict)
        return found

    def estimate(self, kind: Kind, limit: int) -> Estimate:
        """From the compiled programs, which are then used."""
        return estimate_network_kernel(self.f, self.params, self.examples, **self._arguments(kind, limit))

    def _arguments(self, kind: Kind, limit: int) -> Json:
        return {"kind": kind, "groups": self.patterns, "memory_limit": limit}

    def _selected(self) -> dict[str, Array]:
        paths = parameter_paths(self.params)
        patterns = list(self.patterns.values())
        leaves = zip(paths, jax.tree.leaves(self.params), strict=True)
        return {path: leaf for path, leaf in leaves if matches(path, patterns)}

    def reference_bytes(self, count: int) -> int:
        """Jacobian contraction keeps every gradient, [N, C, P]; measured: up to twice that."""
        one = {name: leaf[0] for name, leaf in self.examples.items()}
        outputs = jax.eval_shape(self.f, self.params, one)
        gradient = sum(leaf.size * leaf.dtype.itemsize for leaf in self._selected().values())
        return 2 * count * math.prod(outputs.shape) * gradient

    def reference(self) -> Array:
        """By Jacobian contraction: structured derivatives of a whole network ask for terabytes."""
        paths, treedef = parameter_paths(self.params), jax.tree.structure(self.params)
        fixed = dict(zip(paths, jax.tree.leaves(self.params), strict=True))

        def g(some: dict[str, Array], example: Sentence) -> Float[Array, " C"]:
            leaves = {**fixed, **some}
            return self.f(treedef.unflatten([leaves[path] for path in paths]), example)

        return reference_kernel(g, self._selected(), self.examples, trace=False, implementation="jacobian-contraction")


#: A kernel that is fully specified: what it is of, on which examples, and how it is computed.
KernelProblem = BlockOnText | NetworkOnText


def parameter_groups(model: Model, scope: str) -> dict[str, str]:
    """Group → pattern of parameter paths: one per layer; for the whole network also embeddings and the rest.

    Patterns are tried in this order: a stack such as "encoder" takes what is in none of its layers, and "head" what no
    other group has.
    """
    layers = model.config.layer_paths
    if scope == "mlp":
        return {layer: f"{path}/*" for layer, path in zip(layers, model.config.block_paths, strict=True)}
    groups = {"embeddings": "embeddings/*", **{layer: f"{layer}/*" for layer in layers}}
    groups |= {stack: f"{stack}/*" for stack in (layer.rpartition("/")[0] for layer in layers) if stack}
    if not all(matches(path, list(groups.values())) for path in parameter_paths(model.params)):
        groups["head"] = "*"
    return groups


def network_function(model: Model, readouts: int, seed: int) -> tuple[Network, str, dict[str, np.ndarray]]:
    """The network as a function of one sentence, what it gives in words, and the directions it is read in, if any."""

    def run(params: Params, example: Sentence) -> ModelOutput:
        # pyright cannot know that no array is called `checked`
        return model.apply(params, **{name: leaf[None] for name, leaf in example.items()})  # pyright: ignore[reportArgumentType]

    def logits(params: Params, example: Sentence) -> Float[Array, " C"]:
        found = run(params, example).logits
        assert found is not None
        return found[0]

    if model.config.head == "sequence-classification":
        return logits, f"{model.config.num_labels} logits", {}
    width = model.config.hidden_size
    if readouts > width:
        raise InputError(f"--readouts must be at most the model width {width}, got {readouts}")
    directions = jax.random.normal(jax.random.key(seed), (width, readouts))
    directions /= jnp.linalg.norm(directions, axis=0, keepdims=True)
    which = model.config.readout_token
    words = f"{readouts} random unit directions (seed {seed}) of the last hidden state of the {which} token"

    def f(params: Params, example: Sentence) -> Float[Array, " C"]:
        states = run(params, example).last_hidden_state[0]
        if which == "first":
            return states[0] @ directions
        return states[jnp.sum(example["attention_mask"]) - 1] @ directions

    return f, words, {"readout_directions": np.asarray(directions)}
