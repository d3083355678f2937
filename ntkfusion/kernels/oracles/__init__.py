"""Kernels computed in other ways, to compare with."""
