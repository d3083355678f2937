"""Kernels of one MLP block, in closed form."""
