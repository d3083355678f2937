"""Both sides with the same batches, by turns, and the memory of each alone."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import transformers
from rich.console import Console
from rich.table import Table

import ntkfusion as nf
from experiments.benchmarks.process_memory import forget_peak, memory_of
from ntkfusion.data.tasks.load import DATA_DIR, load_task
from ntkfusion.data.tasks.task import Examples
from ntkfusion.data.text import sample_sentences
from ntkfusion.training.batches import encode, minibatches
from ntkfusion.training.evaluation import padded_lengths
from ntkfusion.training.optimizer import build_optimizer
from ntkfusion.training.recipe import Recipe
from ntkfusion.training.step import NonTrainable, dropout_key, first_state, make_step, task_loss
from ntkfusion.utils.parameter_paths import flatten

Contestant = Literal["ours", "ours, fused", "transformers"]
CONTESTANTS: tuple[Contestant, ...] = ("ours", "ours, fused", "transformers")
Batches = list[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """What to measure.

    Attributes:
        batches: updates of one pass.
        repeats: passes of each contestant; medians are shown.
        batch_size: sentences per update.
        width: kept fraction of the neurons of the compressed model.
        threads: of PyTorch; XLA takes all cores the process may use.
        default_allocator: whether freed memory goes back to the system.
        memory_of: for the benchmark's own processes.
        memory_batches: likewise.
    """

    batches: int = 8
    repeats: int = 5
    batch_size: int = 32
    width: float = 0.25
    threads: int = len(os.sched_getaffinity(0))
    default_allocator: bool = False
    memory_of: Contestant | None = None
    memory_batches: Path | None = None


def recipe(options: TrainingOptions) -> Recipe:
    """The updates of both sides."""
    return Recipe(batch_size=options.batch_size, warmup=0.0, schedule="constant", weight_decay=0.01)


def classifier(width: float | None = None) -> nf.Model:
    """MiniLM with a head for two classes, its blocks fused to a share of their neurons if one is given."""
    model = nf.load_model("minilm")
    if width is not None:
        model, _ = nf.compress(model, nf.MLPFusion(keep_ratio=width), seed=0)
    return nf.with_new_head(model, "sequence-classification", num_labels=2)


def batches_of(model: nf.Model, options: TrainingOptions) -> Batches:
    """The first batches of a run."""
    if os.environ.get(DATA_DIR):
        examples = load_task("sst2").train
    else:
        texts = (sample_sentences() * (options.batches * options.batch_size))[: options.batches * options.batch_size]
        examples = Examples(tuple(texts), None, np.arange(len(texts), dtype=np.int32) % 2)
    encoded = encode(model, examples, max_length=128)
    order = minibatches(encoded, recipe(options), padded_lengths(model, (encoded,)), seed=0)
    return [batch.arrays for batch, _ in zip(order, range(options.batches), strict=False)]


def ours(model: nf.Model, batches: Batches, options: TrainingOptions) -> Callable[[], float]:
    """A pass over the batches; the last loss."""
    optimizer = build_optimizer(recipe(options), 10**6)
    step = make_step(task_loss(model.config, is_regression=False), optimizer, recipe(options))
    fixed = NonTrainable({}, model.constants, dropout_key(0), {})
    state = first_state(flatten(model.params), optimizer)

    def run() -> float:
        nonlocal state
        loss = 0.0
        for arrays in batches:
            state, measured = step(state, fixed, arrays)
            loss = float(measured.loss)
        return loss

    return run


def theirs(model: nf.Model, batches: Batches, options: TrainingOptions, *, fused: bool) -> Callable[[], float]:
    """The same pass in PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        nf.save_model(model, Path(folder) / "model")
        network = transformers.BertForSequenceClassification.from_pretrained(Path(folder) / "model").train()
    matrices = [parameter for parameter in network.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe(options).learning_rate, fused=fused, foreach=not fused)
    inputs = [
        {name: torch.tensor(values).long() for name, values in arrays.items() if name != "weights"}
        for arrays in batches
    ]

    def run() -> float:
        loss = 0.0
        for batch in inputs:
            optimizer.zero_grad()
            found = network(**batch).loss
            found.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            loss = float(found.detach())
        return loss

    return run


def operations(model: nf.Model, batches: Batches) -> float:
    """Multiplications of matrices in a pass forward and back: 3 times those of the forward pass."""
    config, total = model.config, 0
    for arrays in batches:
        rows, length = arrays["input_ids"].shape
        width = config.hidden_size
        for block in model.mlp_blocks():
            total += 3 * rows * length * width * (4 * width + 2 * length + 2 * block.hidden_width)
    return float(total)


