"""Exact neural tangent kernels and the distances between them."""
