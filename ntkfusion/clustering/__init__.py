"""Clustering the neurons of a block."""
