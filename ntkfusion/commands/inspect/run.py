"""The command ``ntkfusion inspect``: what a model is made of, and what its kernels would take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from ntkfusion.checkpoints.load import load_with_audit
from ntkfusion.checkpoints.tokenizers import is_tokenizer_file
from ntkfusion.commands.conditions import left_aside_lines
from ntkfusion.commands.inspect.options import Inspect
from ntkfusion.commands.kernel.problem import network_function
from ntkfusion.commands.protocol import print_lines
from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import estimate_block_kernel
from ntkfusion.kernels.estimate import Estimate
from ntkfusion.kernels.network.network_kernel import estimate_network_kernel
from ntkfusion.models.blocks.base import BlockBase
from ntkfusion.models.blocks.block import Block, layout
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.models.model import Model
from ntkfusion.utils.console_tables import print_table
from ntkfusion.utils.memory import show_size
from ntkfusion.utils.parameter_paths import flatten
from ntkfusion.utils.progress import Progress

#: Sizes of the kernels whose memory is shown: what ``ntkfusion kernel`` takes by default.
TOKENS, EXAMPLES, LENGTH = 512, 32, 64


@dataclasses.dataclass(frozen=True)
class InspectPlan:
    """A request; there is nothing to check without the model, and nothing is written."""

    options: Inspect
    output: None = None
    steps: int = 2


@dataclasses.dataclass(frozen=True)
class BlockFacts:
    """One MLP block, in the words and numbers of a table's row."""

    kind: str
    hidden_width: int
    activation: str
    constants: tuple[str, ...]
    parameters: int
    num_bytes: int

    @classmethod
    def of(cls, block: Block) -> BlockFacts:
        """The facts about a block."""
        return cls(
            kind=kind_of(block),
            hidden_width=block.hidden_width,
            activation=block.activation,
            constants=tuple(block.constants()),
            parameters=block.num_parameters,
            num_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(block)),
        )


