"""``uv run experiments/bound_tightness`` or ``python -m experiments.bound_tightness``."""

import os
import sys
from pathlib import Path

# the repository's root instead of this folder, whose modules have names of their own
sys.path[0] = str(Path(__file__).parents[2])
# read when the library is loaded: LAPACK's own threads fight with XLA's, and an SVD takes 5 to 30 times longer
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from experiments.bound_tightness.run import TightnessOptions, main
from experiments.common.console import start

start(main, TightnessOptions)
