"""What to measure, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.common.store import Result
from ntkfusion.utils.memory import parse_size

SectionName = Literal["block", "tokens", "network", "growth"]


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """The block of the first two tables.

    Attributes:
        d: input width.
        m: hidden width.
        o: output width.
        n: tokens against neural-tangents.
        tokens: tokens of the second table.
        batch_sizes: blocks of the kernel that neural-tangents may compute at a time; 0 is everything at once.
    """

    d: int = 768
    m: int = 3072
    o: int = 768
    n: int = 32
    tokens: int = 4096
    batch_sizes: tuple[int, ...] = (0, 8, 4, 1)

    def problem(self, n: int, seed: int) -> dict[str, int]:
        """Arguments of a worker."""
        return {"d": self.d, "m": self.m, "o": self.o, "n": n, "seed": seed}


@dataclasses.dataclass(frozen=True)
class NetworkSizes:
    """A BERT with a classification head and its examples; by default of BERT-base's size.

    Attributes:
        layers: encoder layers.
        d: model width.
        heads: attention heads.
        m: hidden width of the MLP blocks.
        vocab: rows of the word embedding.
        outputs: logits.
        n: examples.
        t: tokens per example.
        memory: the limit of every process.
        told: memory_limit of our kernel (beside it live libraries, weights and what XLA needs to compile).
        batch_sizes: as for blocks, the largest first.
        implementations: of neural-tangents.
    """

    layers: int = 12
    d: int = 768
    heads: int = 12
    m: int = 3072
    vocab: int = 30522
    outputs: int = 2
    n: int = 32
    t: int = 64
    memory: str = "8GiB"
    told: str = "7GiB"
    batch_sizes: tuple[int, ...] = (4, 2, 1)
    implementations: tuple[str, ...] = ("structured-derivatives", "ntk-vector-products", "jacobian-contraction")

    def problem(self, seed: int) -> Result:
        """Arguments of a worker."""
        config = {
            "num_labels": self.outputs,
            "vocab_size": self.vocab,
            "hidden_size": self.d,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.m,
            "max_position_embeddings": max(512, self.t),
        }
        return {"config": config, "n": self.n, "t": self.t, "seed": seed}


@dataclasses.dataclass(frozen=True)
class GrowthSizes:
    """Where growth is measured; the other sizes stay at those of `block` and of the small network.

    Attributes:
        block_n: tokens of the block kernel.
        block_m: hidden widths of the block, at `at_n` tokens.
        at_n: tokens where something else grows.
        network: the small network, its examples and tokens where something else grows.
        network_n: examples of the network kernel.
        network_t: tokens per example.
        devices: fake devices of one machine.
    """

    block_n: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    block_m: tuple[int, ...] = (384, 768, 1536, 3072, 6144)
    at_n: int = 1024
    network: NetworkSizes = NetworkSizes(layers=4, d=256, heads=4, m=1024, vocab=8192, n=32, t=64)
    network_n: tuple[int, ...] = (8, 16, 32, 64, 128)
    network_t: tuple[int, ...] = (16, 32, 64, 128, 256)
    devices: tuple[int, ...] = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class KernelsOptions:
    """Time and memory of the exact kernels, against neural-tangents and dense Jacobians.

    Attributes:
        sections: what to run.
        block: sizes of the block.
        network: sizes of the network.
        growth: sizes of the growth curves.
        repeats: calls of every contestant after the first one, by turns; medians are shown.
        memory_limit: what every process may hold in the block and growth sections.
        time_limit: seconds that one call may take.
        seed: of weights and inputs.
        out: folder for results.json, table.md and growth.png.
        overwrite: replace an earlier result there.
    """

    sections: tuple[SectionName, ...] = ("block", "tokens", "network", "growth")
    block: BlockSizes = BlockSizes()
    network: NetworkSizes = NetworkSizes()
    growth: GrowthSizes = GrowthSizes()
    repeats: int = 3
    memory_limit: str = "16GiB"
    time_limit: float = 600.0
    seed: int = 0
    out: Path = Path("results/benchmark-kernels")
    overwrite: bool = False

    def __post_init__(self) -> None:
        for size in (self.memory_limit, self.network.memory, self.network.told):
            parse_size(size)
