"""Kernels of any network."""
