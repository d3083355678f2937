"""``uv run experiments/benchmarks/training`` or ``python -m experiments.benchmarks.training``."""

import sys
from functools import partial
from pathlib import Path

# the repository's root instead of this folder, whose modules have names of their own
sys.path[0] = str(Path(__file__).parents[3])

from ntkfusion.utils.allocator import keep_freed_memory

# before JAX is imported, whose threads have memory of their own otherwise
KEPT = {"--default-allocator", "--default_allocator"}.isdisjoint(sys.argv) and keep_freed_memory()

from experiments.benchmarks.training.run import TrainingOptions, main
from experiments.common.console import start

start(partial(main, kept=KEPT), TrainingOptions)
