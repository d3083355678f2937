"""Memory and time of loading checkpoints of the size of BERT-large, which are generated.

Run it: ``uv run experiments/benchmarks/loading.py`` (five minutes, 5 GB of disk, Linux). Every load runs in a process
of its own, after whose imports the system's record of its peak is reset. Prints a table.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

LAYERS = 24
CASES = (("hf", "float32"), ("hf", "float16"), ("flax", "float32"), ("ntkfusion", "float32"))


def main() -> None:
    """Generate the checkpoints, load them, print what that took."""
    if len(sys.argv) > 1:
        print(json.dumps(generate(*sys.argv[2:]) if sys.argv[1] == "generate" else measure(sys.argv[2])))
        return
    table = Table(
        "format", "stored", "file MB", "in memory MB", "peak MB", "peak / file", "peak / memory", "RSS MB", "s"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for kind, dtype in CASES:
            folder = str(Path(scratch) / f"{kind}-{dtype}")
            run("generate", folder, kind, dtype)
            size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
            found = run("measure", folder)
            held, peak = found["held"] / 1e6, found["peak"] / 1e6
            numbers = (size, held, peak, peak / size, peak / held, found["rss"] / 1e6, found["seconds"])
            table.add_row(kind, dtype, *(f"{x:.2f}" if x < 10 else f"{x:,.0f}" for x in numbers))
    Console(width=120).print(table)


def run(*words: str) -> dict[str, float]:
    output = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True).stdout
    return json.loads(output)


def generate(folder: str, kind: str, dtype: str) -> dict[str, float]:
    import ntkfusion as nf

    config = nf.BertConfig(
        hidden_size=1024, num_hidden_layers=LAYERS, num_attention_heads=16, intermediate_size=4096, add_pooler=True
    )
    nf.save_model(nf.random_model(config), folder, format=kind, dtype=dtype)
    return {}


def measure(folder: str) -> dict[str, float]:
    import time

    import jax
    import jax.numpy as jnp

    import ntkfusion as nf

    jnp.zeros(8).block_until_ready()
    # tracing the network, and whatever is imported on the way, is no part of the weights
    tiny = nf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    with tempfile.TemporaryDirectory() as scratch:
        nf.load_model(nf.save_model(nf.random_model(tiny), Path(scratch) / "tiny"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, start = status("VmRSS"), time.perf_counter()
    model = nf.load_model(folder)
    seconds = time.perf_counter() - start
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    peak = status("VmHWM")
    return {"peak": peak - before, "rss": peak, "held": held, "seconds": seconds}


def status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith(key)).split()[1])


if __name__ == "__main__":
    main()
