"""Labelled examples in splits: GLUE, and tables of one's own."""
