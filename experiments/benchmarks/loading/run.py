"""Checkpoints that are generated and loaded, each in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import ntkfusion as nf
from experiments.benchmarks.process_memory import forget_peak, memory_of
from ntkfusion.checkpoints.save import Format

LAYERS = 24
CASES = (("hf", "float32"), ("hf", "float16"), ("flax", "float32"), ("ntkfusion", "float32"))


@dataclasses.dataclass(frozen=True)
class LoadingOptions:
    """What to do.

    Attributes:
        generate: for the benchmark's own processes: folder, format and stored type of a checkpoint to be made.
        measure: likewise: a folder to be loaded.
    """

    generate: tuple[Path, Format, str] | None = None
    measure: Path | None = None


def main(options: LoadingOptions) -> None:
    """Generate the checkpoints, load them, print what that took."""
    if options.generate is not None:
        generate(*options.generate)
        return
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return
    table = Table(
        "format", "stored", "file MB", "in memory MB", "peak MB", "peak / file", "peak / memory", "RSS MB", "s"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for kind, dtype in CASES:
            folder = str(Path(scratch) / f"{kind}-{dtype}")
            run("--generate", folder, kind, dtype)
            size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
            found = json.loads(run("--measure", folder))
            held, peak = found["held"] / 1e6, found["peak"] / 1e6
            numbers = (size, held, peak, peak / size, peak / held, found["rss"] / 1e6, found["seconds"])
            table.add_row(kind, dtype, *(f"{x:.2f}" if x < 10 else f"{x:,.0f}" for x in numbers))
    Console(width=120).print(table)


def run(*words: str) -> str:
    """What a process of this benchmark prints."""
    command = [sys.executable, str(Path(__file__).parent), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def generate(folder: Path, kind: Format, dtype: str) -> None:
    """Write a checkpoint of random weights."""
    config = nf.BertConfig(
        hidden_size=1024, num_hidden_layers=LAYERS, num_attention_heads=16, intermediate_size=4096, add_pooler=True
    )
    nf.save_model(nf.random_model(config), folder, format=kind, dtype=dtype)


def measure(folder: Path) -> dict[str, float]:
    """Bytes and seconds of loading a checkpoint."""
    jnp.zeros(8).block_until_ready()
    # tracing the network, and whatever is imported on the way, is no part of the weights
    tiny = nf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    with tempfile.TemporaryDirectory() as scratch:
        nf.load_model(nf.save_model(nf.random_model(tiny), Path(scratch) / "tiny"))
    forget_peak()
    (before, _), start = memory_of(), time.perf_counter()
    model = nf.load_model(folder)
    seconds = time.perf_counter() - start
    held = sum(array.nbytes for array in jax.tree.leaves(model.params))
    _, peak = memory_of()
    return {"peak": peak - before, "rss": peak, "held": held, "seconds": seconds}
