"""What ``ntkfusion inspect`` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from ntkfusion.commands.kernel.problem import network_function
from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import estimate_block_kernel
from ntkfusion.kernels.estimate import Estimate
from ntkfusion.kernels.network.network_kernel import estimate_network_kernel
from ntkfusion.models.blocks.base import BlockBase
from ntkfusion.models.blocks.block import layout
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.models.model import Model
from ntkfusion.utils.memory import show_size
from ntkfusion.utils.parameter_paths import parameter_paths

#: Sizes of the kernels whose memory is shown: what ``ntkfusion kernel`` takes by default.
TOKENS, EXAMPLES, LENGTH = 512, 32, 64


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _mebibytes(tree: Any) -> str:
    return f"{sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 2**20:.1f}"


def architecture_lines(model: Model) -> list[str]:
    """One sentence per fact about the network."""
    config = model.config
    labels = "" if config.num_labels is None else f" with {config.num_labels} labels"
    head = "no head" if config.head is None else f"head {config.head}{labels}"
    positions = "any length" if config.max_length is None else f"{config.max_length} positions"
    tokenizer = "none" if model.tokenizer is None else type(model.tokenizer).__name__
    return [
        f"{model.source}",
        f"{config.architecture}: {config.num_layers} layers, model width {config.hidden_size}, {positions}, {head}",
        f"{model.num_parameters:,} parameters, {_mebibytes(model.params)} MiB; tokenizer {tokenizer}",
    ]


def kind_of(block: BlockBase) -> str:
    """The kind of an MLP block in words."""
    if isinstance(block, MixtureBlock):
        return f"{block.num_experts} experts, {kind_of(block.experts)}"
    return {"MLPBlock": "dense", "FactorizedBlock": "factorised"}.get(
        type(block).__name__, type(block).__name__.removesuffix("Block").lower()
    )


def blocks_table(model: Model) -> Table:
    """One row per MLP block."""
    table = Table(title="MLP blocks", title_justify="left")
    for name in ("layer", "kind", "hidden width", "activation", "constants", "parameters", "MiB"):
        table.add_column(name, justify="left" if name in ("kind", "activation", "constants") else "right")
    for index, block in enumerate(model.mlp_blocks()):
        table.add_row(
            str(index),
            kind_of(block),
            str(block.hidden_width),
            block.activation,
            ", ".join(block.constants()) or "none",
            f"{block.num_parameters:,}",
            _mebibytes(block),
        )
    return table


def parameters_table(model: Model) -> Table:
    """Where the parameters are: embeddings, attention, MLP blocks, the rest."""
    table = Table(title="Parameters", title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    for part, count in parameter_shares(model).items():
        table.add_row(part, f"{count:,}", f"{100 * count / model.num_parameters:.1f} %")
    return table


def parameter_shares(model: Model) -> Mapping[str, int]:
    """Number of stored parameters per part of the network; the parts add up to all of them."""
    leaves = zip(parameter_paths(model.params), jax.tree.leaves(model.params), strict=True)
    parts: dict[str, int] = {"embeddings": 0, "attention": 0}
    for path, leaf in leaves:
        names = path.split("/")
        if {"attention", "cross_attention"} & {*names}:
            parts["attention"] += leaf.size
        elif names[0] == "embeddings":
            parts["embeddings"] += leaf.size
    shares = parts | {"MLP blocks": sum(block.num_parameters for block in model.mlp_blocks())}
    return {**shares, "norms, pooler, heads": model.num_parameters - sum(shares.values())}


def memory_table(model: Model) -> Table:
    """What typical kernels of this model take, from their compiled programs; nothing is computed."""
    table = Table(title="Memory of SGD kernels", title_justify="left")
    for name in ("kernel", "of", "at most", "result", "at a time"):
        table.add_column(name, justify="left" if name in ("kernel", "of") else "right")
    blocks = dict.fromkeys(layout(block) for block in model.mlp_blocks())
    for number, block in enumerate(blocks):
        name = "block" if len(blocks) == 1 else f"block (shape {number + 1})"
        _add_estimate(table, name, f"{TOKENS} tokens, traced", lambda block=block: estimate_block_kernel(block, TOKENS))
    f, _, _ = network_function(model, min(2, model.config.hidden_size), 0)
    length = min(LENGTH, model.config.max_length or LENGTH)
    ids = jax.ShapeDtypeStruct((EXAMPLES, length), jnp.int32)
    examples = {"input_ids": ids, "attention_mask": ids}
    outputs = model.config.num_labels if model.config.head == "sequence-classification" else 2
    of = f"{EXAMPLES} sentences of {length} tokens, C={outputs}"
    _add_estimate(table, "network", of, lambda: estimate_network_kernel(f, model.params, examples))
    return table


def _add_estimate(table: Table, name: str, of: str, make: Callable[[], Estimate]) -> None:
    try:
        found = make()
    except InputError as error:
        table.add_row(name, of, f"does not fit: {error}", "", "")
        return
    table.add_row(name, of, show_size(found.peak), show_size(found.result), str(found.chunk))


def left_aside_lines(left_aside: Mapping[str, str]) -> list[str]:
    """One sentence per reason for which tensors of the checkpoint are not part of the model."""
    reasons: dict[str, list[str]] = {}
    for name, reason in left_aside.items():
        reasons.setdefault(reason, []).append(name)
    return [f"left aside: {', '.join(names)} ({reason})" for reason, names in reasons.items()]


def print_inspection(model: Model, left_aside: Mapping[str, str], console: Console) -> None:
    """Print everything above.

    Args:
        model: the model.
        left_aside: tensors of its checkpoint that are not part of it → why.
        console: where to.
    """
    for line in [*architecture_lines(model), *left_aside_lines(left_aside)]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(blocks_table(model))
    console.print(parameters_table(model))
    console.print(memory_table(model))
