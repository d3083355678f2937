"""``uv run experiments/kernel_vs_finetuning`` or ``python -m experiments.kernel_vs_finetuning``."""

import os
import sys
from pathlib import Path

# the repository's root instead of this folder, whose modules have names of their own
sys.path[0] = str(Path(__file__).parents[2])
# read when the library is loaded: LAPACK's own threads fight with XLA's, and an SVD takes 5 to 30 times longer
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from experiments.common.console import start
from experiments.kernel_vs_finetuning.options import FinetuningOptions
from experiments.kernel_vs_finetuning.run import main

start(main, FinetuningOptions)