def memory(contestant: Contestant, file: Path, options: TrainingOptions) -> list[float]:
    """Peak bytes of a process above what its imports hold: model and first pass, and a later pass."""
    words = [sys.executable, str(Path(__file__).parent), "--memory-of", contestant, "--memory-batches", str(file)]
    words += ["--width", str(options.width), "--threads", str(options.threads)]
    words += ["--default-allocator"] if options.default_allocator else []
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure_memory(options: TrainingOptions) -> None:
    """Print the peaks of this process, which is one contestant's own."""
    if options.memory_of == "transformers":
        _ = transformers.BertForSequenceClassification  # imports PyTorch
    assert options.memory_batches is not None
    with np.load(options.memory_batches) as stored:
        batches: Batches = [stored_batch(stored, place) for place in range(int(stored["count"]))]
    before, _ = memory_of()
    model = classifier(options.width if options.memory_of == "ours, fused" else None)
    run = (
        theirs(model, batches, options, fused=True)
        if options.memory_of == "transformers"
        else ours(model, batches, options)
    )
    del model
    forget_peak()  # the peak is counted from here
    run()
    peaks = [memory_of()[1] - before]
    forget_peak()
    run()
    print(json.dumps([*peaks, memory_of()[1] - before]))


def stored_batch(stored: Mapping[str, np.ndarray], place: int) -> dict[str, np.ndarray]:
    """The arrays of a batch."""
    names = [name for name in stored if name.endswith(f"/{place}")]
    return {name.rpartition("/")[0]: stored[name] for name in names}


def main(options: TrainingOptions, *, kept: bool = False) -> None:
    """Measure and print the table.

    Args:
        options: what to measure.
        kept: whether this process keeps freed memory, for the last line.
    """
    if options.memory_of is not None:
        measure_memory(options)
        return
    model, small = classifier(), classifier(options.width)
    batches = batches_of(model, options)
    runs: dict[str, Callable[[], float]] = {
        "ours": ours(model, batches, options),
        "ours, fused": ours(small, batches, options),
        "transformers, fused AdamW": theirs(model, batches, options, fused=True),
        "transformers, foreach AdamW": theirs(model, batches, options, fused=False),
    }
    first = {name: run() for name, run in runs.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            times[name].append(timed(run))
    tokens = sum(int(arrays["attention_mask"].sum()) for arrays in batches)
    console = Console(width=120)
    console.print(table_of(times, first, tokens, len(batches)))
    ratio = operations(small, batches) / operations(model, batches)
    shapes = [arrays["input_ids"].shape for arrays in batches]
    counts = ", ".join(f"{shapes.count(shape)} of {shape[0]} x {shape[1]}" for shape in sorted(set(shapes)))
    console.print(
        f"operations of the compressed model: {ratio:.2f} of the full one's; batches: {counts}; {tokens} tokens"
    )
    console.print(
        f"{options.threads} threads; load {os.getloadavg()[0]:.1f}; medians of {options.repeats} interleaved passes; "
        f"freed memory {'kept' if kept else 'given back'}"
    )
    with tempfile.TemporaryDirectory() as folder:
        named = {f"{name}/{place}": array for place, arrays in enumerate(batches) for name, array in arrays.items()}
        np.savez(Path(folder) / "batches.npz", count=len(batches), **named)  # pyright: ignore[reportArgumentType]
        for contestant in CONTESTANTS:
            first_peak, later = memory(contestant, Path(folder) / "batches.npz", options)
            console.print(
                f"peak MiB, {contestant}: {first_peak / 2**20:,.0f} with the first pass, {later / 2**20:,.0f} later"
            )


def timed(run: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a pass by the clock, and of all threads."""
    start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def table_of(times: dict[str, list[tuple[float, float]]], first: dict[str, float], tokens: int, updates: int) -> Table:
    """A row per contestant."""
    table = Table("", "tokens/s", "ms per update", "min", "CPU ms", "relative to ours", "first loss")
    for name, pairs in times.items():
        clock, cpu = (statistics.median(pair[part] for pair in pairs) for part in range(2))
        ratio = statistics.median(pair[0] / our[0] for pair, our in zip(pairs, times["ours"], strict=True))
        numbers = (1000 * each / updates for each in (clock, min(pair[0] for pair in pairs), cpu))
        table.add_row(
            name, f"{tokens / clock:,.0f}", *(f"{each:.0f}" for each in numbers), f"{ratio:.2f}", f"{first[name]:.3f}"
        )
    return table