@dataclasses.dataclass(frozen=True)
class KernelMemory:
    """What one kernel would take.

    Attributes:
        name: what it is the kernel of.
        inputs: how many examples, in words.
        needed: the memory, or why it does not fit.
    """

    name: str
    inputs: str
    needed: Estimate | str


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a model is made of.

    Attributes:
        facts: one sentence each.
        left_aside: tensors of its checkpoint that are not part of it → why.
        notes: what else was found around its tensors.
        blocks: its MLP blocks.
        parts: part of the network → stored parameters; they add up to all of them.
        kernels: what typical kernels would take.
    """

    facts: tuple[str, ...]
    left_aside: Mapping[str, str]
    notes: Sequence[str]
    blocks: tuple[BlockFacts, ...]
    parts: Mapping[str, int]
    kernels: tuple[KernelMemory, ...]


def plan(options: Inspect) -> InspectPlan:
    """Nothing can be checked without the model."""
    return InspectPlan(options)


def run(plan: InspectPlan, progress: Progress) -> Inspection:
    """Load the model and look at it; nothing is computed.

    Raises:
        NTKFusionError: if the model cannot be loaded.
    """
    progress.advance("loading the model", 0)
    model, audit = load_with_audit(
        plan.options.model, tokenizer=not plan.options.no_tokenizer, ignore_adapter=plan.options.ignore_adapter
    )
    progress.advance("compiling kernels", 1)
    blocks = tuple(BlockFacts.of(block) for block in model.mlp_blocks())
    facts = architecture_lines(model)
    return Inspection(facts, audit.left_aside, audit.notes, blocks, parameter_parts(model), kernel_memory(model))


def architecture_lines(model: Model) -> tuple[str, ...]:
    """One sentence per fact about the network."""
    config = model.config
    labels = "" if config.num_labels is None else f" with {config.num_labels} labels"
    head = "no head" if config.head is None else f"head {config.head}{labels}"
    positions = "any length" if config.max_length is None else f"{config.max_length} positions"
    tokenizer = _without_tokenizer(model) if model.tokenizer is None else type(model.tokenizer).__name__
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    return (
        f"{model.source}",
        f"{config.architecture}: {config.num_layers} layers, model width {config.hidden_size}, {positions}, {head}",
        f"{model.num_parameters:,} parameters, {_mebibytes(size)} MiB; tokenizer {tokenizer}",
    )


def _without_tokenizer(model: Model) -> str:
    return "not loaded" if any(map(is_tokenizer_file, model.origin.files)) else "none"


def kind_of(block: BlockBase) -> str:
    """The kind of an MLP block in words."""
    if isinstance(block, MixtureBlock):
        return f"{block.num_experts} experts, {kind_of(block.experts)}"
    return {"MLPBlock": "dense", "FactorizedBlock": "factorised"}.get(
        type(block).__name__, type(block).__name__.removesuffix("Block").lower()
    )


def parameter_parts(model: Model) -> Mapping[str, int]:
    """Number of stored parameters per part of the network; the parts add up to all of them."""
    parts: dict[str, int] = {"embeddings": 0, "attention": 0}
    for path, parameter in flatten(model.params).items():
        names = path.split("/")
        if {"attention", "cross_attention"} & {*names}:
            parts["attention"] += parameter.size
        elif names[0] == "embeddings":
            parts["embeddings"] += parameter.size
    parts |= {"MLP blocks": sum(block.num_parameters for block in model.mlp_blocks())}
    return {**parts, "norms, pooler, heads": model.num_parameters - sum(parts.values())}


def kernel_memory(model: Model) -> tuple[KernelMemory, ...]:
    """What typical kernels of this model take, from their compiled programs."""
    blocks = dict.fromkeys(layout(block) for block in model.mlp_blocks())
    found = []
    for number, block in enumerate(blocks):
        name = "block" if len(blocks) == 1 else f"block (shape {number + 1})"
        needed = _needed(lambda block=block: estimate_block_kernel(block, TOKENS))
        found.append(KernelMemory(name, f"{TOKENS} tokens, traced", needed))
    f, _, _ = network_function(model, min(2, model.config.hidden_size), 0)
    length = min(LENGTH, model.config.max_length or LENGTH)
    ids = jax.ShapeDtypeStruct((EXAMPLES, length), jnp.int32)
    examples = {"input_ids": ids, "attention_mask": ids}
    outputs = model.config.num_labels if model.config.head == "sequence-classification" else 2
    needed = _needed(lambda: estimate_network_kernel(f, model.params, examples))
    return (*found, KernelMemory("network", f"{EXAMPLES} sentences of {length} tokens, C={outputs}", needed))


def _needed(estimate: Callable[[], Estimate]) -> Estimate | str:
    try:
        return estimate()
    except InputError as error:
        return f"does not fit: {error}"


def write(result: Inspection, folder: Path) -> None:
    """Nothing: an inspection is only printed."""


def show(result: Inspection, console: Console) -> None:
    """Print everything."""
    print_lines(console, *result.facts, *result.notes, *left_aside_lines(result.left_aside))
    print_table(console, blocks_table(result.blocks))
    print_table(console, parts_table(result.parts))
    print_table(console, memory_table(result.kernels))


def blocks_table(blocks: tuple[BlockFacts, ...]) -> Table:
    """One row per MLP block."""
    table = Table(title="MLP blocks", title_justify="left")
    for name in ("layer", "kind", "hidden width", "activation", "constants", "parameters", "MiB"):
        table.add_column(name, justify="left" if name in ("kind", "activation", "constants") else "right")
    for index, block in enumerate(blocks):
        table.add_row(
            str(index),
            block.kind,
            str(block.hidden_width),
            block.activation,
            ", ".join(block.constants) or "none",
            f"{block.parameters:,}",
            _mebibytes(block.num_bytes),
        )
    return table


def parts_table(parts: Mapping[str, int]) -> Table:
    """Where the parameters are: embeddings, attention, MLP blocks, the rest."""
    table = Table(title="Parameters", title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    for part, count in parts.items():
        table.add_row(part, f"{count:,}", f"{100 * count / sum(parts.values()):.1f} %")
    return table


def memory_table(kernels: tuple[KernelMemory, ...]) -> Table:
    """What typical kernels take."""
    table = Table(title="Memory of SGD kernels", title_justify="left")
    for name in ("kernel", "of", "at most", "result", "at a time"):
        table.add_column(name, justify="left" if name in ("kernel", "of") else "right")
    for kernel in kernels:
        if isinstance(kernel.needed, str):
            cells = (kernel.needed, "", "")
        else:
            cells = (show_size(kernel.needed.peak), show_size(kernel.needed.result), str(kernel.needed.chunk))
        table.add_row(kernel.name, kernel.inputs, *cells)
    return table


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f}"
