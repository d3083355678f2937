"""The parts of ``experiments/kernel_vs_finetuning.py``."""
