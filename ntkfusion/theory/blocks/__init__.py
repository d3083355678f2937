"""Bounds for fused MLP blocks."""
