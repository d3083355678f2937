"""``uv run experiments/benchmarks/kernels`` or ``python -m experiments.benchmarks.kernels``."""

import sys
from pathlib import Path

# the repository's root instead of this folder, whose modules have names of their own
sys.path[0] = str(Path(__file__).parents[3])

from experiments.benchmarks.kernels.options import KernelsOptions
from experiments.benchmarks.kernels.run import main
from experiments.common.console import start

start(main, KernelsOptions)
