"""``uv run experiments/benchmarks/loading`` or ``python -m experiments.benchmarks.loading``."""

import sys
from pathlib import Path

# the repository's root instead of this folder, whose modules have names of their own
sys.path[0] = str(Path(__file__).parents[3])

from experiments.benchmarks.loading.run import LoadingOptions, main
from experiments.common.console import start

start(main, LoadingOptions)
