"""Towards the original's kernel: constants, output weights, tuning."""
