"""``uv run experiments/benchmarks/clustering`` or ``python -m experiments.benchmarks.clustering``."""

import sys
from pathlib import Path

# the repository's root instead of this folder, whose modules have names of their own
sys.path[0] = str(Path(__file__).parents[3])

from experiments.benchmarks.clustering.run import ClusteringOptions, main
from experiments.common.console import start

start(main, ClusteringOptions)
