"""Bounds that stay informative on real weights."""
